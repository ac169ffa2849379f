"""The ledger: what happens to trials, many of them in one transaction on Optuna's own tables.

What it writes reads back through Optuna's public API as if Optuna had written it. Every write to a trial is guarded by
its lease and by `state = 'RUNNING'`: of a trial whose lease was lost, or that was ended elsewhere, nothing is written,
and its id is missing in the set that comes back. The lock of the study, where it is needed, comes first; whoever holds
trials already only tries for it (`turn`), and so never waits in a circle.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, case, func, insert, select, update

from hpsearch.storage import budget, bulk, leases, one_journey
from hpsearch.storage.events import ADOPTED, CRASHED, RELEASED, Happening, record
from hpsearch.storage.leases import Lease
from hpsearch.storage.locks import try_lock_study
from hpsearch.storage.open import Database
from hpsearch.storage.tables import (
    CONFIGURATIONS,
    EPOCHS,
    INTERMEDIATE_VALUES,
    LEASES,
    METRICS,
    PARAMS,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
)

REASON_KEY = "hpsearch:reason"  # trial attribute: why it ended before its last epoch
TRACEBACK_KEY = "hpsearch:traceback"  # trial attribute: of an exception that ended it, or of its worker's crash
ALONE = "a trial with which workers vanished trains alone here, until it has recorded an epoch"
TRY_SECONDS = 10.0  # how long a worker tries to start trials of a study while others start some
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.01, 2.0


@dataclass(frozen=True)
class Taken:
    """Trials that this worker trains from now on; if fewer than asked for, why (and what people have set)."""

    leases: tuple[Lease, ...]
    reason: str
    state: str


@dataclass(frozen=True)
class Drawn:
    """What a trial will train: parameters in Optuna's internal representation, attributes, and a digest of it all.

    A trial whose digest another trial of the study has is refused, unless it was `ordered` by a person.
    """

    lease: Lease
    params: Mapping[str, tuple[float, BaseDistribution]]
    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]
    digest: str
    ordered: bool = False


@dataclass(frozen=True)
class Report:
    """One epoch of one trial: `value` becomes Optuna's intermediate value at step `epoch`, `metrics` (METRICS) a row.

    `seconds` is the device time that the epoch took.
    """

    lease: Lease
    epoch: int
    value: float
    metrics: Mapping[str, float]
    seconds: float = 0.0


@dataclass(frozen=True)
class End:
    """How a trial ends: COMPLETE, PRUNED or FAIL, with its value (if any) and last attributes."""

    lease: Lease
    state: TrialState
    value: float | None = None
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    event: Happening | None = None


def take(
    database: Database,
    study_id: int,
    num: int,
    owner: str,
    lease_seconds: float,
    plan: budget.Plan,
    last_words: Callable[[str], str] = lambda _owner: "",
) -> Taken:
    """Start or take over up to `num` trials of the study, as far as the budget goes.

    The count and the new rows are one transaction under the study's row lock, so any number of workers start exactly
    what the budget allows. Trials whose lease has run out go first, then waiting ones (what was given back, and known
    good configurations), then new ones. A trial that has cost too many workers ends as FAIL, with the `last_words` of
    the last one. Who does not get the lock gives its connection back, which those who report may need behind a pooler,
    and comes again; after a while with nothing.

    Raises:
        StorageError: the study has been deleted.
    """
    gives_up, pause = time.monotonic() + TRY_SECONDS, FIRST_PAUSE_SECONDS
    while True:
        with database.engine.begin() as connection:
            if try_lock_study(connection, study_id, plan.created):
                return _take(connection, study_id, num, owner, lease_seconds, plan, last_words)
        if time.monotonic() > gives_up:
            return Taken((), "others are starting trials", budget.RUNNING)
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- not all at one moment
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def turn(
    database: Database,
    ends: Sequence[End],
    study_id: int,
    num: int,
    owner: str,
    lease_seconds: float,
    plan: budget.Plan,
    last_words: Callable[[str], str] = lambda _owner: "",
) -> tuple[set[int], Taken | None]:
    """`finish`, then `take` in the same transaction; nothing is taken (None) if others are starting trials just now.

    Raises:
        StorageError: the study has been deleted.
    """
    with database.engine.begin() as connection:
        held = _finish(connection, ends)
        if not try_lock_study(connection, study_id, plan.created):
            return held, None
        return held, _take(connection, study_id, num, owner, lease_seconds, plan, last_words)


def set_up(database: Database, study_id: int, drawn: Sequence[Drawn]) -> tuple[set[int], set[int]]:
    """Record what trials will train; the ids of those recorded, and of those refused as another trial's double."""
    with database.engine.begin() as connection:  # without the study's lock: a claim is unique by its key
        held = leases.hold(connection, (one.lease for one in drawn))
        mine = [one for one in drawn if one.lease.trial_id in held]
        doubles = _claim(connection, study_id, mine)
        accepted = [one for one in mine if one.lease.trial_id not in doubles]
        _insert_params(connection, accepted)
        bulk.set_attributes(connection, USER_ATTRIBUTES, [(one.lease.trial_id, one.user_attrs) for one in accepted])
        bulk.set_attributes(connection, SYSTEM_ATTRIBUTES, [(one.lease.trial_id, one.system_attrs) for one in accepted])
    return {one.lease.trial_id for one in accepted}, doubles


def prepare(database: Database, trials: Sequence[tuple[Lease, Mapping[str, Any]]], lease_seconds: float) -> set[int]:
    """Record the user attributes given with each trial, if there are some, and renew the leases.

    The ids of those that still were this worker's.
    """
    with database.engine.begin() as connection:
        held = leases.hold(connection, (lease for lease, _ in trials))
        leases.prolong(connection, held, lease_seconds)
        given = [(lease.trial_id, attributes) for lease, attributes in trials if lease.trial_id in held]
        bulk.set_attributes(connection, USER_ATTRIBUTES, given)
    return held


def report(database: Database, reports: Sequence[Report], lease_seconds: float) -> set[int]:
    """Record epochs and renew the leases for `lease_seconds`; the ids of those trials that still were this worker's.

    An epoch that is recorded again, because nobody knew whether the first time went through, replaces itself.
    """
    if database.engine.dialect.name == "postgresql":
        lasts = {"expires": lease_seconds}
        rows = [(one.lease, {**_value_row(one), **_epoch_row(one), **lasts, "seconds": one.seconds}) for one in reports]
        with database.statements() as connection:
            return one_journey.record(connection, rows)
    with database.engine.begin() as connection:
        kept = leases.renew(connection, [(one.lease, one.epoch, one.seconds) for one in reports], lease_seconds)
        mine = [one for one in reports if one.lease.trial_id in kept]
        bulk.upsert(connection, INTERMEDIATE_VALUES, [_value_row(one) for one in mine], ("trial_id", "step"))
        bulk.upsert(connection, EPOCHS, [_epoch_row(one) for one in mine], ("trial_id", "epoch"))
    return kept


def finish(database: Database, ends: Sequence[End]) -> set[int]:
    """End trials as Optuna's `tell` does; the ids of those that still were this worker's."""
    with database.engine.begin() as connection:
        return _finish(connection, ends)


def release(database: Database, given_back: Sequence[tuple[Lease, int]], reason: str) -> set[int]:
    """Give interrupted trials back: each waits, with its parameters, to go on after the epoch given with it.

    The ids of those that still were this worker's.
    """
    with database.engine.begin() as connection:
        held = leases.hold(connection, (lease for lease, _ in given_back))
        mine = [(lease, epoch) for lease, epoch in given_back if lease.trial_id in held]
        _cut_back(connection, mine)
        row = {"state": TrialState.WAITING, "datetime_start": None}
        connection.execute(update(TRIALS).where(bulk.among(connection, TRIALS.c.trial_id, held)).values(row))
        record(
            connection,
            [(lease.trial_id, Happening(RELEASED, f"after epoch {epoch}: {reason}")) for lease, epoch in mine],
        )
    return held


def cut_back(database: Database, lease: Lease, last_epoch: int) -> bool:
    """Remove what was recorded after `last_epoch`, from which the trial goes on; whether it still was this worker's."""
    with database.engine.begin() as connection:
        held = leases.hold(connection, [lease])
        _cut_back(connection, [(lease, last_epoch)] if held else [])
    return bool(held)


def epochs(database: Database, trial_id: int) -> list[dict[str, Any]]:
    """Every recorded epoch of a trial, in order; metrics that were not finite are None."""
    with database.statements() as connection:
        rows = connection.execute(select(EPOCHS).where(EPOCHS.c.trial_id == trial_id).order_by(EPOCHS.c.epoch))
        return [{key: value for key, value in row._mapping.items() if key != "trial_id"} for row in rows]


def _take(
    connection: Connection,
    study_id: int,
    num: int,
    owner: str,
    lease_seconds: float,
    plan: budget.Plan,
    last_words: Callable[[str], str],
) -> Taken:
    """See `take`; the caller holds the study's lock."""
    allowed = budget.allowance(connection, study_id, plan)
    running = allowed.state == budget.RUNNING
    crashes = leases.crashes(connection, study_id, owner) if running else []
    if any(number >= leases.LAST_CHANCE for number in crashes):
        return Taken((), ALONE, allowed.state)
    adopted = _adopt(connection, study_id, num, owner, lease_seconds, last_words, bool(crashes)) if running else []
    if any(lease.crashes == leases.LAST_CHANCE for lease in adopted):
        return Taken(tuple(adopted), ALONE, allowed.state)
    room = min(num - len(adopted), allowed.num_trials)
    again, new = _start(connection, study_id, room) if room > 0 else ([], [])
    fresh = leases.grant_again(connection, again, owner, lease_seconds)
    fresh += leases.grant(connection, new, owner, lease_seconds)
    if fresh and not allowed.begun:
        budget.note_start(connection, study_id)
    return Taken((*adopted, *fresh), allowed.reason, allowed.state)


def _adopt(
    connection: Connection,
    study_id: int,
    num: int,
    owner: str,
    lease_seconds: float,
    last_words: Callable[[str], str],
    holds_others: bool,
) -> list[Lease]:
    """Take over abandoned trials; those that have cost too many workers end here."""
    adopted: list[Lease] = []
    while len(adopted) < num:
        holds = holds_others or bool(adopted)
        found = leases.adopt(connection, study_id, num - len(adopted), owner, lease_seconds, holds)
        if not found:
            break
        good = [(lease, last) for lease, last in found if lease.crashes < leases.MAX_CRASHES]
        record(connection, [(lease.trial_id, Happening(ADOPTED, f"from {last} by {owner}")) for lease, last in good])
        bad = [(lease, last) for lease, last in found if lease.crashes >= leases.MAX_CRASHES]
        _finish(connection, [_crashed(lease, last, last_words(last)) for lease, last in bad])
        adopted += [lease for lease, _ in good]
        if any(lease.crashes == leases.LAST_CHANCE for lease in adopted):
            break
    return adopted


def _crashed(lease: Lease, last_owner: str, trace: str) -> End:
    reason = f"{lease.crashes} workers in a row vanished while they trained it, the last of them {last_owner}"
    attributes = {REASON_KEY: reason} | ({TRACEBACK_KEY: trace} if trace else {})
    return End(lease, TrialState.FAIL, None, attributes, event=Happening(CRASHED, reason))


def _start(connection: Connection, study_id: int, num: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Start trials that were given back, then other waiting ones, then new ones; (id, number) of those and of these.

    The caller holds the study's lock. What was given back has its room in the budget of epochs already; those that have
    trained come first.
    """
    of_study = TRIALS.c.study_id == study_id
    waiting = select(TRIALS.c.trial_id, TRIALS.c.number).where(of_study, TRIALS.c.state == TrialState.WAITING)
    waiting = waiting.outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
    rank = case((LEASES.c.epoch > 0, 0), (LEASES.c.trial_id.is_not(None), 1), else_=2)
    waiting = waiting.order_by(rank, TRIALS.c.number).limit(num).with_for_update(of=TRIALS)
    again = [(trial_id, number) for trial_id, number in connection.execute(waiting)]
    row = {"state": TrialState.RUNNING, "datetime_start": bulk.now()}
    if again:
        ids = [trial_id for trial_id, _ in again]
        connection.execute(update(TRIALS).where(bulk.among(connection, TRIALS.c.trial_id, ids)).values(row))
    if len(again) == num:
        return again, []
    first = connection.scalars(select(func.count()).where(of_study)).one()
    rows = [{"study_id": study_id, "number": first + index, **row} for index in range(num - len(again))]
    new = connection.execute(insert(TRIALS).returning(TRIALS.c.trial_id, TRIALS.c.number), rows)
    return again, sorted(((trial_id, number) for trial_id, number in new), key=lambda pair: pair[1])


def _claim(connection: Connection, study_id: int, drawn: Sequence[Drawn]) -> set[int]:
    """Take up the configurations for these trials; the ids of those that come too late, and were not ordered."""
    if not drawn:
        return set()
    rows = [{"study_id": study_id, "digest": one.digest, "trial_id": one.lease.trial_id} for one in drawn]
    rows.sort(key=itemgetter("digest"))  # two workers that claim the same ones wait for one another in one order
    bulk.insert_missing(connection, CONFIGURATIONS, rows)
    of_study = CONFIGURATIONS.c.study_id == study_id
    known = select(CONFIGURATIONS.c.digest, CONFIGURATIONS.c.trial_id)
    known = known.where(of_study, bulk.among(connection, CONFIGURATIONS.c.digest, {one.digest for one in drawn}))
    holders: dict[str, int] = {digest: trial_id for digest, trial_id in connection.execute(known)}  # noqa: C416 -- Rows
    return {one.lease.trial_id for one in drawn if holders[one.digest] != one.lease.trial_id and not one.ordered}


def _insert_params(connection: Connection, drawn: Sequence[Drawn]) -> None:
    rows = [
        {
            "trial_id": one.lease.trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_to_json(kind),
        }
        for one in drawn
        for name, (value, kind) in one.params.items()
    ]
    bulk.insert_missing(connection, PARAMS, rows)


def _value_row(one: Report) -> dict[str, Any]:
    stored, value_type = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(one.value)
    row = {"trial_id": one.lease.trial_id, "step": one.epoch}
    return row | {"intermediate_value": stored, "intermediate_value_type": value_type}


def _epoch_row(one: Report) -> dict[str, Any]:
    finite = {name: value if math.isfinite(value := one.metrics[name]) else None for name in METRICS}
    return {"trial_id": one.lease.trial_id, "epoch": one.epoch, **finite}


def _finish(connection: Connection, ends: Sequence[End]) -> set[int]:
    held = leases.hold(connection, (end.lease for end in ends))
    mine = [end for end in ends if end.lease.trial_id in held]
    missing = [(end.lease, end.state, end.value) for end in ends if end.lease.trial_id not in held]
    before = leases.ended(connection, missing)
    values = [objective_row(end.lease.trial_id, end.value) for end in mine if end.value is not None]
    if values:
        connection.execute(insert(VALUES), values)
    bulk.set_attributes(connection, USER_ATTRIBUTES, [(end.lease.trial_id, end.user_attrs) for end in mine])
    bulk.set_attributes(connection, SYSTEM_ATTRIBUTES, [(end.lease.trial_id, end.system_attrs) for end in mine])
    record(connection, [(end.lease.trial_id, end.event) for end in mine if end.event is not None])
    for state in {end.state for end in mine}:
        ids = [end.lease.trial_id for end in mine if end.state == state]
        row = {"state": state, "datetime_complete": bulk.now()}
        connection.execute(update(TRIALS).where(bulk.among(connection, TRIALS.c.trial_id, ids)).values(row))
    return held | before


def objective_row(trial_id: int, value: float) -> dict[str, Any]:
    """A trial's value as Optuna's table holds it."""
    stored, value_type = models.TrialValueModel.value_to_stored_repr(value)
    return {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": value_type}


def _cut_back(connection: Connection, trials: Sequence[tuple[Lease, int]]) -> None:
    """Remove what was recorded after the epoch given with each trial."""
    if not trials:
        return
    for table, column in ((INTERMEDIATE_VALUES, "step"), (EPOCHS, "epoch")):
        bulk.delete_later(connection, table, column, [(lease.trial_id, epoch) for lease, epoch in trials])
    leases.set_back(connection, [(lease.trial_id, epoch) for lease, epoch in trials])
