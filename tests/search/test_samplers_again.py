"""CMA-ES goes on where the study is: for workers that come later, and for several at once, as for one alone."""

from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.session import Session
from hpsearch.spec import parse
from hpsearch.storage import bulk, fleet, snapshot
from hpsearch.storage.ledger import End, Report
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import METRICS, SYSTEM_ATTRIBUTES, TRIALS
from tests.sessions import report, take
from tests.studies import TINY

SPACE = """
learning_rate = { low = 1e-3, high = 1e-1, log = true }
weight_decay = { low = 1e-6, high = 1e-2, log = true }
"""
NUM_TRIALS, STARTUP_TRIALS, POPULATION = 58, 10, 6  # of CMA-ES in two dimensions
GENERATIONS = [None] * STARTUP_TRIALS + [index // POPULATION for index in range(NUM_TRIALS - STARTUP_TRIALS)]


def session(database: Database, owner: str) -> Session:
    return Session(database, load_study(database, "s"), fleet.Worker(owner, "here", 1, "cpu"), 60.0)


def train(mine: Session) -> None:
    """One trial, which is the better the nearer it is to a point."""
    (one,) = take(mine, 1)
    value = -abs(one.recipe.learning_rate - 0.02) - abs(one.recipe.weight_decay - 1e-4)
    report(mine, [Report(one.lease, 1, value, dict.fromkeys(METRICS, 0.5))])
    assert mine.finish([End(one.lease, TrialState.COMPLETE, value)])


def search(database: Database, owner_of: Callable[[int], str]) -> list[FrozenTrial]:
    """The trials of a study, each trained by its owner; an owner knows what it has seen before."""
    text = f"{TINY.split('[space]')[0]}[space]\n{SPACE}\n[sampler]\nname = 'cmaes'\n[budget]\ntrials = {NUM_TRIALS}\n"
    create_study(database, parse(text, "test.toml"), "s")
    sessions: dict[str, Session] = {}
    for owner in map(owner_of, range(NUM_TRIALS)):
        if owner not in sessions:
            sessions[owner] = session(database, owner)
        train(sessions[owner])
    return load_study(database, "s").optuna_study.get_trials()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[FrozenTrial]:
    """What one worker tries that is never restarted."""
    with create(f"sqlite:///{tmp_path_factory.mktemp('alone') / 'study.db'}") as database:
        return search(database, lambda _number: "me")


@pytest.mark.parametrize(
    "owner_of",
    [
        pytest.param(lambda number: "earlier" if number < NUM_TRIALS / 2 else "later", id="one after another"),
        pytest.param(lambda number: f"worker {number % 2}", id="at once"),
    ],
)
def test_sessions_go_on_with_each_others_generations(
    database: Database, alone: list[FrozenTrial], owner_of: Callable[[int], str]
) -> None:
    trials = search(database, owner_of)
    assert [trial.system_attrs.get("cma:generation") for trial in trials] == GENERATIONS
    assert [trial.params for trial in trials] == [trial.params for trial in alone]


def test_optunas_pickled_optimizer_is_never_read(sqlite: Database) -> None:
    create_study(sqlite, parse(TINY, "tiny.toml"), "s")
    with sqlite.engine.begin() as connection:
        trial_id = connection.execute(TRIALS.select()).scalar_one()
        notes: dict[str, Any] = {"cma:generation": 3, "cma:optimizer:0": "80" * 1000, "constraints": [0.0]}
        bulk.set_attributes(connection, SYSTEM_ATTRIBUTES, [(trial_id, notes)])
        found = snapshot.sampler_attributes(connection, TRIALS.c.trial_id == trial_id)[trial_id]
    assert found.keys() == {"fixed_params", "cma:generation", "constraints"}
