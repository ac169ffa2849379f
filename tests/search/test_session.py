"""Sessions: no configuration twice by accident, however many workers, and spaces that run out."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.asking import digest_of
from hpsearch.search.session import Assignment, Session
from hpsearch.spec import parse
from hpsearch.storage import budget, fleet, ledger
from hpsearch.storage.ledger import End, Report
from hpsearch.storage.open import Database, connect, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import METRICS
from tests.sessions import report, take
from tests.studies import TINY

HEAD = TINY.split("[space]")[0]
MEASURED = dict.fromkeys(METRICS, 0.5)
SIXTY = """
batch_size = [16, 32, 64, 128, 256]
clip_norm = [0.0, 0.5, 1.0]
optimizer = ["sgd", "adam"]
scheduler = ["constant", "cosine"]
"""
NUM_WORKERS = 8


def study_text(space: str, trials: int, rest: str = "", sampler: str = "tpe") -> str:
    """A study over `space`."""
    return f"{HEAD}[space]\n{space}\n[sampler]\nname = '{sampler}'\n[budget]\ntrials = {trials}\n{rest}"


def session(database: Database, owner: str = "me") -> Session:
    study = load_study(database, "s")
    return Session(database, study, fleet.Worker(owner, "here", 1, "cpu"), 60.0)


def train(mine: Session, num: int) -> tuple[list[Assignment], str]:
    """Take trials and end them at once, with a value that favours SGD and small batches; and why there are no more."""
    taken = mine.lease(num)
    assigned = mine.assign(taken.leases)
    report(mine, [Report(one.lease, 1, 0.5, MEASURED) for one in assigned])
    ends = [End(one.lease, TrialState.COMPLETE, value(one)) for one in assigned]
    assert len(mine.finish(ends)) == len(assigned)
    return list(assigned), taken.reason


def value(one: Assignment) -> float:
    return (one.recipe.optimizer == "sgd") + 1.0 / one.recipe.batch_size


def work(url: str, owner: str, num: int, ready: Any) -> None:
    """A worker process: takes `num` at a time until there is nothing left."""
    with connect(url) as database:
        mine = session(database, owner)
        ready.wait()
        while train(mine, num)[0]:
            pass


def race(url: str, num: int) -> None:
    """Eight workers until all of them have left in good order."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(NUM_WORKERS)
    arguments = [(url, f"worker {number}", num, ready) for number in range(NUM_WORKERS)]
    workers = [context.Process(target=work, args=given) for given in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * NUM_WORKERS


def trials(database: Database) -> list[FrozenTrial]:
    return load_study(database, "s").optuna_study.get_trials(deepcopy=False)


@pytest.fixture
def database(storage_url: str) -> Iterator[Database]:
    with create(storage_url) as database:
        yield database


@pytest.mark.parametrize("num", [1, 3])
def test_racing_workers_try_every_point_of_a_finite_space_once(database: Database, storage_url: str, num: int) -> None:
    spec = parse(study_text(SIXTY, 1000), "test.toml")
    create_study(database, spec, "s", spec.max_trials)  # as `hpsearch create-study` does
    points = spec.configurations
    assert points is not None
    race(storage_url, num)
    tried = Counter(digest_of(trial.params, None) for trial in trials(database))
    assert tried == Counter({digest_of(point, None): 1 for point in points})
    assert [trial.number for trial in trials(database)] == list(range(60))
    assert all(trial.state == TrialState.COMPLETE for trial in trials(database))
    assert train(session(database), 1) == ([], "all of its 60 trials have been started")


def test_a_space_that_is_larger_than_the_budget_has_no_doubles(database: Database, storage_url: str) -> None:
    create_study(database, parse(study_text(SIXTY, 50), "test.toml"), "s")
    race(storage_url, 2)
    assert len({digest_of(trial.params, None) for trial in trials(database)}) == len(trials(database)) == 50


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "cmaes"])
def test_a_best_branch_of_a_single_point_does_not_loop(database: Database, sampler: str) -> None:
    space = """
    optimizer = ["sgd", "adam"]
    batch_size = { low = 16, high = 30, step = 2, when = { optimizer = "adam" } }
    """
    create_study(database, parse(study_text(space, 9, sampler=sampler), "test.toml"), "s")
    mine, started = session(database), time.monotonic()
    done = [train(mine, 1)[0][0] for _ in range(9)]  # SGD is by far the best, and there is just one of it
    assert time.monotonic() - started < 60
    assert Counter(one.recipe.optimizer for one in done) == {"adam": 8, "sgd": 1}
    assert len({digest_of(trial.params, None) for trial in trials(database)}) == 9
    assert not train(mine, 1)[0]


def test_one_batch_takes_a_whole_space(database: Database) -> None:
    create_study(database, parse(study_text(SIXTY, 60), "test.toml"), "s")
    done, _ = train(session(database), 64)
    assert len({digest_of(trial.params, None) for trial in trials(database)}) == len(done) == 60


def test_doubles_that_were_ordered_are_accepted(database: Database) -> None:
    space = 'optimizer = ["sgd", "adam"]\nbatch_size = [16, 32]\n'
    create_study(database, parse(study_text(space, 5), "test.toml"), "s")
    study = load_study(database, "s").optuna_study
    for _ in range(2):
        study.enqueue_trial({"optimizer": "sgd", "batch_size": 32})  # a person wants it twice
    done, _ = train(session(database), 5)
    assert len(done) == 5
    tried = Counter((trial.params["optimizer"], trial.params["batch_size"]) for trial in trials(database))
    assert tried == {("sgd", 32): 2, ("sgd", 16): 1, ("adam", 16): 1, ("adam", 32): 1}


def test_what_is_ordered_in_part_is_completed_without_a_loop(database: Database) -> None:
    space = 'optimizer = ["sgd", "adam"]\nbatch_size = [16, 32]\n'
    create_study(database, parse(study_text(space, 4), "test.toml"), "s")
    for _ in range(3):  # of two that begin so
        load_study(database, "s").optuna_study.enqueue_trial({"optimizer": "adam"})
    done, _ = train(session(database), 4)
    assert [one.recipe.optimizer for one in done][:3] == ["adam"] * 3


def test_what_is_ordered_in_part_is_no_double_of_what_is_ordered_in_full(database: Database) -> None:
    space = 'optimizer = ["sgd", "adam"]\nbatch_size = [16, 32]\n'
    first = "[[first]]\noptimizer = 'sgd'\nbatch_size = 16\n[[first]]\noptimizer = 'sgd'\n"  # the grid's first point
    create_study(database, parse(study_text(space, 4, first, sampler="grid"), "test.toml"), "s")
    mine = session(database)
    assert [len(train(mine, 1)[0]) for _ in range(4)] == [1] * 4
    assert len({digest_of(trial.params, None) for trial in trials(database)}) == 4


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_what_is_ordered_in_part_takes_all_that_begin_so(sqlite: Database, sampler: str) -> None:
    space = 'optimizer = ["sgd", "adam"]\nbatch_size = { low = 1, high = 200 }\n'
    create_study(sqlite, parse(study_text(space, 200, sampler=sampler), "test.toml"), "s")
    study = load_study(sqlite, "s").optuna_study
    for _ in range(200):
        study.enqueue_trial({"optimizer": "adam"})
    train(session(sqlite), 200)
    assert Counter(digest_of(trial.params, None) for trial in trials(sqlite)).most_common(1)[0][1] == 1


@pytest.mark.parametrize("outside", [{"epochs": 1000}, {"batch_size": 12}, {"learning_rate": 5.0}])
def test_a_number_outside_the_space_is_not_trained(sqlite: Database, outside: dict[str, float]) -> None:
    """Optuna only warns of it; an epoch too many would break the budget."""
    space = """
    epochs = { low = 2, high = 10 }
    batch_size = { low = 8, high = 64, step = 8 }
    learning_rate = { low = 1e-3, high = 1e-1, log = true }
    """
    create_study(sqlite, parse(study_text(space, 2).replace("epochs = 3\n", ""), "test.toml"), "s")
    load_study(sqlite, "s").optuna_study.enqueue_trial(outside)
    (one,) = take(session(sqlite), 2)
    assert 2 <= one.recipe.epochs <= 10
    (failed,) = (trial for trial in trials(sqlite) if trial.state == TrialState.FAIL)
    ((name, given),) = outside.items()
    assert f"{name} = {given}: is outside [space]" in failed.user_attrs[ledger.REASON_KEY]


CONDITIONAL = """
learning_rate = { low = 1e-3, high = 1e-1, log = true }
peak_learning_rate = { low = 2.0, high = 8.0, times = "learning_rate", when = { scheduler = "onecycle" } }
batch_size = { low = 16, high = 64, step = 16 }
optimizer = ["sgd", "adam"]
scheduler = ["constant", "onecycle"]
momentum = { low = 0.5, high = 0.9, when = { optimizer = "sgd" } }
"""


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"learning_rat": 0.01}, "learning_rat: is not searched in this study; did you mean learning_rate?"),
        ({"momentum": 0.9, "optimizer": "adam"}, 'momentum = 0.9: is used only when optimizer is "sgd"'),
        ({"peak_learning_rate": 0.08, "scheduler": "onecycle"}, "needs learning_rate beside it"),
    ],
)
def test_what_is_enqueued_and_would_be_ignored_fails_and_is_said(
    sqlite: Database, given: dict[str, Any], rule: str
) -> None:
    create_study(sqlite, parse(study_text(CONDITIONAL, 2), "test.toml"), "s")
    load_study(sqlite, "s").optuna_study.enqueue_trial(given)
    mine = session(sqlite)
    assert len(take(mine, 2)) == 1
    (failed,) = (trial for trial in trials(sqlite) if trial.state == TrialState.FAIL)
    reason = failed.user_attrs[ledger.REASON_KEY]
    assert rule in reason
    assert [list(mine.complaints()) for _ in range(2)] == [[f"trial 0 failed: {reason}"], []]


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ({"batch_size": 32.0}, {"batch_size": 32}),
        ({"learning_rate": 0.1 + 5e-11}, {"learning_rate": 0.1}),
        (
            {"learning_rate": 0.01, "peak_learning_rate": 0.04, "scheduler": "onecycle"},
            {"learning_rate": 0.01, "peak_learning_rate_factor": 4.0, "scheduler": "onecycle"},
        ),
    ],
)
def test_what_is_enqueued_is_recorded_as_the_space_has_it(
    sqlite: Database, given: dict[str, Any], recorded: dict[str, Any]
) -> None:
    create_study(sqlite, parse(study_text(CONDITIONAL, 1), "test.toml"), "s")
    load_study(sqlite, "s").optuna_study.enqueue_trial(given)
    assert len(take(session(sqlite), 1)) == 1
    (one,) = trials(sqlite)
    assert {name: one.params[name] for name in recorded} == recorded


def test_seeds_of_a_study_that_searches_nothing_are_no_doubles(database: Database) -> None:
    text = f'{HEAD}[pruner]\nname = "none"\n[budget]\ntrials = 3\n'.replace("[model]", "seeds = [5, 6, 7]\n[model]")
    create_study(database, parse(text, "test.toml"), "s")
    done, _ = train(session(database), 3)
    assert [one.recipe.seed for one in done] == [5, 6, 7]


def test_who_lost_a_trial_learns_it_from_the_verdict(database: Database) -> None:
    create_study(database, parse(study_text(SIXTY, 60), "test.toml"), "s")
    mine = session(database)
    lost, kept = (one.lease for one in take(mine, 2))
    load_study(database, "s").optuna_study.tell(lost.number, state=TrialState.FAIL)  # a person ends it
    verdict = report(mine, [Report(lease, 1, 0.5, MEASURED) for lease in (lost, kept)])
    assert verdict.lost == {lost.trial_id}
    assert lost.trial_id not in verdict.pruned


def test_the_worst_of_a_batch_fail_their_rung(database: Database) -> None:
    create_study(database, parse(study_text(SIXTY, 60), "test.toml"), "s")
    mine = session(database)
    leases = [one.lease for one in take(mine, 9)]
    verdict = report(mine, [Report(one, 1, one.number / 9, MEASURED) for one in leases])
    assert verdict.pruned == {lease.trial_id for lease in leases[:6]}
    verdict = report(mine, [Report(one, 2, one.number / 9, MEASURED) for one in leases])
    assert not verdict.pruned  # epoch 2 is no rung
    assert mine.wanted == budget.RUNNING


def test_what_a_session_remembers_of_its_trials_does_not_grow(database: Database) -> None:
    space = 'optimizer = ["sgd", "adam"]\nbatch_size = [16, 32, 64]\n'
    create_study(database, parse(study_text(space, 6), "test.toml"), "s")  # the last ones are doubles at first
    mine = session(database)
    for _ in range(2):
        train(mine, 3)
        assert not mine._view._storage.drafts
    assert len({digest_of(trial.params, None) for trial in trials(database)}) == 6


def test_what_was_drawn_up_of_a_trial_that_is_lost_is_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_study(database, parse(study_text(SIXTY, 60), "test.toml"), "s")
    mine, set_up = session(database), ledger.set_up

    def late(*given: Any) -> Any:
        load_study(database, "s").optuna_study.tell(0, state=TrialState.FAIL)  # a person ends it meanwhile
        return set_up(*given)

    monkeypatch.setattr(ledger, "set_up", late)
    assert [one.lease.number for one in take(mine, 2)] == [1]
    mine._view.sync()
    lost, kept = mine._view.trials()
    assert lost.params == {}
    assert kept.params
    assert not mine._view._storage.drafts
