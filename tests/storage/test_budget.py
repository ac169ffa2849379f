"""Budgets: what is used up starts nothing new, and lets what has begun come to its end."""

from dataclasses import replace

import pytest
from optuna.trial import TrialState

from hpsearch.search.session import Session
from hpsearch.spec import parse
from hpsearch.storage import budget, fleet, ledger
from hpsearch.storage.ledger import End, Report
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy, create_study, load_study, progress
from tests.sessions import take as take_drawn
from tests.storage.trials import MEASURED, plan, report, take, take_many
from tests.studies import TINY

HEAD = TINY.split("[space]")[0].replace("epochs = 3\n", "")
SHORT_FIRST = "".join(f"[[first]]\nepochs = 3\nlearning_rate = 0.0{digit}\n" for digit in range(1, 9))


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


def one_worker(database: Database, text: str) -> Session:
    create_study(database, parse(text, "test.toml"), "lengths")
    return Session(database, load_study(database, "lengths"), fleet.Worker("me", "here", 1, "cpu"), 60.0)


def searching(epochs: str, limit: int, rest: str = "") -> str:
    """A study whose trials are of different lengths, and which may have so many epochs."""
    space = f"[space]\nepochs = {epochs}\nlearning_rate = {{ low = 1e-3, high = 1e-1, log = true }}\n"
    return f"{HEAD}{space}[pruner]\nname = 'none'\n[budget]\ntrials = 100\nepochs = {limit}\n{rest}"


@pytest.mark.parametrize("epochs", ["[3, 24]", "{ low = 3, high = 24 }"])
def test_a_trial_reserves_its_own_epochs_once_they_are_known(database: Database, epochs: str) -> None:
    mine = one_worker(database, searching(epochs, 40, SHORT_FIRST))
    taken = mine.lease(9)  # 8 times 3 leaves no room for one more, which may have 24
    assert (len(taken.leases), taken.reason) == (8, "its budget of 40 epochs has no room for another trial")
    assert not mine.lease(1).leases
    assert [one.recipe.epochs for one in mine.assign(taken.leases)] == [3] * 8
    assert not mine.lease(1).leases
    mine.release([(one, 0) for one in taken.leases], "asked to stop")
    mine.study.optuna_study.enqueue_trial({"epochs": 24})
    assert [lease.number for lease in mine.lease(100).leases] == list(range(8))


@pytest.mark.parametrize("outside", [4, "3", None, True])
def test_epochs_that_are_not_allowed_reserve_the_most(database: Database, outside: object) -> None:
    mine = one_worker(database, searching("[3, 24]", 26))
    mine.study.optuna_study.enqueue_trial({"epochs": outside})
    assert len(mine.lease(2).leases) == 1


def test_candidates_reserve_their_own_epochs(database: Database) -> None:
    compared = "".join(f"[[candidate]]\nlabel = '{label}'\nepochs = {n}\n" for label, n in (("short", 1), ("long", 5)))
    head = HEAD.replace("[model]", "seeds = [1, 2, 3]\n[model]")
    mine = one_worker(database, f"{head}[pruner]\nname = 'none'\n[budget]\ntrials = 6\nepochs = 13\n{compared}")
    assert [one.recipe.epochs for one in take_drawn(mine, 6)] == [1, 5, 1, 5, 1]


def test_what_trials_of_any_length_train_is_exactly_within_the_budget(database: Database) -> None:
    mine = one_worker(database, searching("{ low = 1, high = 9 }", 60))
    trained = 0
    while drawn := take_drawn(mine, 3):
        for one in drawn:
            for epoch in range(1, one.recipe.epochs + 1):
                mine.record([Report(one.lease, epoch, 0.5, MEASURED)], 60.0)
            mine.finish([End(one.lease, TrialState.COMPLETE, 0.5)])
            trained += one.recipe.epochs
    assert 60 - 9 < trained <= 60  # not even the longest would fit any more
