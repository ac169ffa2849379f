"""A turnover: trials end and others are taken for their lanes, in one transaction, and the budget stays exact."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from hpsearch.errors import StorageError
from hpsearch.spec import parse
from hpsearch.storage import budget, fleet, ledger, locks
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import End
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from tests.postgres import PostgresServer
from tests.storage.trials import in_eight_threads, plan, report, take, take_many
from tests.studies import TINY


@pytest.fixture
def database(hundred: Database) -> Database:
    """With the study `tiny`, which may have 100 trials."""
    return hundred


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """What is said to the database, commits included."""
    said: list[str] = []

    def statement(_connection: object, _cursor: object, text: str, *_: object) -> None:
        said.append(text)

    def commit(_connection: object) -> None:
        said.append("COMMIT")

    event.listen(database.engine, "before_cursor_execute", statement)
    event.listen(database.engine, "commit", commit)
    yield said
    event.remove(database.engine, "before_cursor_execute", statement)
    event.remove(database.engine, "commit", commit)


def turn(
    database: Database, study: LoadedStudy, ends: list[End], num: int, owner: str = "me"
) -> tuple[set[int], ledger.Taken | None]:
    """End trials, and take others."""
    return ledger.turn(database, ends, study.study_id, num, owner, 60.0, study.plan)


def ends(leases: Iterable[Lease], state: TrialState = TrialState.PRUNED) -> list[End]:
    """How trials end."""
    return [End(lease, state, 0.5, {"hpsearch:reason": "a rung"}) for lease in leases]


def test_a_turnover_is_one_transaction(database: Database, study: LoadedStudy) -> None:
    counts = []
    for num in (1, 48):
        old = take_many(database, study, num)
        with counted(database) as said:
            held, taken = turn(database, study, ends(old), num)
        assert held == {lease.trial_id for lease in old}
        assert taken is not None
        assert len(taken.leases) == num
        assert said.count("COMMIT") == 1
        counts.append(len(said))
        ledger.finish(database, ends(taken.leases))
    assert counts[0] == counts[1] <= 14  # whatever the number of trials
    assert not [trial for trial in study.optuna_study.trials if not trial.state.is_finished()]


def test_who_does_not_get_the_lock_ends_its_trials_all_the_same(postgres: PostgresServer) -> None:
    with create(postgres.new_database()) as database:
        create_study(database, parse(TINY, "tiny.toml"), "tiny")
        study = load_study(database, "tiny")
        lease = take(database, study)
        with database.engine.begin() as other:
            locks.lock_study(other, study.study_id)
            assert turn(database, study, ends([lease]), 1) == ({lease.trial_id}, None)
        assert study.optuna_study.trials[0].state == TrialState.PRUNED
        assert len(study.optuna_study.trials) == 1


def test_eight_threads_that_turn_over_start_exactly_the_budget(database: Database) -> None:
    create_study(database, parse(TINY, "tiny.toml"), "sixty", 60)
    study = load_study(database, "sixty")
    started: list[int] = []
    ended: list[int] = []

    def work(owner: str, num: int) -> None:
        held: list[Lease] = []
        while True:
            while not held:
                held = list(take_many(database, study, num, owner))
                started.extend(lease.trial_id for lease in held)
                if not held:
                    return
            leaving, held = held[:1], held[1:]
            gone, taken = turn(database, study, ends(leaving), 1, owner)
            ended.extend(gone)
            if taken is not None:
                started.extend(lease.trial_id for lease in taken.leases)
                held += taken.leases

    in_eight_threads(work)
    assert len(started) == len(set(started)) == 60
    assert sorted(ended) == sorted(started)
    assert [trial.number for trial in study.optuna_study.trials] == list(range(60))
    assert {trial.state for trial in study.optuna_study.trials} == {TrialState.PRUNED}


def test_a_turnover_heeds_the_budget_and_what_people_want(database: Database, study: LoadedStudy) -> None:
    ten = plan(study, epochs=10)
    first, second, third = ledger.take(database, study.study_id, 8, "me", 60.0, ten).leases
    report(database, first, 1, 0.1)
    _, taken = ledger.turn(database, ends([first]), study.study_id, 8, "me", 60.0, ten)
    assert taken is not None
    assert len(taken.leases) == 1  # two of the epochs of the one that ended became free: 9 - 2 + 3 = 10
    fleet.control(database, study.study_id, budget.PAUSED)
    held, taken = turn(database, study, ends([second]), 1)
    assert (held, taken) == ({second.trial_id}, ledger.Taken((), "it is paused", budget.PAUSED))
    optuna.delete_study(study_name="tiny", storage=database.storage)
    with pytest.raises(StorageError, match="has been deleted"):
        turn(database, study, ends([third]), 1)


def test_a_turnover_ends_nothing_that_was_lost(database: Database, study: LoadedStudy) -> None:
    (old,) = take_many(database, study, 1, seconds=0.0)
    time.sleep(0.01)
    new = take(database, study, "another")
    held, taken = turn(database, study, ends([old]), 1)
    assert held == set()
    assert taken is not None
    assert taken.leases[0].trial_id != new.trial_id == old.trial_id
    assert study.optuna_study.trials[0].state == TrialState.RUNNING
