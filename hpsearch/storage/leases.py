"""Leases: who trains a trial, until when, and which of its owners may still write.

A lease has an owner, a fencing token that grows with every new owner, and an expiry on the database's own clock, so
that neither the clocks nor the time zones of workers matter. The training loop renews it at every epoch: a worker that
hangs loses its trial just as one that was killed does. Whoever holds an old token cannot write any more.

Source: Gray and Cheriton, Leases, SOSP 1989; Kleppmann, How to do distributed locking, 2016 (fencing tokens).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Select,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal_column,
    select,
    update,
)

from hpsearch.storage import bulk
from hpsearch.storage.tables import LEASES, TRIALS, VALUES

MAX_CRASHES = 3  # owners in a row that vanish without recording an epoch; then the trial is at fault
LAST_CHANCE = MAX_CRASHES - 1  # then it trains alone: which of the trials of a worker has killed it nobody knows

# Seconds since 1970 by the database's clock, not by the transaction's start.
_CLOCK = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


@dataclass(frozen=True)
class Lease:
    """The right to train one trial and to write about it."""

    trial_id: int
    number: int  # of the trial in its study
    owner: str
    token: int
    crashes: int = 0  # owners in a row before this one that vanished
    epoch: int = 0  # the last one recorded by those before


def grant(connection: Connection, trials: Sequence[tuple[int, int]], owner: str, seconds: float) -> list[Lease]:
    """Leases on trials (id, number) that are new; the caller holds the study's lock."""
    fresh = {"owner": owner, "token": 1, "expires": seconds, "crashes": 0, "epoch": 0, "seconds": 0.0}
    bulk.execute(connection, LEASES, [{"trial_id": trial_id, **fresh} for trial_id, _ in trials], _granting)
    return [Lease(trial_id, number, owner, 1) for trial_id, number in trials]


def grant_again(connection: Connection, trials: Sequence[tuple[int, int]], owner: str, seconds: float) -> list[Lease]:
    """Leases on trials (id, number) that waited, some of which ran before; the caller holds the study's lock."""
    if not trials:
        return []
    ids = [trial_id for trial_id, _ in trials]
    columns = (LEASES.c.trial_id, LEASES.c.token, LEASES.c.epoch)
    known = {
        row[0]: row
        for row in connection.execute(select(*columns).where(bulk.among(connection, LEASES.c.trial_id, ids)))
    }
    again = {"owner": owner, "token": LEASES.c.token + 1, "expires": clock(connection) + seconds, "crashes": 0}
    connection.execute(update(LEASES).where(LEASES.c.trial_id.in_(known)).values(again))
    grant(connection, [one for one in trials if one[0] not in known], owner, seconds)
    return [
        Lease(trial_id, number, owner, known[trial_id].token + 1, epoch=known[trial_id].epoch)
        if trial_id in known
        else Lease(trial_id, number, owner, 1)
        for trial_id, number in trials
    ]


def adopt(
    connection: Connection, study_id: int, num: int, owner: str, seconds: float, holds_others: bool
) -> list[tuple[Lease, str]]:
    """Take over up to `num` trials whose lease has run out, each with the name of its last owner.

    An owner has not vanished that takes over a trial of its own, which it was granted without hearing of it. Trials
    that have had their last chance come first. One that has it now comes alone, and only to an owner that holds no
    others. The caller holds the study's lock; a lease that is being renewed at this moment is passed over.
    """
    vanished = LEASES.c.crashes + case((LEASES.c.owner == owner, 0), else_=1)  # its own it has only lost sight of
    expired = _expired(connection, study_id).add_columns(vanished.label("vanished"))
    if holds_others:
        expired = expired.where(vanished != LAST_CHANCE)
    rows = list(connection.execute(expired.limit(num).with_for_update(of=(LEASES, TRIALS), skip_locked=True)))
    over = [r for r in rows if r.vanished > LAST_CHANCE]
    rows = over or [r for r in rows if r.vanished == LAST_CHANCE][:1] or rows
    taken = [(Lease(r.trial_id, r.number, owner, r.token + 1, r.vanished, r.epoch), r.owner) for r in rows]
    if taken:
        row = {"token": LEASES.c.token + 1, "expires": now(connection) + seconds, "crashes": vanished, "owner": owner}
        ids = [lease.trial_id for lease, _ in taken]
        connection.execute(update(LEASES).where(LEASES.c.trial_id.in_(ids)).values(row))
    return taken


def crashes(connection: Connection, study_id: int, owner: str) -> list[int]:
    """Of each running trial that the owner holds: how many owners in a row before it vanished."""
    running = (TRIALS.c.study_id == study_id) & (TRIALS.c.state == TrialState.RUNNING)
    mine = (LEASES.c.owner == owner) & (LEASES.c.expires >= clock(connection))
    joined = select(LEASES.c.crashes).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    return list(connection.scalars(joined.where(running, mine)))


def count_expired(connection: Connection, study_id: int) -> int:
    """How many running trials of the study have lost their owner."""
    return connection.scalars(select(func.count()).select_from(_expired(connection, study_id).subquery())).one()


def seconds_left(connection: Connection, study_id: int) -> float | None:
    """Until when the last of the running trials' leases runs out, if none is renewed; None if no trial is running."""
    latest = select(func.max(LEASES.c.expires)).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    expires = connection.scalar(latest.where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING))
    return None if expires is None else max(0.0, expires - now(connection))


def hold(connection: Connection, leases: Iterable[Lease]) -> set[int]:
    """The trials of those leases that are still held and RUNNING; their rows stay locked until the transaction ends."""
    mine = {lease.trial_id: lease for lease in leases}
    columns = (LEASES.c.trial_id, LEASES.c.owner, LEASES.c.token)
    running = (TRIALS.c.trial_id == LEASES.c.trial_id) & (TRIALS.c.state == TrialState.RUNNING)
    owners = {lease.owner for lease in mine.values()}
    own = bulk.among(connection, LEASES.c.trial_id, mine) & bulk.among(connection, LEASES.c.owner, owners)
    if connection.dialect.name == "sqlite":  # it knows no row locks: an update locks the whole database
        locked: Any = (
            update(LEASES).where(own, exists().where(running)).values(token=LEASES.c.token).returning(*columns)
        )
    else:
        locked = select(*columns).join(TRIALS, running).where(own).with_for_update(of=(LEASES, TRIALS))
    found = connection.execute(locked) if mine else ()
    return {row.trial_id for row in found if (row.owner, row.token) == _key(mine[row.trial_id])}


def ended(connection: Connection, trials: Sequence[tuple[Lease, TrialState, float | None]]) -> set[int]:
    """Those that have ended in this state, with this value, under this lease: an earlier attempt has gone through."""
    if not trials:
        return set()
    wanted = {lease.trial_id: (*_key(lease), state, value) for lease, state, value in trials}
    columns = (LEASES.c.trial_id, LEASES.c.owner, LEASES.c.token, TRIALS.c.state, VALUES.c.value)
    joined = select(*columns).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    joined = joined.outerjoin(VALUES, VALUES.c.trial_id == LEASES.c.trial_id)
    found = connection.execute(joined.where(bulk.among(connection, LEASES.c.trial_id, wanted)))
    return {trial_id for trial_id, *rest in found if tuple(rest) == wanted[trial_id]}


def renew(connection: Connection, epochs: Sequence[tuple[Lease, int, float]], seconds: float) -> set[int]:
    """As `hold`; extends the leases, and notes the epoch that is being recorded and the device time that it took."""
    kept = hold(connection, (lease for lease, _, _ in epochs))
    rows = [
        {"trial_id": lease.trial_id, "expires": seconds, "epoch": epoch, "seconds": spent}
        for lease, epoch, spent in epochs
        if lease.trial_id in kept
    ]
    bulk.execute(connection, LEASES, rows, _renewal)
    return kept


def prolong(connection: Connection, trial_ids: Iterable[int], seconds: float) -> None:
    """Extend leases that the caller holds, of which no epoch is recorded just now."""
    mine = bulk.among(connection, LEASES.c.trial_id, trial_ids)
    connection.execute(update(LEASES).where(mine).values(expires=clock(connection) + seconds))


def set_back(connection: Connection, trials: Iterable[tuple[int, int]]) -> None:
    """Note for each trial (id, epoch) that its record ends with that epoch; those whose record is shorter stay."""
    statement = update(LEASES).where(LEASES.c.trial_id == bindparam("id"), LEASES.c.epoch > bindparam("last"))
    connection.execute(statement.values(epoch=bindparam("last")), [{"id": i, "last": epoch} for i, epoch in trials])


def now(connection: Connection) -> float:
    """The database's own time, in seconds since 1970."""
    return connection.scalars(select(clock(connection))).one()


def clock(connection: Connection) -> ColumnElement[float]:
    """The database's own time as an expression."""
    return literal_column(_CLOCK[connection.dialect.name], Double)


def _expired(connection: Connection, study_id: int) -> Select[Any]:
    columns = (LEASES.c.trial_id, TRIALS.c.number, LEASES.c.owner, LEASES.c.token, LEASES.c.epoch)
    running = (TRIALS.c.study_id == study_id) & (TRIALS.c.state == TrialState.RUNNING)
    joined = select(*columns).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    return joined.where(running, LEASES.c.expires < clock(connection)).order_by(TRIALS.c.number)


def _granting(dialect: str, given: bulk.Given) -> Any:
    columns = {**given, "expires": literal_column(_CLOCK[dialect], Double) + given["expires"]}
    return insert(LEASES).from_select(list(columns), select(*columns.values()), include_defaults=False)


def renewal(dialect: str, given: Any) -> dict[str, Any]:
    """What becomes of a lease with an epoch, from columns: the seconds that it lasts, the epoch, its seconds."""
    row = {"expires": literal_column(_CLOCK[dialect], Double) + given["expires"], "crashes": 0, "epoch": given["epoch"]}
    again = LEASES.c.epoch >= given["epoch"]  # it was recorded, and nobody knew
    return row | {"seconds": LEASES.c.seconds + case((again, 0.0), else_=given["seconds"])}


def _renewal(dialect: str, given: bulk.Given) -> Any:
    return update(LEASES).where(LEASES.c.trial_id == given["trial_id"]).values(renewal(dialect, given))


def _key(lease: Lease) -> tuple[str, int]:
    return lease.owner, lease.token
