"""Leases: what a new owner finds, what an old one is told, and how long to wait for the others."""

import time

import pytest
from optuna.trial import TrialState
from sqlalchemy import select

from hpsearch.storage import budget, fleet, leases, ledger
from hpsearch.storage.ledger import End
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy
from hpsearch.storage.tables import CONTROL
from tests.storage.trials import plan, report, take, take_many


@pytest.fixture
def database(hundred: Database) -> Database:
    """With the study `tiny`, which may have 100 trials."""
    return hundred


def test_the_end_by_a_new_owner_is_not_that_of_the_old_one(database: Database, study: LoadedStudy) -> None:
    """Though it is the same end: who asks again whether its own went through must hear that it did not."""
    old = take(database, study, "old", 0.0)
    time.sleep(0.01)
    new = take(database, study, "new")
    assert new.trial_id == old.trial_id
    assert ledger.finish(database, [End(new, TrialState.COMPLETE, 0.5)]) == {new.trial_id}
    assert ledger.finish(database, [End(new, TrialState.COMPLETE, 0.5)]) == {new.trial_id}  # nobody knew
    assert ledger.finish(database, [End(old, TrialState.COMPLETE, 0.5)]) == set()


def test_the_end_under_another_lease_of_the_same_owner_is_another(database: Database, study: LoadedStudy) -> None:
    old = take(database, study, "me", 0.0)
    time.sleep(0.01)
    new = take(database, study, "me")
    assert ledger.finish(database, [End(new, TrialState.COMPLETE, 0.5)]) == {old.trial_id}
    assert ledger.finish(database, [End(old, TrialState.COMPLETE, 0.5)]) == set()


def test_a_trial_that_was_given_back_has_its_chances_again(database: Database, study: LoadedStudy) -> None:
    """Its worker left it in good order, so that the ones before are forgotten."""
    first = take(database, study, "first", 0.0)
    time.sleep(0.01)
    second = take(database, study, "second")
    assert second.crashes == 1
    assert ledger.release(database, [(second, 0)], "asked to stop") == {first.trial_id}
    assert take(database, study, "third", 0.0).crashes == 0
    time.sleep(0.01)
    again = take(database, study, "fourth")
    assert (again.trial_id, again.crashes) == (first.trial_id, 1)


def test_an_owner_that_takes_over_its_own_has_not_vanished(database: Database, study: LoadedStudy) -> None:
    """It was granted the trial, and the answer did not reach it."""
    first = take(database, study, "me", 0.0)
    for _ in range(4):
        time.sleep(0.01)
        assert (take(database, study, "me", 0.0).trial_id, study.optuna_study.trials[0].state) == (
            first.trial_id,
            TrialState.RUNNING,
        )
    time.sleep(0.01)
    again = take(database, study, "another")
    assert (again.trial_id, again.crashes, again.token) == (first.trial_id, 1, first.token + 5)


def test_a_record_that_is_shorter_than_what_it_is_cut_to_stays_as_it_is(database: Database, study: LoadedStudy) -> None:
    """The checkpoint may know an epoch more than the storage."""
    lease = take(database, study)
    report(database, lease, 1, 0.5)
    assert ledger.cut_back(database, lease, 2)
    assert ledger.release(database, [(lease, 2)], "asked to stop") == {lease.trial_id}
    assert take(database, study).epoch == 1


def test_a_trial_that_was_given_back_has_not_begun(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    assert study.optuna_study.trials[0].datetime_start is not None
    ledger.release(database, [(lease, 0)], "asked to stop")
    assert study.optuna_study.trials[0].datetime_start is None


def test_the_last_lease_to_run_out_is_waited_for(database: Database, study: LoadedStudy) -> None:
    def seconds_left() -> float | None:
        with database.engine.connect() as connection:
            return leases.seconds_left(connection, study.study_id)

    assert seconds_left() is None
    early, late, ended = (take(database, study, seconds=seconds) for seconds in (100.0, 1000.0, 10_000.0))
    ledger.finish(database, [End(ended, TrialState.COMPLETE, 0.5)])
    found = seconds_left()
    assert found is not None
    assert 500.0 < found <= 1000.0
    ledger.finish(database, [End(one, TrialState.COMPLETE, 0.5) for one in (early, late)])
    assert seconds_left() is None


def test_the_clock_of_a_study_starts_with_its_first_trial(database: Database, study: LoadedStudy) -> None:
    def started() -> float | None:
        with database.engine.connect() as connection:
            return connection.scalar(select(CONTROL.c.started).where(CONTROL.c.study_id == study.study_id))

    none_fits = plan(study, epochs=study.spec.max_epochs - 1)
    assert ledger.take(database, study.study_id, 1, "me", 60.0, none_fits).leases == ()
    fleet.control(database, study.study_id, budget.PAUSED)
    assert take_many(database, study, 1) == ()
    assert started() is None
    fleet.control(database, study.study_id, budget.RUNNING)
    take(database, study)
    first = started()
    assert first is not None
    time.sleep(0.01)
    take(database, study)
    assert started() == first
