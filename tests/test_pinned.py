"""A study's trials train on one set of images, whoever trains them; the final test and the export are of those."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hpsearch import confirm, worker
from hpsearch.errors import DataError
from hpsearch.events import Event
from hpsearch.export import export
from hpsearch.final_test import final_test
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage.open import Database, create
from hpsearch.storage.openings import openings
from hpsearch.storage.pinned import pin_data
from hpsearch.storage.studies import create_study, load_study
from hpsearch.worker import run
from tests.chain import SMALL, Chain, make, silent
from tests.data.test_folder import picture


@pytest.fixture
def changed(storage_url: str, tmp_path: Path) -> Iterator[Chain]:
    """A search on pictures of a folder, and its confirmation; one of the pictures has changed since."""
    folder = tmp_path / "images"
    for number in range(12):
        picture(folder / "train/cat" / f"{number:02}.png", (20 * number, 0, 0))
        picture(folder / "train/ant" / f"{number:02}.png", (0, 20 * number, 0))
    changes = [("digits:0-4", f"folder:{folder}"), ("epochs = 3", "epochs = 1"), ("trials = 4", "trials = 2")]
    with create(storage_url) as database:
        chain = make(database, tmp_path / "home", changes)
        picture(folder / "train/cat/07.png", (1, 2, 3))
        yield chain


def test_nothing_follows_on_other_images(changed: Chain, tmp_path: Path) -> None:
    refusal = r"study small.*: folder:.* here has other images \(fingerprint .*\) than those that the trials of small "
    for study in ("small", "small-confirm"):
        with pytest.raises(DataError, match=refusal):
            changed.work(study)
    with pytest.raises(DataError, match=refusal):
        final_test(changed.database, changed.search, changed.settings, None, silent)
    assert openings(changed.database, changed.search) == []
    with pytest.raises(DataError, match=refusal):
        export(changed.database, changed.search, 1, tmp_path / "export", changed.settings, silent)
    assert not (tmp_path / "export").exists()


def test_images_may_change_before_the_first_trial(database: Database) -> None:
    create_study(database, parse(SMALL, "small.toml"), "small")
    for fingerprint in ("a" * 64, "b" * 64, "b" * 64):
        pin_data(database, load_study(database, "small"), fingerprint)


def test_of_two_workers_that_begin_at_once_on_other_images_one_trains(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one looks before this one has taken a trial, and finds that nothing has begun."""
    create_study(database, parse(SMALL, "small.toml"), "small")
    study = load_study(database, "small")
    try_models = worker.try_models

    def overtaken(*arguments: Any) -> None:
        try_models(*arguments)
        pin_data(database, study, "b" * 64)

    monkeypatch.setattr("hpsearch.worker.try_models", overtaken)
    events: list[Event] = []
    with pytest.raises(DataError, match="has other images"):
        events.extend(run(database, "small", settings, Interruption()))
    pin_data(database, study, "b" * 64)
    assert not any(trial.intermediate_values for trial in study.optuna_study.trials)
    assert not study.optuna_study.get_trials(states=(TrialState.RUNNING,))


def test_a_confirmation_begins_on_the_images_of_the_search(database: Database, settings: Settings) -> None:
    text = SMALL.replace("epochs = 3", "epochs = 1").replace("trials = 4", "trials = 2")
    create_study(database, parse(text, "small.toml"), "small")
    chain = Chain(database, settings)
    chain.work("small")
    confirm.create(database, chain.search, 2, 2)
    with pytest.raises(DataError, match=r"study small-confirm: .* that the trials of small train on"):
        pin_data(database, chain.confirmation, "a" * 64)
