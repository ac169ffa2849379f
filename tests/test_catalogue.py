"""Names: what the tables hold, what installed packages add, and how studies are found."""

import importlib
import inspect
import sys
from pathlib import Path

import pytest

from hpsearch import catalogue, sections
from hpsearch.errors import StudyFileError, UsageError

STUDY = """
name = "mine"
seeds = 2
[model]
name = "lenet"
[data]
name = "digits"
[training]
epochs = 1
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that adds a network, a broken one, and one that would take over a built-in name."""
    info = tmp_path / "toy_networks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-networks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hpsearch.models]\ntoy = toy_networks:Toy\nbroken = toy_absent:Toy\nlenet = toy_networks:Impostor\n"
        "[hpsearch.samplers]\nmine = toy_networks:Toy\n"
    )
    (tmp_path / "toy_networks.py").write_text("class Toy: ...\nclass Impostor: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("toy_networks", None)


@pytest.mark.parametrize("group", catalogue.TABLES)
def test_every_entry_loads(group):
    for name in catalogue.TABLES[group][1]:
        assert catalogue.load(group, name) is not None


@pytest.mark.parametrize(
    ("group", "options"),
    [("hpsearch.samplers", sections.SAMPLER_OPTIONS), ("hpsearch.pruners", sections.PRUNER_OPTIONS)],
)
def test_options_are_the_arguments(group, options):
    """`seed` is an option of every sampler that draws: from the study's seed if the section does not set it."""
    assert options.keys() == catalogue.TABLES[group][1].keys()
    for name, taken in options.items():
        arguments = inspect.signature(catalogue.load(group, name)).parameters
        keywords = [argument.name for argument in arguments.values() if argument.kind is argument.KEYWORD_ONLY]
        seed = ["seed"] if group == "hpsearch.samplers" else []
        assert list(arguments) == ["spec", *seed, *keywords]
        assert sorted(taken) == sorted([*keywords, *(seed if name != "grid" else [])])


def test_a_package_adds_names_without_being_imported(package):
    assert "toy" in catalogue.names("hpsearch.models")
    assert catalogue.names("hpsearch.models").count("lenet") == 1
    assert "mine" not in catalogue.names("hpsearch.samplers")
    assert "toy_networks" not in sys.modules
    assert catalogue.load("hpsearch.models", "toy").__module__ == "toy_networks"


def test_a_package_cannot_take_over_a_name(package):
    assert catalogue.load("hpsearch.models", "lenet").__module__ != "toy_networks"


def test_a_broken_package_is_named(package):
    with pytest.raises(UsageError, match="toy_absent:Toy of toy-networks"):
        catalogue.load("hpsearch.models", "broken")


@pytest.mark.parametrize("name", ["lenett", "os:system", "hpsearch.models.lenet:LeNet5", ""])
def test_only_listed_names_are_loaded(name):
    with pytest.raises(UsageError, match="is not known"):
        catalogue.load("hpsearch.models", name)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.name=lennet", 'model.name = "lennet": no such model; did you mean lenet?'),
        ("data.name=cifar", 'data.name = "cifar": no such data set; did you mean cifar100?'),
        ("sampler.name=tpo", 'sampler.name = "tpo": no such sampler; did you mean tpe?'),
        ("pruner.name=asah", 'pruner.name = "asah": no such pruner; did you mean asha?'),
        ("training.optimizer=adamm", 'training.optimizer = "adamm": no such optimizer; did you mean adam?'),
        ("training.scheduler=step", 'training.scheduler = "step": no such schedule'),
        ("training.augmentation=flip", 'training.augmentation = "flip": no such augmentation'),
    ],
)
def test_unknown_names(tmp_path, override, expected):
    mistake = mistake_of(tmp_path, override)
    assert mistake.startswith(expected)
    assert "(known: " in mistake


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits:5-20", "'digits:5-20': after the colon comes a range of two or more classes"),
        ("digits:", "'digits:': after the colon comes a range"),
        ("cifar100:5", "'cifar100:5': cifar100 takes nothing after the colon"),
        ("folder:", "'folder:': a colon and a path are missing"),
    ],
)
def test_what_cannot_follow_the_colon_of_a_data_set(tmp_path, name, expected):
    assert mistake_of(tmp_path, f"data.name={name}").startswith(f"data.name = {expected}")


def mistake_of(folder, override):
    """The one mistake that an override makes of the study, without the file's name, which it begins with."""
    file = folder / "mine.toml"
    file.write_text(STUDY)
    with pytest.raises(StudyFileError) as caught:
        catalogue.read(str(file), [override])
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{file}: ")
    return mistake.removeprefix(f"{file}: ")


def test_names_and_form_are_checked_together(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(STUDY.replace("seeds = 2", "[space]\noptimizer = ['sgd', 'smd']\n[budget]\ntrials = 0"))
    with pytest.raises(StudyFileError) as caught:
        catalogue.read(str(file), ["model.name=lennet"])
    assert len(caught.value.mistakes) == 3


@pytest.mark.parametrize("name", ["folder:/pictures", "folder:C:/pictures", "digits:0-4"])
def test_data_names_have_a_part_of_their_own(tmp_path, name):
    file = tmp_path / "mine.toml"
    file.write_text(STUDY)
    assert catalogue.read(str(file), [f"data.name={name}"]).data.name == name


def test_find_by_name_and_by_path(tmp_path, monkeypatch):
    text, source = catalogue.find("quickstart")
    assert 'name = "quickstart"' in text
    assert source.endswith("quickstart.toml")
    monkeypatch.chdir(tmp_path)
    Path("without_suffix").write_text(STUDY)
    assert catalogue.find("without_suffix") == (STUDY, "without_suffix")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quickstrat", "did you mean quickstart"),
        ("../pyproject", "neither a file nor a study"),
        ("x" * 5000, "neither a file nor a study"),
        ("", "neither a file nor a study"),
        ("absent.toml", "there is no such file"),
        ("folder.toml", "cannot be read"),
        ("latin.toml", "not UTF-8"),
    ],
)
def test_what_cannot_be_found(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    Path("folder.toml").mkdir()
    Path("latin.toml").write_bytes("# Fürth".encode("latin-1"))
    with pytest.raises(UsageError, match=message) as caught:
        catalogue.find(name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "override", "message"),
    [
        ("x = " + "[" * 5000, "", "nested too deeply"),
        ("x." * 5000 + "x = 1", "", "nested too deeply"),
        ("", "training.epochs=" + "[" * 5000, "nested too deeply"),
        ("", "x." * 5000 + "x=1", "nested too deeply"),
        ("x = " + "1" * 5000, "", "is not valid TOML"),
        ("x = 0x" + "f" * 5000, "", "64 bits"),
    ],
)
def test_what_python_does_not_read(tmp_path, line, override, message):
    (tmp_path / "mine.toml").write_text(f"{line}\n{STUDY}")
    with pytest.raises(StudyFileError, match=message) as caught:
        catalogue.read(str(tmp_path / "mine.toml"), [override] if override else [])
    assert len(str(caught.value).splitlines()) == 1


def test_studies_of_a_wheel_come_first(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(STUDY)
    monkeypatch.setattr(catalogue, "STUDY_FOLDERS", (tmp_path, tmp_path / "absent"))
    importlib.invalidate_caches()
    assert catalogue.study_names() == ("mine",)
    assert catalogue.read("mine").name == "mine"
