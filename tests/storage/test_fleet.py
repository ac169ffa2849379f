"""The table of workers: signs of life, and who is forgotten."""

import optuna
import pytest
from sqlalchemy import select, update

from hpsearch.storage import fleet
from hpsearch.storage.open import Database
from hpsearch.storage.studies import create_study, load_study
from hpsearch.storage.tables import WORKERS
from tests.working import tiny

HERE, GONE = fleet.Worker("here", "a", 1, "cpu"), fleet.Worker("gone", "b", 2, "cpu")


def owners(database: Database) -> set[str]:
    with database.engine.connect() as connection:
        return set(connection.scalars(select(WORKERS.c.owner)))


@pytest.mark.parametrize("by_lot", [True, False])
def test_workers_that_vanished_long_ago_are_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch, by_lot: bool
) -> None:
    create_study(database, tiny(), "tiny")
    sign = fleet.Sign(load_study(database, "tiny").study_id, fleet.TRAINING)
    monkeypatch.setattr(fleet, "FORGETTING", 0.0)
    assert fleet.beat(database, GONE, sign) == "running"
    with database.engine.begin() as connection:
        connection.execute(update(WORKERS).values(seen=WORKERS.c.seen - fleet.FORGET_SECONDS - 1))
    fleet.beat(database, HERE, sign)
    assert owners(database) == {"here", "gone"}
    if by_lot:
        monkeypatch.setattr(fleet, "FORGETTING", 1.0)
        fleet.beat(database, HERE, sign)
        assert owners(database) == {"here"}
    else:
        fleet.leave(database, HERE)
        assert owners(database) == set()


def test_a_sign_of_life_renews_itself(database: Database) -> None:
    create_study(database, tiny(), "tiny")
    study_id = load_study(database, "tiny").study_id
    for state in (fleet.TRAINING, fleet.WAITING):
        fleet.beat(database, HERE, fleet.Sign(study_id, state, 12.5, 0.25))
    (row,) = fleet.workers(database, study_id)
    assert (row.state, row.images_per_second, row.storage_share) == (fleet.WAITING, 12.5, 0.25)
    assert 0.0 <= row.silent_seconds < 60.0
    assert fleet.beat(database, HERE, fleet.Sign(None, fleet.WAITING)) == "stopped"


def test_a_sign_of_life_in_a_study_that_was_deleted(database: Database) -> None:
    create_study(database, tiny(), "tiny")
    sign = fleet.Sign(load_study(database, "tiny").study_id, fleet.TRAINING)
    assert fleet.beat(database, HERE, sign) == "running"
    optuna.delete_study(study_name="tiny", storage=database.storage)
    assert fleet.beat(database, HERE, sign) == "stopped"
    with database.engine.connect() as connection:
        assert connection.scalars(select(WORKERS.c.owner)).all() == []
