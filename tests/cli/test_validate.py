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


@pytest.mark.parametrize(
    ("override", "caution"),
    [
        ("pruner.min_epochs=5", "no trial will be pruned: min_epochs = 5 is past half of epochs = 8"),
        ("sampler={ name = 'gp' }", 'pruner.name = "asha": sampler gp learns from completed trials only'),
    ],
)
def test_what_is_hardly_meant(override, caution, tmp_path):
    result = run("quickstart", "--set", override)
    assert (result.exit_code, result.stdout.startswith("quickstart: ok")) == (0, True)
    assert result.stderr.startswith(f"quickstart: warning: {caution}")
    assert result.stderr.count("\n") == 1
    url = f"sqlite:///{tmp_path}/study.db"
    created = CliRunner().invoke(cli, ["create-study", "quickstart", "--set", override, "--storage", url])
    assert (created.exit_code, created.stderr.startswith(f"hpsearch: warning: {caution}")) == (0, True)


def test_of_one_epoch_nobody_expects_to_be_pruned():
    assert run("quickstart", "--set", "training.epochs=1").stderr == ""


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


def test_of_a_finite_space_the_trials_that_there_can_be(tmp_path):
    (tmp_path / "few.toml").write_bytes(
        b'\xef\xbb\xbfname = "few"\nmodel.name = "lenet"\ndata.name = "digits"\ntraining.epochs = 1\n'
        b"budget.trials = 9\nspace.batch_size = [32, 64]\n"
    )
    result = run(str(tmp_path / "few.toml"))
    assert result.stdout.endswith("ok, lenet on digits, 1 hyperparameters searched, 2 trials of 1 epochs\n")
