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
from hpsearch.storage.tables import CONFIGURATIONS, CONTROL, EVENTS, LEASES, STUDIES, TRIALS, WORKERS

FORGET_SECONDS = 86_400.0  # a worker that vanished is shown for a day
ALIVE_SECONDS = 60.0  # a worker gives a sign every second or after each epoch; one without a lease is silent then
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


@dataclass(frozen=True)
class WorkerRow:
    """A worker, and what people want of its study."""

    owner: str
    host: str
    process: int
    device: str
    study_id: int | None
    study: str | None
    state: str
    wanted: str | None
    trials: int
    images_per_second: float
    storage_share: float
    started_seconds: float  # since it started
    silent_seconds: float
    holds: bool  # a lease that has not run out: an epoch may take as long

    @property
    def alive(self) -> bool:
        """Whether it has given a sign lately, or need not yet."""
        return self.holds or self.silent_seconds < ALIVE_SECONDS

    @property
    def does(self) -> str:
        """What it does: what it has said of itself, if it is alive."""
        return self.state if self.alive else "silent"

    @property
    def speed(self) -> float:
        """Images per second, if it is alive."""
        return self.images_per_second if self.alive else 0.0

    @property
    def answer(self) -> str:
        """What the worker has made of what people want."""
        if not self.alive:
            return "silent"
        if self.wanted == "paused":
            return "has paused" if self.state == "paused" else "pauses after this epoch"
        if self.wanted == "stopped":
            return "leaves after this epoch"
        return "resumes" if self.state == "paused" else "as asked"


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


def workers(database: Database, study_id: int | None = None) -> list[WorkerRow]:
    """The workers of one study, or of all, those of one study together."""
    running = TRIALS.c.state == TrialState.RUNNING
    counted = (func.count().label("num"), func.max(LEASES.c.expires).label("until"))
    held = select(LEASES.c.owner, *counted).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    held_by = held.where(running).group_by(LEASES.c.owner).subquery()
    names = ("owner", "host", "process", "device", "study_id")
    columns = [WORKERS.c[name] for name in names]
    with database.engine.connect() as connection:
        now = leases.clock(connection)
        statement = select(
            *columns,
            STUDIES.c.study_name.label("study"),
            WORKERS.c.state,
            CONTROL.c.state.label("wanted"),
            func.coalesce(held_by.c.num, 0).label("trials"),
            WORKERS.c.images_per_second,
            WORKERS.c.storage_share,
            (now - WORKERS.c.started).label("started_seconds"),
            (now - WORKERS.c.seen).label("silent_seconds"),
            func.coalesce(held_by.c.until >= now, False).label("holds"),
        )
        statement = statement.outerjoin(STUDIES, STUDIES.c.study_id == WORKERS.c.study_id)
        statement = statement.outerjoin(CONTROL, CONTROL.c.study_id == WORKERS.c.study_id)
        statement = statement.outerjoin(held_by, held_by.c.owner == WORKERS.c.owner)
        if study_id is not None:
            statement = statement.where(WORKERS.c.study_id == study_id)
        ordered = statement.order_by(STUDIES.c.study_name, WORKERS.c.host, WORKERS.c.device, WORKERS.c.process)
        return [WorkerRow(**row._mapping) for row in connection.execute(ordered)]


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


def num_without_point(database: Database, study_id: int) -> int:
    """Trials that have ended and took up no configuration: what they were to train was another's, or not allowed."""
    missing = CONFIGURATIONS.c.trial_id.is_(None)
    ended = (TRIALS.c.study_id == study_id) & TRIALS.c.state.not_in((TrialState.RUNNING, TrialState.WAITING))
    joined = select(func.count()).select_from(TRIALS)
    joined = joined.outerjoin(CONFIGURATIONS, CONFIGURATIONS.c.trial_id == TRIALS.c.trial_id)
    with database.statements() as connection:
        return connection.scalars(joined.where(ended, missing)).one()


def _forget(connection: Connection) -> None:
    """Remove workers that vanished; those that another worker is removing are passed over."""
    old = select(WORKERS.c.owner).where(WORKERS.c.seen < leases.clock(connection) - FORGET_SECONDS)
    connection.execute(delete(WORKERS).where(WORKERS.c.owner.in_(old.with_for_update(skip_locked=True))))


def _insert(connection: Connection) -> Any:
    return {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name].insert(WORKERS)
