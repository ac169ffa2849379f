"""Leases: who trains a trial, until when, and which of its owners may still write.

A lease has an owner, a fencing token that grows with every new owner, and an expiry on the database's own clock, so
that neither the clocks nor the time zones of workers matter. The training loop renews it at every epoch: a worker that
hangs loses its trial just as one that was killed does. Whoever holds an old token cannot write any more.

Source: Gray and Cheriton, Leases, SOSP 1989; Kleppmann, How to do distributed locking, 2016 (fencing tokens).
"""

from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Connection, Double, func, insert, literal_column, select, update

from hpsearch.storage.tables import LEASES, TRIALS

MAX_CRASHES = 3  # owners in a row that vanish without recording an epoch; then the trial is at fault

# Seconds since 1970 by the database's clock, not by the transaction's start.
_CLOCK = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


@dataclass(frozen=True)
class Lease:
    """The right to train one trial and to write about it. `crashes` counts the owners before that vanished."""

    trial_id: int
    owner: str
    token: int
    crashes: int = 0


def grant(connection: Connection, trial_id: int, owner: str, seconds: float) -> Lease:
    """A lease on a trial that has just been started; the caller holds the study's lock."""
    known = connection.scalar(select(LEASES.c.token).where(LEASES.c.trial_id == trial_id))
    row = {"owner": owner, "token": (known or 0) + 1, "expires": clock(connection) + seconds, "crashes": 0}
    if known is None:
        connection.execute(insert(LEASES).values(trial_id=trial_id, **row))
    else:
        connection.execute(update(LEASES).where(LEASES.c.trial_id == trial_id).values(**row))
    return Lease(trial_id, owner, (known or 0) + 1)


def adopt(connection: Connection, study_id: int, owner: str, seconds: float) -> Lease | None:
    """Take over the first trial of the study whose lease has run out; the caller holds the study's lock."""
    expired = LEASES.c.expires < clock(connection)
    found = connection.execute(
        select(LEASES.c.trial_id, LEASES.c.token, LEASES.c.crashes)
        .join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING, expired)
        .order_by(TRIALS.c.number)
        .limit(1)
    ).one_or_none()
    if found is None:
        return None
    trial_id, token, crashes = found
    same = (LEASES.c.trial_id == trial_id) & (LEASES.c.token == token) & expired  # it may be renewed right now
    row = {"owner": owner, "token": token + 1, "expires": clock(connection) + seconds, "crashes": crashes + 1}
    if connection.execute(update(LEASES).where(same).values(**row)).rowcount == 0:
        return None
    return Lease(trial_id, owner, token + 1, crashes + 1)


def count_expired(connection: Connection, study_id: int) -> int:
    """How many running trials of the study have lost their owner."""
    abandoned = select(func.count()).select_from(LEASES).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    running = (TRIALS.c.study_id == study_id) & (TRIALS.c.state == TrialState.RUNNING)
    return connection.scalars(abandoned.where(running, LEASES.c.expires < clock(connection))).one()


def renew(connection: Connection, lease: Lease, seconds: float) -> bool:
    """Extend the lease, as an epoch is recorded; False if somebody else has the trial now."""
    row = {"expires": clock(connection) + seconds, "crashes": 0}
    return connection.execute(update(LEASES).where(_held(lease)).values(**row)).rowcount == 1


def check(connection: Connection, lease: Lease) -> bool:
    """Whether the lease is still held; takes the row's lock, so that it stays so until the transaction ends."""
    return connection.execute(update(LEASES).where(_held(lease)).values(token=lease.token)).rowcount == 1


def clock(connection: Connection) -> ColumnElement[float]:
    """The database's own time, in seconds since 1970."""
    return literal_column(_CLOCK[connection.dialect.name], Double)


def _held(lease: Lease) -> ColumnElement[bool]:
    return (LEASES.c.trial_id == lease.trial_id) & (LEASES.c.token == lease.token) & (LEASES.c.owner == lease.owner)
