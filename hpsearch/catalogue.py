"""Finds, lists and loads by name: studies, and everything that the tables and installed packages offer."""

import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from hpsearch import spec
from hpsearch.data import DATASETS
from hpsearch.data.names import check_argument
from hpsearch.errors import DataError, StudyFileError, UsageError
from hpsearch.models import MODELS
from hpsearch.search import PRUNERS, SAMPLERS
from hpsearch.space import show, suggestion
from hpsearch.spec import StudySpec
from hpsearch.train import AUGMENTATIONS, OPTIMIZERS, SCHEDULES

# group -> (what one entry is called, the built-in ones)
TABLES: dict[str, tuple[str, Mapping[str, str]]] = {
    "hpsearch.models": ("model", MODELS),
    "hpsearch.data": ("data set", DATASETS),
    "hpsearch.optimizers": ("optimizer", OPTIMIZERS),
    "hpsearch.schedules": ("schedule", SCHEDULES),
    "hpsearch.augmentations": ("augmentation", AUGMENTATIONS),
    "hpsearch.samplers": ("sampler", SAMPLERS),
    "hpsearch.pruners": ("pruner", PRUNERS),
}

EXTENSIBLE = ("hpsearch.models", "hpsearch.data")  # groups that installed packages add to, as entry points

# where a study names an entry of a group: a section's `name`, or a hyperparameter that is fixed or searched
SECTION_GROUPS = {
    "model": "hpsearch.models",
    "data": "hpsearch.data",
    "sampler": "hpsearch.samplers",
    "pruner": "hpsearch.pruners",
}
HYPERPARAMETER_GROUPS = {
    "optimizer": "hpsearch.optimizers",
    "scheduler": "hpsearch.schedules",
    "augmentation": "hpsearch.augmentations",
}

PACKAGE = Path(__file__).parent
STUDY_FOLDERS = (PACKAGE / "_studies", PACKAGE.parent / "studies")  # in a wheel; beside an editable package


# Names and what they stand for


def names(group: str) -> tuple[str, ...]:
    """All names of a group: built-in ones, then those of installed packages. Nothing is imported."""
    return tuple(dict.fromkeys((*TABLES[group][1], *(entry.name for entry in added(group)))))


def added(group: str) -> tuple[EntryPoint, ...]:
    """What installed packages add to a group; a built-in name cannot be taken over."""
    if group not in EXTENSIBLE:
        return ()
    return tuple(entry for entry in entry_points(group=group) if entry.name not in TABLES[group][1])


def load(group: str, name: str) -> Any:
    """The object that a name stands for. Imports its module, and no other: a name outside the group is refused.

    Raises UsageError if no table holds the name, or if an installed package cannot be imported.
    """
    if target := TABLES[group][1].get(name):
        return pkgutil.resolve_name(target)
    for entry in added(group):
        if entry.name == name:
            return load_entry(group, entry)
    raise UsageError(f"{TABLES[group][0]} {show(name)}: is not known{suggestion(name, names(group))}")


def load_entry(group: str, entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:
        package = entry.dist.name if entry.dist else "an installed package"
        raise UsageError(
            f"{TABLES[group][0]} {show(entry.name)}: cannot be loaded from {entry.value} of {package} "
            f"({type(error).__name__}: {' '.join(str(error).split())}); repair or uninstall that package"
        ) from error


def check_names(study: StudySpec | Mapping[str, Any]) -> list[str]:
    """Names in a study, or in the tables of a study file, that no table holds; one sentence each."""
    tables = study.to_tables() if isinstance(study, StudySpec) else study
    found = []
    for group, key, name in (*named(tables), *named_by_candidates(tables)):
        if (name.partition(":")[0] if group == "hpsearch.data" else name) not in names(group):
            found.append(f"{key} = {show(name)}: no such {TABLES[group][0]}{suggestion(name, names(group))}")
        elif group == "hpsearch.data":
            found += _problem_after_the_colon(name)
    return found


def _problem_after_the_colon(name: str) -> list[str]:
    try:
        check_argument(name)
    except DataError as error:
        return [str(error)]
    return []


def named(tables: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every (group, key, name) in the tables of a study file; what has another form is skipped."""
    for section, group in SECTION_GROUPS.items():
        name = table_of(tables, section).get("name")
        if isinstance(name, str):
            yield group, f"{section}.name", name
    for key, group in HYPERPARAMETER_GROUPS.items():
        fixed, searched = table_of(tables, "training").get(key), table_of(tables, "space").get(key)
        if isinstance(fixed, str):
            yield group, f"training.{key}", fixed
        choices = searched.get("choices") if isinstance(searched, Mapping) else searched
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, str):
                yield group, f"space.{key}", choice


def named_by_candidates(tables: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Every (group, key, name) in the [[candidate]] configurations."""
    candidates = tables.get("candidate")
    for number, table in enumerate(candidates if isinstance(candidates, list) else (), start=1):
        for key, group in HYPERPARAMETER_GROUPS.items():
            if isinstance(table, Mapping) and isinstance(table.get(key), str):
                yield group, f"candidate[{number}].{key}", table[key]


def table_of(tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = tables.get(key)
    return table if isinstance(table, Mapping) else {}


# Studies


def study_names() -> tuple[str, ...]:
    """The studies that come with hpsearch."""
    return tuple(sorted({path.stem for folder in STUDY_FOLDERS for path in folder.glob("*.toml")}))


def find(name_or_path: str) -> tuple[str, str]:
    """The text of a study file, and where it is: a path that ends in .toml or exists, else the name of a study.

    Raises UsageError if there is no such file or study, or if it is not UTF-8 text.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and not os.path.isfile(name_or_path):  # Path.is_file raises for a name that is too long
        places = (folder / f"{name_or_path}.toml" for folder in STUDY_FOLDERS if name_or_path in study_names())
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            advice = suggestion(name_or_path, study_names())
            raise UsageError(f"study {show(name_or_path)}: is neither a file nor a study of hpsearch{advice}")
        path = found
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)  # some editors begin a file with a mark
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file; studies of hpsearch: {', '.join(study_names())}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a TOML file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read(name_or_path: str, overrides: Sequence[str] = ()) -> StudySpec:
    """A study by name or path, with `--set` overrides. Raises UsageError, for a file with all of its mistakes."""
    text, source = find(name_or_path)
    try:
        return read_text(text, source, overrides)
    except RecursionError as error:
        raise StudyFileError([f"{source}: is nested too deeply, in itself or by --set"]) from error


def read_text(text: str, source: str, overrides: Sequence[str]) -> StudySpec:
    """The study that a text says; see `read`."""
    tables = spec.with_overrides(spec.read_tables(text, source), overrides)
    mistakes: list[str] = []
    study = None
    try:
        study = spec.build(tables, source)
    except StudyFileError as error:
        mistakes += error.mistakes
    mistakes += [f"{source}: {mistake}" for mistake in check_names(tables)]
    if mistakes or study is None:
        raise StudyFileError(mistakes)
    return study
