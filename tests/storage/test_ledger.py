"""The ledger: exact budgets under racing, and rows that Optuna's public API reads back as its own."""

import math
import threading
import time
from collections.abc import Iterator

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import text

from hpsearch.errors import LeaseLost, StorageError
from hpsearch.spec import parse
from hpsearch.storage import ledger
from hpsearch.storage.leases import Lease
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


def take(database: Database, study: LoadedStudy, owner: str = "me", seconds: float = 60.0) -> Lease:
    """One more trial, whatever the budget."""
    lease = ledger.take_trial(database, study.study_id, 100, owner, seconds)
    assert lease is not None
    return lease


def test_eight_threads_start_exactly_the_budget(database: Database, study: LoadedStudy) -> None:
    started: list[int] = []

    def take_all(owner: str) -> None:
        while (lease := ledger.take_trial(database, study.study_id, 20, owner, 60.0)) is not None:
            started.append(lease.trial_id)

    threads = [threading.Thread(target=take_all, args=(f"thread {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == len(set(started)) == 20
    assert [trial.number for trial in study.optuna_study.trials] == list(range(20))
    assert ledger.take_trial(database, study.study_id, 20, "late", 60.0) is None
    assert ledger.take_trial(database, study.study_id, 21, "late", 60.0) is not None


def test_a_waiting_trial_goes_first(database: Database, study: LoadedStudy) -> None:
    trial = optuna.Trial(study.optuna_study, take(database, study).trial_id)
    assert trial.number == 0
    assert trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True) == 0.01


def test_a_new_trial_is_what_optuna_would_make(database: Database, study: LoadedStudy) -> None:
    take(database, study)  # the waiting one
    take(database, study)
    study.optuna_study.ask()
    ours, theirs = study.optuna_study.trials[1:]
    assert (ours.number, theirs.number) == (1, 2)
    assert abs((theirs.datetime_start - ours.datetime_start).total_seconds()) < 60
    for name in ("state", "params", "distributions", "values", "user_attrs", "system_attrs", "intermediate_values"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_parameters_read_back_as_optunas_own(database: Database, study: LoadedStudy) -> None:
    distributions = {
        "a": FloatDistribution(1e-5, 1.0, log=True),
        "b": IntDistribution(1, 9, step=2),
        "c": CategoricalDistribution(("x", 3, 2.5)),
    }
    values = {"a": 0.001, "b": 5, "c": 3}
    study.optuna_study.enqueue_trial(values)
    lease = take(database, study)
    internal = {name: (distributions[name].to_internal_repr(values[name]), distributions[name]) for name in values}
    ledger.set_up(database, lease, internal, {"note": {"k": [1]}}, {"own": 1})
    ledger.set_up(database, lease, internal, {"note": {"k": [1]}}, {"own": 1})  # once more changes nothing
    ledger.finish(database, lease, TrialState.COMPLETE, 0.5, {})
    theirs = study.optuna_study.ask(distributions)
    study.optuna_study.tell(theirs, 0.5)
    first, second = study.optuna_study.trials[:2]
    assert first.params == second.params == values
    assert first.distributions == second.distributions
    assert first.user_attrs == {"note": {"k": [1]}}
    assert first.system_attrs["own"] == 1


@pytest.mark.parametrize("value", [0.25, math.inf, -math.inf, math.nan, 1e-300])
def test_a_report_reads_back_as_optunas_own(database: Database, study: LoadedStudy, value: float) -> None:
    lease = take(database, study)
    theirs = study.optuna_study.ask()
    for epoch in (1, 2):
        ledger.report(database, lease, epoch, value, MEASURED, 60.0)
        theirs.report(value, epoch)
    first, second = (study.optuna_study.trials[number].intermediate_values for number in (0, 1))
    assert repr(first) == repr(second)
    assert [row["epoch"] for row in ledger.epochs(database, lease.trial_id)] == [1, 2]


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (TrialState.COMPLETE, 0.25),
        (TrialState.COMPLETE, math.inf),
        (TrialState.PRUNED, 0.25),
        (TrialState.PRUNED, None),
        (TrialState.FAIL, None),
    ],
)
def test_an_end_reads_back_as_optunas_own(
    database: Database, study: LoadedStudy, state: TrialState, value: float | None
) -> None:
    lease = take(database, study)
    theirs = study.optuna_study.ask()
    if value is not None:
        ledger.report(database, lease, 1, value, MEASURED, 60.0)
        theirs.report(value, 1)
    ledger.finish(database, lease, state, value, {"hpsearch:reason": "because"})
    study.optuna_study.tell(theirs, value if state == TrialState.COMPLETE else None, state=state)
    ours, other = study.optuna_study.trials
    for name in ("state", "values", "intermediate_values", "params", "distributions"):
        assert getattr(ours, name) == getattr(other, name), name
    assert abs((other.datetime_complete - ours.datetime_complete).total_seconds()) < 60
    assert ours.user_attrs == {"hpsearch:reason": "because"}


def test_an_epoch_reported_again_replaces_itself(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    for epoch, value in ((1, 0.1), (2, 0.2), (1, 0.3)):
        ledger.report(database, lease, epoch, value, MEASURED | {"training_loss": value}, 60.0)
    assert study.optuna_study.trials[0].intermediate_values == {1: 0.3}
    assert [(row["epoch"], row["training_loss"]) for row in ledger.epochs(database, lease.trial_id)] == [(1, 0.3)]


def test_metrics_that_are_not_finite_are_null(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    metrics = MEASURED | {"training_loss": math.nan, "gradient_norm": math.inf}
    ledger.report(database, lease, 1, math.nan, metrics, 60.0)
    row = ledger.epochs(database, lease.trial_id)[0]
    assert row["training_loss"] is row["gradient_norm"] is None
    assert row["validation_loss"] == 0.5


def refused(database: Database, lease: Lease) -> None:
    """Nothing may be written under this lease."""
    for write in (
        lambda: ledger.report(database, lease, 1, 0.1, MEASURED, 60.0),
        lambda: ledger.set_up(database, lease, {}, {"a": 1}, {}),
        lambda: ledger.cut_back(database, lease, 0),
        lambda: ledger.release(database, lease, 0),
        lambda: ledger.finish(database, lease, TrialState.COMPLETE, 0.9, {"a": 1}),
    ):
        with pytest.raises(LeaseLost):
            write()


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_an_ended_trial_is_never_touched(database: Database, study: LoadedStudy, state: TrialState) -> None:
    lease = take(database, study)
    study.optuna_study.tell(0, 0.5 if state == TrialState.COMPLETE else None, state=state)
    before = study.optuna_study.trials[0]
    refused(database, lease)
    assert study.optuna_study.trials[0] == before
    assert ledger.epochs(database, lease.trial_id) == []


def test_who_lost_the_lease_writes_nothing(database: Database, study: LoadedStudy) -> None:
    old = take(database, study, "old", seconds=0.0)
    ledger.report(database, old, 1, 0.1, MEASURED, 0.0)
    time.sleep(0.01)
    new = take(database, study, "new")
    assert (new.trial_id, new.token, new.owner) == (old.trial_id, old.token + 1, "new")
    before = study.optuna_study.trials[0]
    refused(database, old)
    assert study.optuna_study.trials[0] == before
    ledger.report(database, new, 2, 0.2, MEASURED, 60.0)
    assert study.optuna_study.trials[0].intermediate_values == {1: 0.1, 2: 0.2}


def test_a_lease_that_is_renewed_is_not_adopted(database: Database, study: LoadedStudy) -> None:
    first = take(database, study, "first", seconds=0.2)
    for epoch in range(1, 5):
        time.sleep(0.1)
        ledger.report(database, first, epoch, 0.1, MEASURED, 0.2)
        assert take(database, study, "second").trial_id != first.trial_id
    assert progress(database, study).abandoned == 0


def test_owners_that_vanish_without_an_epoch_are_counted(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study, seconds=0.0)
    for crashes in (1, 2):
        time.sleep(0.01)
        lease = take(database, study, seconds=0.0)
        assert lease.crashes == crashes
    ledger.report(database, lease, 1, 0.1, MEASURED, 0.0)  # it does get on: the count begins anew
    for crashes in (1, 2):
        time.sleep(0.01)
        assert take(database, study, seconds=0.0).crashes == crashes
    time.sleep(0.01)
    assert take(database, study).trial_id != lease.trial_id
    assert study.optuna_study.trials[0].state == TrialState.FAIL
    assert "3 workers in a row vanished" in study.optuna_study.trials[0].user_attrs["hpsearch:reason"]


def test_a_released_trial_is_taken_again_with_what_it_has(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    value, distribution = 0.25, FloatDistribution(0.0, 1.0)
    ledger.set_up(database, lease, {"x": (value, distribution)}, {}, {})
    for epoch in (1, 2, 3):
        ledger.report(database, lease, epoch, 0.1, MEASURED, 60.0)
    ledger.release(database, lease, 2)
    assert progress(database, study).started == 0
    trial = study.optuna_study.trials[0]
    assert (trial.state, trial.intermediate_values, trial.params) == (TrialState.WAITING, {1: 0.1, 2: 0.1}, {"x": 0.25})
    assert [row["epoch"] for row in ledger.epochs(database, lease.trial_id)] == [1, 2]
    refused(database, lease)
    again = take(database, study, "another")
    assert (again.trial_id, again.token, again.crashes) == (lease.trial_id, lease.token + 1, 0)


def test_a_deleted_study_stops_the_worker(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    ledger.report(database, lease, 1, 0.1, MEASURED, 60.0)
    optuna.delete_study(study_name="tiny", storage=database.storage)
    with pytest.raises(StorageError, match="has been deleted"):
        take(database, study)
    with pytest.raises(LeaseLost):
        ledger.report(database, lease, 2, 0.1, MEASURED, 60.0)
    with database.engine.connect() as connection:
        for table in ("hpsearch_epochs", "hpsearch_leases"):
            assert connection.scalar(text(f"SELECT count(*) FROM {table}")) == 0
