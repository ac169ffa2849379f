"""Wrong input of every kind: exit code 2, one line that says what is wrong, and nothing created or changed."""

import subprocess
from pathlib import Path

import pytest

from tests.cli import inside
from tests.cli.running import command, environment, hpsearch
from tests.postgres import as_plain_user
from tests.studies import TINY


def one_line(folder: Path, *arguments: str, **variables: str) -> str:
    """Run a command that must refuse; its only line."""
    done = hpsearch(folder, *arguments, code=2, **variables)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


MISTAKES = {
    "syntax": ("[model]", "[model", "TOML"),
    "unknown key": ("epochs = 3", "epochs = 3\nepoch = 3", "epoch"),
    "unknown section": ("[pruner]", "[prunner]", "prunner"),
    "log range at zero": ("low = 1e-3", "low = 0.0", "learning_rate"),
    "low above high": ("low = 1e-3", "low = 10.0", "learning_rate"),
    "no choices": ('["sgd", "adam"]', "[]", "optimizer"),
    "condition on nothing": ('when = { optimizer = "sgd" }', 'when = { optimiser = "sgd" }', "optimiser"),
    "condition on another value": ('when = { optimizer = "sgd" }', 'when = { optimizer = "adamw" }', "adamw"),
    "unknown model": ('name = "2lp"', 'name = "2pl"', "2pl"),
    "unknown data": ('name = "digits"', 'name = "digit"', "digit"),
    "unknown optimizer": ('["sgd", "adam"]', '["sgd", "adamx"]', "adamx"),
    "unknown pruner": ('name = "asha"', 'name = "ascha"', "ascha"),
    "no epochs": ("epochs = 3", "epochs = 0", "epochs"),
    "no trials": ("trials = 6", "trials = 0", "trials"),
    "not a number": ("low = 1e-3", 'low = "small"', "small"),
    "infinite": ("low = 1e-3", "low = -inf", "inf"),
    "known good outside": ("learning_rate = 0.01", "learning_rate = 0.5", "learning_rate"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_a_study_file(kind: str, tmp_path: Path) -> None:
    right, wrong, named = MISTAKES[kind]
    assert right in TINY
    (tmp_path / "wrong.toml").write_text(TINY.replace(right, wrong, 1))
    for name in ("validate", "create-study"):
        done = hpsearch(tmp_path, name, "wrong.toml", code=2)
        assert "wrong.toml" in done.stderr
        assert named in done.stderr
        assert len(done.stderr.splitlines()) == (1 if "condition" not in kind else len(done.stderr.splitlines()))
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.toml"]


def test_names_options_and_places(tmp_path: Path) -> None:
    assert "quickstart" in one_line(tmp_path, "create-study", "quikstart")
    assert "wrkr" in one_line(tmp_path, "wrkr")
    assert "--trails" in one_line(tmp_path, "create-study", "quickstart", "--trails", "3")
    assert "absent.toml" in one_line(tmp_path, "validate", "absent.toml")
    assert "budget.trails" in one_line(tmp_path, "create-study", "quickstart", "--set", "budget.trails=3")
    assert "must be" in one_line(tmp_path, "create-study", "quickstart", "--set", "budget.trials")
    assert "mysql" in one_line(tmp_path, "create-study", "quickstart", "--storage", "mysql://host/db")
    for name in ("worker", "status", "trials", "best"):
        assert "create-study" in one_line(tmp_path, name, "quickstart")
    assert "create-study" in one_line(tmp_path, "dashboard")
    assert "--workers" in one_line(tmp_path, "worker", "quickstart", "--workers", "0")
    assert "--lanes" in inside.one_line(tmp_path, "worker", "quickstart", "--lanes", "²")
    assert "--image-size" in inside.one_line(tmp_path, "transfer", "out", "--data", "stl5", "--image-size", "4097")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["-x", "a/b", "..", "", "a b", "a\nb", "é", "x" * 201])
def test_names_that_no_command_and_no_folder_could_have(name: str, tmp_path: Path) -> None:
    line = inside.one_line(tmp_path, "create-study", "quickstart", "--study-name", name)
    assert line.startswith("hpsearch: --study-name")
    assert "must be" in line
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """They could be recorded, and no page or file could then be written."""
    for arguments in (("create-study", "quickstart", "--set", "description=\udcff"), ("status", "\udcff")):
        assert "\\udcff': is not UTF-8" in inside.one_line(tmp_path, *arguments)
    assert "secret" not in inside.one_line(tmp_path, "list", "--storage", "postgresql://u:secret\udcff@h/d")
    line = inside.one_line(tmp_path, "dashboard", HPSEARCH_DASHBOARD_TOKEN="a secret token \udcff")
    assert "HPSEARCH_DASHBOARD_TOKEN: is not UTF-8" in line
    assert "secret token" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_work(tmp_path: Path) -> None:
    hpsearch(tmp_path, "create-study", "baseline-lenet")
    empty = str(tmp_path / "empty")
    assert "one process per GPU" in one_line(tmp_path, "worker", "baseline-lenet", "--device", "all", "--workers", "2")
    assert "cuda:99" in one_line(tmp_path, "worker", "baseline-lenet", "--device", "cuda:99")
    assert "baseline-lenet" in one_line(tmp_path, "status", "baseline-lene")
    assert "exists already" in one_line(tmp_path, "create-study", "baseline-lenet")
    # No data and no network (a proxy that is not there): one sentence, and not the code that ends a Job of Kubernetes.
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    for workers in ("1", "2"):
        arguments = ("worker", "baseline-lenet", "--workers", workers)
        (line,) = hpsearch(tmp_path, *arguments, code=1, HPSEARCH_DATA=empty, **proxy).stderr.splitlines()
        assert "cifar-100-python" in line
    assert '"running": 0' in hpsearch(tmp_path, "status", "baseline-lenet", "--json").stdout


@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_storage_that_cannot_be_written(where: str, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("this is a text")
    url = "sqlite:///occupied/study.db" if where == "folder" else "sqlite:///occupied"
    assert "occupied" in one_line(tmp_path, "create-study", "quickstart", "--storage", url)
    assert (tmp_path / "occupied").read_text() == "this is a text"


def test_a_storage_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database")
    for url in ("garbage", f"sqlite:///{tmp_path / 'notes.db'}", "postgresql+psycopg://u@127.0.0.1:1/x"):
        assert "storage" in one_line(tmp_path, "list", HPSEARCH_STORAGE=url).lower() or "notes.db" in url
    assert "leave out all from the ? on" in one_line(tmp_path, "list", "--storage", "sqlite:///a.db?timeout=1")


@pytest.mark.parametrize("group", [[], ["launch"], ["storage"]])
def test_no_command_at_all_gives_the_help(group: list[str], tmp_path: Path) -> None:
    """In its lines, not as one."""
    done = inside.hpsearch(tmp_path, *group, code=2)
    assert "Commands:\n" in done.stderr
    assert len(done.stderr.splitlines()) > 5


@pytest.mark.parametrize("arguments", [["doctor"], ["list"], ["create-study", "quickstart"]])
def test_a_folder_that_may_not_be_entered(arguments: list[str], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    for name, place in {
        "HPSEARCH_STORAGE": f"sqlite:///{locked}/a/hpsearch.db",
        "HPSEARCH_HOME": f"{locked}/a",
    }.items():
        done = subprocess.run(
            [*as_plain_user(), *command(*arguments)],
            cwd=tmp_path,
            env=environment(tmp_path) | {name: place},
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert "Traceback" not in said
        assert done.returncode in (1, 2), said
        assert str(locked) in said


def test_a_storage_where_none_belongs_does_not_show_its_password(tmp_path: Path) -> None:
    url = "postgresql+psycopg://me:s3cret@host:5432/db"
    hpsearch(tmp_path, "create-study", "quickstart")
    for arguments in (["status", "some", url], ["status", url], ["storage", "copy", "a", "b", url]):
        said = hpsearch(tmp_path, *arguments, code=2).stderr
        assert "s3cret" not in said
        assert "***@host:5432/db" in said


def test_a_command_that_nearly_is_one(tmp_path: Path) -> None:
    assert "No such command 'wroker'. Did you mean 'worker'?" in one_line(tmp_path, "wroker")
