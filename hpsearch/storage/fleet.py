"""The fleet: which workers are there, and what people want of them."""

import random
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hpsearch.errors import StorageError
from hpsearch.storage import budget, events, leases, locks
from hpsearch.storage.open import Database
from hpsearch.storage.tables import CONTROL, EVENTS, LEASES, TRIALS, WORKERS

FORGET_SECONDS = 86_400.0  # a worker that vanished is shown for a day
FORGETTING = 1e-3  # share of the signs of life that come with a look for such workers

TRAINING, WAITING, PAUSED = "training", "waiting", "paused"  # what a worker does (WORKERS.state)


@dataclass(frozen=True)
class Worker:
    """A worker process as it describes itself; `owner` is its name in the leases."""

    owner: str
    host: str
    process: int
    device: str


@dataclass(frozen=True)
class Sign:
    """A sign of life: what the worker does, and how fast.

    `storage_share` is the share of its time in this study that it spent waiting for the database, 0 to 1.
    """

    study_id: int | None
    state: str
    images_per_second: float = 0.0
    storage_share: float = 0.0


def beat(database: Database, worker: Worker, sign: Sign) -> str:
    """Record a sign of life; what people want of the study: budget.RUNNING, PAUSED or STOPPED."""
    with database.engine.begin() as connection:
        wanted = connection.scalar(select(CONTROL.c.state).where(CONTROL.c.study_id == sign.study_id))
        if wanted is None and sign.study_id is not None:
            return budget.STOPPED  # it has been deleted, and nobody can be at work on it
        at = leases.clock(connection)
        described = {"host": worker.host, "process": worker.process, "device": worker.device}
        row = {"owner": worker.owner, **described, **vars(sign), "started": at, "seen": at}
        statement = _insert(connection).values(row)
        changing = {name: statement.excluded[name] for name in row if name not in ("owner", "started")}
        connection.execute(statement.on_conflict_do_update(index_elements=["owner"], set_=changing))
        if random.random() < FORGETTING:  # noqa: S311 -- one worker now and then, not all of them all the time
            _forget(connection)
        return wanted or budget.STOPPED


def leave(database: Database, worker: Worker) -> None:
    """Remove the worker from the table: it has ended in good order. Those that vanished long ago go with it."""
    with database.engine.begin() as connection:
        connection.execute(delete(WORKERS).where(WORKERS.c.owner == worker.owner))
        _forget(connection)


def workers(database: Database, study_id: int) -> list[dict[str, Any]]:
    """The study's workers, the busiest first: as they describe themselves, with `trials` held, `silent_seconds`."""
    held = select(LEASES.c.owner, func.count().label("trials")).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    held = held.where(TRIALS.c.state == TrialState.RUNNING, TRIALS.c.study_id == study_id).group_by(LEASES.c.owner)
    counted = held.subquery()
    with database.engine.connect() as connection:
        silent = (leases.clock(connection) - WORKERS.c.seen).label("silent_seconds")
        columns = [column for column in WORKERS.c if column.name not in ("study_id", "started", "seen")]
        rows = select(*columns, func.coalesce(counted.c.trials, 0).label("trials"), silent)
        rows = rows.outerjoin(counted, counted.c.owner == WORKERS.c.owner).where(WORKERS.c.study_id == study_id)
        rows = rows.order_by(WORKERS.c.images_per_second.desc(), WORKERS.c.owner)
        return [dict(row._mapping) for row in connection.execute(rows)]


def control(database: Database, study_id: int, state: str) -> str:
    """Set what people want of a study, and return what they wanted before; workers notice within two epochs.

    Raises:
        StorageError: the study has no row of control.
    """
    with database.engine.begin() as connection:
        of_study = CONTROL.c.study_id == study_id
        before = connection.scalars(select(CONTROL.c.state).where(of_study).with_for_update()).one_or_none()
        if before is None:
            raise StorageError("its row of control is missing; `hpsearch fsck STUDY --repair` puts it back")
        if before != state:
            connection.execute(update(CONTROL).where(of_study).values(state=state))
            row = {"study_id": study_id, "at": leases.now(connection), "kind": events.CONTROL}
            connection.execute(insert(EVENTS).values(**row, text=f"{state}, before that {before}"))
    return str(before)


def extend(database: Database, study_id: int, num_trials: int) -> int:
    """Allow the study `num_trials` more; the new number."""
    with database.engine.begin() as connection:
        locks.lock_study(connection, study_id)
        return budget.extend(connection, study_id, num_trials)


def _forget(connection: Connection) -> None:
    """Remove workers that vanished; those that another worker is removing are passed over."""
    old = select(WORKERS.c.owner).where(WORKERS.c.seen < leases.clock(connection) - FORGET_SECONDS)
    connection.execute(delete(WORKERS).where(WORKERS.c.owner.in_(old.with_for_update(skip_locked=True))))


def _insert(connection: Connection) -> Any:
    return {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name].insert(WORKERS)
