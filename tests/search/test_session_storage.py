"""Sessions and the storage: what was lost is not decided about, faults at the end are borne, and pauses are heard."""

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from hpsearch.search.session import Session
from hpsearch.spec import parse
from hpsearch.storage import budget, fleet, ledger
from hpsearch.storage.ledger import Report
from hpsearch.storage.open import Database
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import LEASES
from tests.sessions import report, take
from tests.storage.trials import MEASURED
from tests.studies import TINY


@pytest.fixture
def mine(database: Database) -> Session:
    """A worker's part in a study with a rung after the first epoch, which may have 100 trials."""
    create_study(database, parse(TINY, "tiny.toml"), "tiny", 100)
    return Session(database, load_study(database, "tiny"), fleet.Worker("me", "here", 1, "cpu"), 60.0)


def test_a_trial_that_was_lost_at_its_rung_is_not_pruned(database: Database, mine: Session) -> None:
    """Its values are known, for another worker has it: that one decides."""
    leases = [one.lease for one in take(mine, 9)]
    reports = [Report(lease, 1, lease.number / 9, MEASURED) for lease in leases]
    assert len(mine.record(reports, 60.0)) == 9
    worst = leases[0].trial_id
    with database.engine.begin() as connection:
        connection.execute(update(LEASES).where(LEASES.c.trial_id == worst).values(token=LEASES.c.token + 1))
    verdict = report(mine, reports)
    assert verdict.lost == {worst}
    assert verdict.pruned == {lease.trial_id for lease in leases[1:6]}


def test_trials_are_given_back_at_the_first_attempt_or_not_at_all(
    mine: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker that leaves because the storage is away would end with an error instead."""
    (one,) = take(mine, 1)

    def away(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("connection refused"))

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "release", away)
        assert mine.release([(one.lease, 0)], "asked to stop") == set()
    assert mine.release([(one.lease, 0)], "asked to stop") == {one.lease.trial_id}


def test_what_people_want_is_heard_when_trials_are_turned_over(database: Database, mine: Session) -> None:
    for wanted in (budget.PAUSED, budget.RUNNING, budget.STOPPED):
        fleet.control(database, mine.study.study_id, wanted)
        _, taken = mine.turn([], 1)
        assert taken is not None
        assert (mine.wanted, len(taken.leases)) == (wanted, wanted == budget.RUNNING)
