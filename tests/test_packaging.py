"""The built wheel in an environment of its own: what is in it, and that it works in an empty folder."""

import email
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HELP_SECONDS = 0.3  # of user CPU time

# What a person's shell has at least; nothing of the environment that the tests run in.
CLEAN = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Installed:
    """The wheel, installed in a virtual environment at `place`."""

    place: Path

    def run(self, folder: Path, program: str, *arguments: str, **variables: str) -> str:
        """The output of a program of the environment, run in `folder`; it must succeed and print no error."""
        done = subprocess.run(
            [str(self.place / "bin" / program), *arguments],
            cwd=folder,
            env=CLEAN | {"HOME": str(folder)} | variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert not done.stderr, done.stderr
        return done.stdout

    def hpsearch(self, folder: Path, *arguments: str, **variables: str) -> str:
        return self.run(folder, "hpsearch", *arguments, **variables)


def quietly(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the hatchling that is installed, so that no network is needed."""
    folder = tmp_path_factory.mktemp("dist")
    quietly(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A new environment with the wheel in it, and the dependencies of the running one within its reach.

    borrowed.pth puts their folder behind the new environment's own; .pth files in that folder, an editable hpsearch
    among them, have no effect from there.
    """
    place = tmp_path_factory.mktemp("env")
    venv.create(place, symlinks=True)
    python = str(place / "bin" / "python")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    quietly(sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel))
    folders = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    own = sysconfig.get_path("purelib", vars={"base": str(place)})
    (Path(own) / "borrowed.pth").write_text("\n".join(folders))
    return Installed(place)


def test_what_the_wheel_holds(wheel: Path) -> None:
    """Studies, pages, modules, kernels, the mark of a typed package; no tests, no data, no more of the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    version = PROJECT["version"]
    assert wheel.name == f"hpsearch-{version}-py3-none-any.whl"
    assert {name.split("/")[0] for name in names} == {"hpsearch", f"hpsearch-{version}.dist-info"}
    inside = {name for name in names if name.startswith("hpsearch/")}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hpsearch").rglob("*.py")}
    kernels = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hpsearch").rglob("*.cu")}
    assert "hpsearch/train/update.cu" in kernels
    studies = {f"hpsearch/_studies/{path.name}" for path in (ROOT / "studies").glob("*.toml")}
    assert "hpsearch/_studies/quickstart.toml" in studies
    folders = [ROOT / "hpsearch" / "web" / name for name in ("static", "templates")]
    pages = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert "hpsearch/web/templates/study.html" in pages
    assert inside == modules | kernels | studies | pages | {"hpsearch/py.typed", "hpsearch/report/page.html"}


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        text = archive.read(f"{folder}/METADATA").decode()
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
        assert "MIT" in archive.read(f"{folder}/licenses/LICENSE").decode()
    metadata = email.message_from_string(text)
    assert (metadata["Name"], metadata["Version"]) == ("hpsearch", PROJECT["version"])
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert needed == {"".join(line.split()) for line in PROJECT["dependencies"]}
    assert text.partition("\n\n")[2].strip() == (ROOT / "README.md").read_text().strip()
    assert scripts.split() == ["[console_scripts]", "hpsearch", "=", "hpsearch.cli.main:main"]


def test_it_is_the_wheel_that_is_imported(installed: Installed, tmp_path: Path) -> None:
    code = "import json, hpsearch, torch, sys; print(json.dumps([hpsearch.__file__, hpsearch.__path__[:], sys.path]))"
    file, places, path = json.loads(installed.run(tmp_path, "python", "-c", code))
    assert Path(file).is_relative_to(installed.place)
    assert len(places) == 1
    assert str(ROOT) not in path


def test_quickstart_in_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    """The commands of the README, as a person types them."""
    assert "create-study" in installed.hpsearch(tmp_path, "--help")
    assert installed.hpsearch(tmp_path, "--version").split()[-1] == PROJECT["version"]
    assert "quickstart" in installed.hpsearch(tmp_path, "list")
    assert "quickstart: ok" in installed.hpsearch(tmp_path, "validate", "quickstart")
    assert list(tmp_path.iterdir()) == []
    changes = ["--set", "budget.trials=2", "--set", "training.epochs=1"]
    installed.hpsearch(tmp_path, "create-study", "quickstart", *changes)
    assert "2 of 2 trials ended" in installed.hpsearch(tmp_path, "worker", "quickstart", "--device", "cpu")
    assert len(json.loads(installed.hpsearch(tmp_path, "best", "quickstart", "--json"))["best"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["storage"]


def test_worker_processes_run_the_wheel_too(installed: Installed, tmp_path: Path) -> None:
    """Files in the folder that a person stands in, a checkout of hpsearch among them, must not take its place."""
    (tmp_path / "hpsearch").mkdir()
    (tmp_path / "hpsearch" / "__init__.py").write_text("raise SystemExit('imported from the wrong place')\n")
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the person, not of Python')\n")
    changes = ["--set", "budget.trials=2", "--set", "training.epochs=1", "--set", "data.image_size=16"]
    installed.hpsearch(tmp_path, "create-study", "quickstart", *changes)
    output = installed.hpsearch(tmp_path, "worker", "quickstart", "--device", "cpu", "--workers", "2")
    assert "2 of 2 trials ended" in output


def test_help_is_quick(installed: Installed, tmp_path: Path) -> None:
    """User CPU time, as the wall clock of a busy machine says little, and the best of five, for two reasons.

    The first run reads the modules from the disk and compiles them, and other processes on the cores disturb single
    runs upwards, never downwards: the smallest of a few is the program's own need, and stable from run to run.
    """
    assert min(user_seconds(installed, tmp_path) for _ in range(5)) < HELP_SECONDS


def user_seconds(installed: Installed, folder: Path) -> float:
    """User CPU time of one `hpsearch --help`, the start of the interpreter included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    installed.hpsearch(folder, "--help")
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def test_help_imports_neither_torch_nor_optuna(installed: Installed, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom hpsearch.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print('imported:', *{name.partition('.')[0] for name in sys.modules})"
    )
    imported = installed.run(tmp_path, "python", "-c", code).rpartition("imported:")[2].split()
    assert "hpsearch" in imported
    assert not {"torch", "optuna", "numpy", "sqlalchemy", "pydantic", "rich"} & set(imported)


def completions(installed: Installed, folder: Path, words: str, **variables: str) -> set[str]:
    """What the shell offers for the last word of a line."""
    asked: Mapping[str, str] = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    lines = installed.hpsearch(folder, _HPSEARCH_COMPLETE="bash_complete", **asked, **variables).splitlines()
    return {line.partition(",")[2] for line in lines if line.startswith("plain,")}


def test_shell_completion(installed: Installed, tmp_path: Path) -> None:
    assert "_HPSEARCH_COMPLETE=zsh_complete" in installed.hpsearch(tmp_path, _HPSEARCH_COMPLETE="zsh_source")
    assert {"create-study", "worker", "best"} <= completions(installed, tmp_path, "hpsearch ")
    assert completions(installed, tmp_path, "hpsearch create-study le") == {"lenet", "lenet-bn", "lenet-long"}
    assert completions(installed, tmp_path, "hpsearch worker ") == set()
    assert list(tmp_path.iterdir()) == []
    installed.hpsearch(tmp_path, "create-study", "baseline-2lp", "--study-name", "mine")
    for command in ("worker", "status", "trials", "best"):
        assert completions(installed, tmp_path, f"hpsearch {command} ") == {"mine"}
