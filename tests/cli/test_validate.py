"""hpsearch validate: one line per mistake, exit code 2."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from hpsearch.cli.main import cli

STUDY = """
name = "mine"
seeds = 2
[model]
name = "lenet"
[data]
name = "digits"
[training]
epochs = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(STUDY)
    return str(path)


def run(*arguments):
    return CliRunner().invoke(cli, ["validate", *arguments])


def test_ok(file):
    result = run(file, "quickstart")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == f"{file}: ok, lenet on digits, 2 seeds, 2 trials of 3 epochs"
    assert result.stderr == ""


def test_each_mistake_on_its_own_line(file):
    result = run(file, "--set", "training.epochs=0", "--set", "model.name=lennet")
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"{file}: training.epochs = 0: must be at least 1")
    assert lines[1].startswith(f'{file}: model.name = "lennet": no such model; did you mean lenet?')


def test_goes_on_after_a_bad_file(file):
    result = run("absent.toml", file)
    assert result.exit_code == 2
    assert "absent.toml: there is no such file" in result.stderr
    assert f"{file}: ok" in result.stdout


def test_set_without_a_value(file):
    result = run(file, "--set", "training.epochs")
    assert result.exit_code == 2
    assert "must be section.key=value" in result.stderr


def test_imports_nothing_heavy(file):
    code = (
        "import sys; from hpsearch.cli.validate import validate; validate([sys.argv[1]], standalone_mode=False); "
        "print(sorted({'torch', 'optuna', 'numpy', 'sqlalchemy', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
