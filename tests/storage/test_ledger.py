"""The ledger: exact budgets under racing, and rows that Optuna's public API reads back as its own."""

import math
import threading
from collections.abc import Iterator

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from hpsearch.errors import StorageError
from hpsearch.spec import parse
from hpsearch.storage import ledger
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import LoadedStudy, create_study, load_study, progress
from hpsearch.storage.tables import METRICS
from tests.studies import TINY

MEASURED = dict.fromkeys(METRICS, 0.5)


@pytest.fixture
def database(storage_url: str) -> Iterator[Database]:
    """An open database with the study `tiny`."""
    with create(storage_url) as database:
        create_study(database, parse(TINY, "tiny.toml"), "tiny")
        yield database


@pytest.fixture
def study(database: Database) -> LoadedStudy:
    """The study `tiny`, whose first trial waits with known good values."""
    return load_study(database, "tiny")


def test_eight_threads_start_exactly_the_budget(database: Database, study: LoadedStudy) -> None:
    started: list[int] = []

    def take_all() -> None:
        while (trial_id := ledger.create_trial(database, study.study_id, 20)) is not None:
            started.append(trial_id)

    threads = [threading.Thread(target=take_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == len(set(started)) == 20
    assert [trial.number for trial in study.optuna_study.trials] == list(range(20))
    assert ledger.create_trial(database, study.study_id, 20) is None
    assert ledger.create_trial(database, study.study_id, 21) is not None


def test_a_waiting_trial_goes_first(database: Database, study: LoadedStudy) -> None:
    trial_id = ledger.create_trial(database, study.study_id, 5)
    trial = optuna.Trial(study.optuna_study, trial_id)
    assert trial.number == 0
    assert trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True) == 0.01


def test_a_new_trial_is_what_optuna_would_make(database: Database, study: LoadedStudy) -> None:
    ledger.create_trial(database, study.study_id, 5)  # the waiting one
    ledger.create_trial(database, study.study_id, 5)
    study.optuna_study.ask()
    ours, theirs = study.optuna_study.trials[1:]
    assert (ours.number, theirs.number) == (1, 2)
    assert abs((theirs.datetime_start - ours.datetime_start).total_seconds()) < 60
    for name in ("state", "params", "distributions", "values", "user_attrs", "system_attrs", "intermediate_values"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("value", [0.25, math.inf, -math.inf, math.nan, 1e-300])
def test_a_report_reads_back_as_optunas_own(database: Database, study: LoadedStudy, value: float) -> None:
    ours, theirs = (optuna.Trial(study.optuna_study, _start(database, study)) for _ in range(2))
    for epoch in (1, 2):
        assert ledger.report(database, ours._trial_id, epoch, value, MEASURED)
        theirs.report(value, epoch)
    first, second = (study.optuna_study.trials[trial.number].intermediate_values for trial in (ours, theirs))
    assert repr(first) == repr(second)
    assert [row["epoch"] for row in ledger.epochs(database, ours._trial_id)] == [1, 2]


def test_an_epoch_reported_again_replaces_itself(database: Database, study: LoadedStudy) -> None:
    trial_id = _start(database, study)
    for epoch, value in ((1, 0.1), (2, 0.2), (1, 0.3)):
        ledger.report(database, trial_id, epoch, value, MEASURED | {"training_loss": value})
    assert study.optuna_study.trials[0].intermediate_values == {1: 0.3}
    assert [(row["epoch"], row["training_loss"]) for row in ledger.epochs(database, trial_id)] == [(1, 0.3)]


def test_metrics_that_are_not_finite_are_null(database: Database, study: LoadedStudy) -> None:
    trial_id = _start(database, study)
    ledger.report(database, trial_id, 1, math.nan, MEASURED | {"training_loss": math.nan, "gradient_norm": math.inf})
    row = ledger.epochs(database, trial_id)[0]
    assert row["training_loss"] is row["gradient_norm"] is None
    assert row["validation_loss"] == 0.5


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_an_ended_trial_is_never_touched(database: Database, study: LoadedStudy, state: TrialState) -> None:
    trial_id = _start(database, study)
    study.optuna_study.tell(0, 0.5 if state == TrialState.COMPLETE else None, state=state)
    before = study.optuna_study.trials[0]
    assert not ledger.report(database, trial_id, 1, 0.1, MEASURED)
    assert not ledger.release(database, trial_id)
    assert study.optuna_study.trials[0] == before
    assert ledger.epochs(database, trial_id) == []


def test_a_released_trial_is_taken_again_with_its_parameters(database: Database, study: LoadedStudy) -> None:
    trial_id = _start(database, study)
    optuna.Trial(study.optuna_study, trial_id).suggest_float("x", 0, 1)
    params = study.optuna_study.trials[0].params
    ledger.report(database, trial_id, 1, 0.1, MEASURED)
    assert ledger.release(database, trial_id)
    assert progress(database, study).started == 0
    trial = study.optuna_study.trials[0]
    assert (trial.state, trial.intermediate_values, trial.params) == (TrialState.WAITING, {}, params)
    assert ledger.epochs(database, trial_id) == []
    assert _start(database, study) == trial_id


def test_a_deleted_study_stops_the_worker(database: Database, study: LoadedStudy) -> None:
    trial_id = _start(database, study)
    ledger.report(database, trial_id, 1, 0.1, MEASURED)
    optuna.delete_study(study_name="tiny", storage=database.storage)
    with pytest.raises(StorageError, match="has been deleted"):
        ledger.create_trial(database, study.study_id, 5)
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM hpsearch_epochs")) == 0


def _start(database: Database, study: LoadedStudy) -> int:
    trial_id = ledger.create_trial(database, study.study_id, 100)
    assert trial_id is not None
    return trial_id
