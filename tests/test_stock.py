"""The stock by itself: what it holds is placed anew, keeps its leases, and is asked for no more than is needed."""

from typing import Any

import pytest
from sqlalchemy import select, update

from hpsearch.search.session import Session
from hpsearch.stock import Stock, joining
from hpsearch.storage import fleet
from hpsearch.storage.open import Database
from hpsearch.storage.studies import RECIPE_KEY, create_study, load_study
from hpsearch.storage.tables import LEASES
from hpsearch.train.plan import Stream
from tests.test_worker_stock import spec


def stock_of(database: Database, num: int) -> tuple[Session, Stock]:
    """A stock with trials that are drawn up to begin with their stream."""
    session = Session(database, load_study(database, "tiny"), fleet.Worker("me", "here", 1, "cpu"), 60.0)
    stock = Stock(session)
    stock.hold(num, session.lease(num))
    stock.draw_up(joining({}))
    return session, stock


def recorded(database: Database) -> dict[int, int]:
    """The places in their streams that are recorded, by trial id."""
    trials = load_study(database, "tiny").optuna_study.get_trials(deepcopy=False)
    return {one._trial_id: one.user_attrs[RECIPE_KEY]["stream_offset"] for one in trials}


def test_what_stays_in_stock_is_placed_anew_and_keeps_its_lease(database: Database) -> None:
    create_study(database, spec(), "tiny")
    _, stock = stock_of(database, 3)
    stream = Stream.of(next(iter(stock.drawn.values())).recipe)
    assert set(recorded(database).values()) == {0}
    lost = next(iter(stock.leases))
    with database.engine.begin() as connection:
        connection.execute(update(LEASES).where(LEASES.c.trial_id == lost).values(token=LEASES.c.token + 1))
    stock.prepare(joining({stream: 5}), 1e6)
    assert lost not in stock.leases.keys() | stock.drawn.keys()
    assert len(stock) == 2
    assert {trial_id: one.recipe.stream_offset for trial_id, one in stock.drawn.items()} == dict.fromkeys(
        stock.leases, 5
    )
    assert recorded(database) == {**dict.fromkeys(stock.leases, 5), lost: 0}
    with database.engine.connect() as connection:
        expires = {row.trial_id: row.expires for row in connection.execute(select(LEASES))}
    assert all(expires[trial_id] > expires[lost] + 1e5 for trial_id in stock.leases)


def test_a_trial_that_was_trained_keeps_its_place(database: Database) -> None:
    create_study(database, spec(), "tiny")
    session, stock = stock_of(database, 2)
    stream = Stream.of(next(iter(stock.drawn.values())).recipe)
    trained, untouched = stock.leases.values()
    session.release([(trained, 0), (untouched, 0)], "for the test")
    with database.engine.begin() as connection:
        connection.execute(update(LEASES).where(LEASES.c.trial_id == trained.trial_id).values(epoch=2))
    again = Stock(session)
    again.hold(2, session.lease(2))
    again.draw_up(joining({stream: 7}))
    again.prepare(joining({stream: 7}), 60.0)
    assert {trial_id: one.recipe.stream_offset for trial_id, one in again.drawn.items()} == recorded(database)
    assert recorded(database) == {trained.trial_id: 0, untouched.trial_id: 7}


def test_trials_that_are_new_are_not_asked_for_their_recipes(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    create_study(sqlite, spec(), "tiny")
    asked: list[int] = []
    read = Session._recorded

    def noted(session: Session, leases: Any) -> Any:
        asked.extend(lease.number for lease in leases)
        return read(session, leases)

    monkeypatch.setattr(Session, "_recorded", noted)
    session, stock = stock_of(sqlite, 3)
    assert asked == []
    assert session.assign(list(stock.leases.values())) == tuple(stock.drawn.values())  # after an answer that was lost
    assert asked == [0, 1, 2]
