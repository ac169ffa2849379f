"""Studies in the database: created whole or not at all, and counted without reading trials."""

from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import NullPool, select

from hpsearch.errors import StorageError
from hpsearch.spec import parse
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study, progress, ranked, standing, study_names
from hpsearch.storage.tables import METADATA
from tests.storage.sandbox import Sandbox
from tests.studies import TINY

SPEC = parse(TINY, "tiny.toml")


@pytest.fixture
def database(storage_url: str) -> Iterator[Database]:
    """An empty open database."""
    with create(storage_url) as database:
        yield database


def test_a_study_comes_back_as_it_was(database: Database) -> None:
    create_study(database, SPEC, "other name")
    study = load_study(database, "other name")
    assert study.spec == SPEC
    assert study.optuna_study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.optuna_study.metric_names == ["validation_accuracy"]
    (waiting,) = study.optuna_study.trials
    assert waiting.state == TrialState.WAITING
    assert waiting.system_attrs["fixed_params"] == {"learning_rate": 0.01, "optimizer": "sgd", "momentum": 0.9}


def test_a_taken_name_changes_nothing(database: Database) -> None:
    create_study(database, SPEC, "tiny")
    with pytest.raises(StorageError, match="exists already"):
        create_study(database, SPEC, "tiny")
    assert study_names(database) == ["tiny"]
    assert len(load_study(database, "tiny").optuna_study.trials) == 1


def test_a_study_that_optuna_deletes_leaves_nothing_to_the_next_one(sandbox: Sandbox) -> None:
    as_optuna = optuna.storages.RDBStorage(sandbox.url, engine_kwargs={"poolclass": NullPool})
    optuna.delete_study(study_name="tiny", storage=as_optuna)
    with sandbox.database.engine.connect() as connection:
        left = {name: connection.execute(select(table)).all() for name, table in METADATA.tables.items()}
    assert {name: rows for name, rows in left.items() if rows} == {}
    create_study(sandbox.database, SPEC, "tiny")  # on SQLite with the same numbers for study and trials
    again = progress(sandbox.database, load_study(sandbox.database, "tiny"))
    assert (again.finished, again.running, again.max_trials) == (0, 0, SPEC.budget.trials)


@pytest.mark.parametrize("count", [progress, standing])
def test_a_study_deleted_since_it_was_loaded(count: Callable[..., Any], database: Database) -> None:
    create_study(database, SPEC, "tiny")
    study = load_study(database, "tiny")
    optuna.delete_study(study_name="tiny", storage=database.storage)
    with pytest.raises(StorageError, match="tiny has been deleted"):
        count(database, study)


def test_unknown_and_foreign_studies(database: Database) -> None:
    create_study(database, SPEC, "tiny")
    with pytest.raises(StorageError, match="did you mean 'tiny'"):
        load_study(database, "tinyy")
    optuna.create_study(study_name="foreign", storage=database.storage)
    with pytest.raises(StorageError, match="not created by hpsearch"):
        load_study(database, "foreign")


def test_progress_and_rank(database: Database) -> None:
    create_study(database, SPEC, "tiny")
    study = load_study(database, "tiny")
    assert progress(database, study).best_value is None
    asked = [study.optuna_study.ask() for _ in range(5)]
    for trial, value in zip(asked[:3], (0.25, 0.75, 0.75), strict=True):
        study.optuna_study.tell(trial, value)
    asked[3].report(0.9, 1)
    study.optuna_study.tell(asked[3], state=TrialState.PRUNED)  # never the best, whatever its value
    now = progress(database, study)
    assert (now.complete, now.pruned, now.failed, now.running, now.waiting) == (3, 1, 0, 1, 0)
    assert now.finished == 4
    assert (now.best_number, now.best_value) == (1, 0.75)
    assert [trial.number for trial in ranked(study)] == [1, 2, 0]
