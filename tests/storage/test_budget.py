"""Budgets: what is used up starts nothing new, and lets what has begun come to its end."""

from dataclasses import replace

import pytest
from optuna.trial import TrialState

from hpsearch.storage import budget, ledger
from hpsearch.storage.ledger import End, Report
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy, progress
from tests.storage.trials import MEASURED, plan, report, take, take_many


@pytest.fixture
def database(hundred: Database) -> Database:
    """With the study `tiny`, which may have 100 trials."""
    return hundred


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"gpu_hours": 0.5}, "its 0.5 GPU-hours are used"),
        ({"wall_clock_hours": 1e-9}, "its 1e-09 hours of wall-clock time are over"),
        ({"target": 0.9}, "a trial has reached the target 0.9"),
        ({"target": 0.9, "epochs": 12}, "a trial has reached the target 0.9"),
    ],
)
def test_a_trial_that_was_given_back_goes_on_when_no_other_starts(
    database: Database, study: LoadedStudy, limits: dict[str, float], reason: str
) -> None:
    best, early, late = take_many(database, study, 3)
    assert ledger.report(database, [Report(best, 1, 0.95, MEASURED, seconds=1800.0)], 60.0)
    for lease in (early, late):
        report(database, lease, 1, 0.1)
    ledger.finish(database, [End(best, TrialState.COMPLETE, 0.95)])
    ledger.release(database, [(early, 1), (late, 1)], "asked to stop")
    spec = study.spec
    used_up = replace(study, spec=replace(spec, budget=spec.budget.model_copy(update={"trials": 100, **limits})))
    assert used_up.plan.budget == plan(study, **limits).budget

    def now() -> tuple[int, str, bool, bool]:
        found = progress(database, used_up)
        return found.startable, found.reason, found.done, found.unfinished

    assert now() == (2, reason, False, True)
    (again,) = take_many(database, used_up, 1)
    assert (again.number, again.epoch) == (early.number, 1)
    assert now() == (1, reason, False, True)
    taken = ledger.take(database, study.study_id, 8, "me", 60.0, used_up.plan)  # no more than that one
    assert [lease.number for lease in taken.leases] == [late.number]
    assert taken.reason == reason
    assert now() == (0, reason, False, True)
    ledger.finish(database, [End(lease, TrialState.PRUNED, 0.1) for lease in (again, *taken.leases)])
    assert now() == (0, reason, True, False)


def test_what_was_given_back_before_it_trained_does_not_start_either(database: Database, study: LoadedStudy) -> None:
    best, unbegun, begun = take_many(database, study, 3)
    report(database, begun, 1, 0.1)
    ledger.finish(database, [End(best, TrialState.COMPLETE, 0.95)])
    ledger.release(database, [(unbegun, 0), (begun, 1)], "asked to stop")
    taken = ledger.take(database, study.study_id, 8, "me", 60.0, plan(study, target=0.9))
    assert [lease.number for lease in taken.leases] == [begun.number]


def test_what_never_began_does_not_start_when_the_hours_are_over(database: Database, study: LoadedStudy) -> None:
    lease = take(database, study)
    study.optuna_study.enqueue_trial({"optimizer": "adam"})
    ledger.finish(database, [End(lease, TrialState.COMPLETE, 0.95)])
    with database.engine.begin() as connection:
        allowed = budget.allowance(connection, study.study_id, plan(study, target=0.9))
    assert allowed.num_trials == 0
    taken = ledger.take(database, study.study_id, 8, "me", 60.0, plan(study, target=0.9))
    assert (taken.leases, taken.reason) == ((), "a trial has reached the target 0.9")
