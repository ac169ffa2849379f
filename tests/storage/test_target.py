"""The target of a budget: reached by the best of the completed trials, in the direction of the objective."""

from dataclasses import replace

import pytest
from optuna.trial import TrialState

from hpsearch.storage import budget, ledger
from hpsearch.storage.ledger import End
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy
from tests.storage.trials import plan, report, take


@pytest.fixture
def database(hundred: Database) -> Database:
    """With the study `tiny`, which may have 100 trials."""
    return hundred


def reached(database: Database, study: LoadedStudy, target: float, *, maximize: bool) -> bool:
    """Whether the target lets no other trial begin."""
    limited = replace(plan(study, target=target), maximize=maximize)
    with database.engine.begin() as connection:
        allowed = budget.allowance(connection, study.study_id, limited)
    assert allowed.num_trials == 0 or allowed.reason.startswith("all of its")
    return allowed.num_trials == 0


def ended(database: Database, study: LoadedStudy, value: float, state: TrialState = TrialState.COMPLETE) -> None:
    """One more trial, with one epoch."""
    lease = take(database, study)
    report(database, lease, 1, value)
    assert ledger.finish(database, [End(lease, state, value)]) == {lease.trial_id}


@pytest.mark.parametrize(("maximize", "bad", "good", "target"), [(True, 0.2, 0.9, 0.8), (False, 0.9, 0.2, 0.3)])
def test_the_best_reaches_it_whatever_the_others_have(
    database: Database, study: LoadedStudy, maximize: bool, bad: float, good: float, target: float
) -> None:
    assert not reached(database, study, target, maximize=maximize)  # without any value
    ended(database, study, bad)
    assert not reached(database, study, target, maximize=maximize)
    ended(database, study, good)
    assert reached(database, study, target, maximize=maximize)
    assert reached(database, study, good, maximize=maximize)  # by as much
    ended(database, study, bad)
    assert reached(database, study, target, maximize=maximize)


@pytest.mark.parametrize(("maximize", "good", "target"), [(True, 0.9, 0.8), (False, 0.2, 0.3)])
def test_a_trial_that_was_pruned_does_not_reach_it(
    database: Database, study: LoadedStudy, maximize: bool, good: float, target: float
) -> None:
    """Its value is that of fewer epochs."""
    ended(database, study, good, TrialState.PRUNED)
    assert not reached(database, study, target, maximize=maximize)
    ended(database, study, good)
    assert reached(database, study, target, maximize=maximize)
