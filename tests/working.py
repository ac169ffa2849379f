"""Running a worker in the process of a test, and letting it fail."""

from typing import Any

import pytest

from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import StudySpec, parse
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.train.program import Program
from hpsearch.worker import run
from tests.studies import TINY


def tiny(text: str = TINY, **replaced: str) -> StudySpec:
    """The tiny study, with lines replaced."""
    for old, new in replaced.items():
        line = next(line for line in text.splitlines() if line.startswith(old))
        text = text.replace(line, new)
    return parse(text, "tiny.toml")


def work(database: Database, spec: StudySpec, settings: Settings, **limits: Any) -> list[Any]:
    """Create the study if it is new and run one worker to its end; the events."""
    if not database.storage.get_all_studies():
        create_study(database, spec, "tiny")
    return list(run(database, "tiny", settings, Interruption(), **limits))


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the first epoch that is trained raise an error."""
    once = iter([True])
    original = Program.train_block

    def sometimes(program: Program, *block: Any) -> None:
        if next(once, False):
            raise error
        original(program, *block)

    monkeypatch.setattr(Program, "train_block", sometimes)


def curve(settings: Settings) -> dict[int, float]:
    """The curve of the study's first trial when nothing disturbs it."""
    with create(f"sqlite:///{settings.home / 'undisturbed.db'}") as database:
        work(database, tiny(), settings, max_trials_here=1)
        return load_study(database, "tiny").optuna_study.trials[0].intermediate_values
