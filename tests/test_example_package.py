"""One's own network and data: the example package as a person uses it, and what happens when it is not there."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hpsearch.storage.open import connect
from hpsearch.storage.studies import RECIPE_KEY, SPEC_KEY, load_study
from tests.cli.running import environment, hpsearch

EXAMPLE = Path(__file__).parent / "example_package"
BUILT_IN = {"model": "lenet", "data": "digits"}

# A module that leaves a trace if anybody imports it, and whose attribute leaves one if anybody calls it.
PLANTED = "from pathlib import Path\nPath('trace').touch()\ndef run(*_, **__): Path('trace').touch()\n"

# A package whose modules cannot be imported, and an error of several lines, as those of a missing library are.
BROKEN = "[hpsearch.models]\nbroken = broken:Net\n[hpsearch.data]\nbroken = broken:read_train\n"
BROKEN_CODE = "raise ImportError('libfancy.so.3: not found\\n(needed by broken)')\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder that the example package is installed in, for PYTHONPATH."""
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(EXAMPLE)]
    variables = environment(site) | {"PYTHONWARNINGS": ""}  # pip is not ours to judge
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(site)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the example's study file and nothing else."""
    place = tmp_path / "work"
    place.mkdir()
    shutil.copy(EXAMPLE / "stripes.toml", place)
    return place


@pytest.fixture(scope="module")
def created(installed: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example's study has been created, to be copied."""
    place = tmp_path_factory.mktemp("created")
    hpsearch(place, "create-study", str(EXAMPLE / "stripes.toml"), PYTHONPATH=installed)
    return place


def package(site: Path, entry_points: str, **modules: str) -> str:
    """An installed package of the given entry points and modules; its folder, for PYTHONPATH."""
    info = site / "broken_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, code in modules.items():
        (site / f"{name}.py").write_text(code)
    return str(site)


@contextmanager
def study(folder: Path) -> Iterator[optuna.Study]:
    """The study as the database holds it."""
    with connect(f"sqlite:///{folder / 'storage' / 'hpsearch.db'}") as database:
        yield load_study(database, "stripes").optuna_study


def refused(folder: Path, **variables: str) -> str:
    """The one line of a worker that must not begin; no trial was taken."""
    done = hpsearch(folder, "worker", "stripes", code=2, **variables)
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) == 1, lines
    with study(folder) as recorded:
        assert [trial.state for trial in recorded.trials] == [TrialState.WAITING]  # the one of [[first]]
    return lines[0]


def test_a_study_with_ones_own_network_and_data(folder: Path, installed: str) -> None:
    assert "tinyconv on stripes" in hpsearch(folder, "validate", "stripes.toml", PYTHONPATH=installed).stdout
    hpsearch(folder, "create-study", "stripes.toml", PYTHONPATH=installed)
    output = hpsearch(folder, "worker", "stripes", "--device", "cpu", PYTHONPATH=installed).stdout
    assert "4 of 4 trials ended" in output
    with study(folder) as recorded:
        assert [trial.state for trial in recorded.trials] == [TrialState.COMPLETE] * 4
        assert recorded.trials[0].value > 0.9  # the known good recipe, tried first
        assert {trial.user_attrs[RECIPE_KEY]["model"] for trial in recorded.trials} == {"tinyconv"}


@pytest.mark.parametrize("command", ["validate", "create-study"])
def test_a_study_file_without_the_package(folder: Path, command: str) -> None:
    """One line for each of the two names, and nothing created."""
    done = hpsearch(folder, command, "stripes.toml", code=2)
    assert done.stdout == ""
    model, data = done.stderr.splitlines()
    assert 'stripes.toml: model.name = "tinyconv": no such model' in model
    assert 'stripes.toml: data.name = "stripes": no such data set' in data
    assert [path.name for path in folder.iterdir()] == ["stripes.toml"]


@pytest.mark.parametrize(("gone", "named"), [("model", "tinyconv"), ("data", "stripes")])
def test_a_worker_without_the_package(folder: Path, installed: str, gone: str, named: str) -> None:
    """As on a second machine on which nobody has installed it; with the package, the same study goes on."""
    others = [f"--set={section}.name={name}" for section, name in BUILT_IN.items() if section != gone]
    others += ["--set=data.image_size=32", "--set=budget.trials=1"]
    hpsearch(folder, "create-study", "stripes.toml", *others, PYTHONPATH=installed)
    assert named in refused(folder)
    hpsearch(folder, "worker", "stripes", PYTHONPATH=installed)
    with study(folder) as recorded:
        assert [trial.state for trial in recorded.trials] == [TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("section", "name"),
    [("model", "planted:run"), ("model", "os:system"), ("data", "planted:run"), ("sampler", "planted:run"),
     ("pruner", "planted:run")],
)  # fmt: skip
def test_a_name_in_the_database_is_not_imported(
    created: Path, installed: str, tmp_path: Path, section: str, name: str
) -> None:
    """Who can write to the database can choose among what is installed, and run nothing else."""
    folder = shutil.copytree(created, tmp_path / "work")
    (folder / "planted.py").write_text(PLANTED)
    with study(folder) as recorded:
        tables = json.loads(recorded.user_attrs[SPEC_KEY])
        tables[section]["name"] = name
        recorded.set_user_attr(SPEC_KEY, json.dumps(tables))
    assert name in refused(folder, PYTHONPATH=f"{installed}:{folder}")
    assert not (folder / "trace").exists()


@pytest.mark.parametrize("section", ["model", "data"])
def test_an_entry_point_that_cannot_be_imported(folder: Path, tmp_path: Path, section: str) -> None:
    site = package(tmp_path / "site", BROKEN, broken=BROKEN_CODE)
    names = [f"--set={table}.name={'broken' if table == section else name}" for table, name in BUILT_IN.items()]
    hpsearch(folder, "create-study", "stripes.toml", *names, PYTHONPATH=site)  # names are all that is read here
    line = refused(folder, PYTHONPATH=site)
    for part in ("broken:", "broken-package", "ImportError: libfancy.so.3: not found (needed by broken)"):
        assert part in line
