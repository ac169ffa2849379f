"""The ledger: what happens to trials, each event one transaction on Optuna's own tables.

What it writes reads back through Optuna's public API as if Optuna had written it. Every write to a trial is guarded by
its lease and by `state = 'RUNNING'`: who lost the lease, or whose trial was ended elsewhere, writes nothing.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Table, delete, func, insert, select, update

from hpsearch.errors import LeaseLost, StorageError
from hpsearch.storage import leases
from hpsearch.storage.leases import Lease
from hpsearch.storage.open import Database
from hpsearch.storage.tables import (
    EPOCHS,
    INTERMEDIATE_VALUES,
    METRICS,
    PARAMS,
    STUDIES,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
)

REASON_KEY = "hpsearch:reason"  # trial attribute: why it ended before its last epoch


def take_trial(database: Database, study_id: int, max_trials: int, owner: str, lease_seconds: float) -> Lease | None:
    """Start or take over one trial of the study; None if `max_trials` have been started and none was abandoned.

    The count and the new row are one transaction under the study's row lock, so any number of workers start exactly
    `max_trials`. Trials whose lease has run out go first, then waiting ones (known good configurations, and what was
    given back), then new ones.

    Raises:
        StorageError: the study has been deleted.
    """
    with database.engine.begin() as connection:
        _lock_study(connection, study_id)
        while lease := leases.adopt(connection, study_id, owner, lease_seconds):
            if lease.crashes < leases.MAX_CRASHES:
                break
            reason = f"{lease.crashes} workers in a row vanished while they trained it, the last before {owner}"
            _end(connection, lease.trial_id, TrialState.FAIL, None, {REASON_KEY: reason})
        if lease is None:
            trial_id = _start_next(connection, study_id, max_trials)
            lease = leases.grant(connection, trial_id, owner, lease_seconds) if trial_id is not None else None
    database.storage.get_all_trials(study_id, deepcopy=False)  # Optuna's cache refuses trials that it has not seen
    return lease


def set_up(
    database: Database,
    lease: Lease,
    params: Mapping[str, tuple[float, BaseDistribution]],
    user_attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any],
) -> None:
    """Record what a trial will train: its parameters (in Optuna's internal representation) and attributes.

    Raises:
        LeaseLost: the trial belongs to somebody else now.
    """
    with _held(database, lease) as connection:
        known = set(connection.scalars(select(PARAMS.c.param_name).where(PARAMS.c.trial_id == lease.trial_id)))
        for name, (value, distribution) in params.items():
            if name not in known:
                row = {
                    "param_name": name,
                    "param_value": value,
                    "distribution_json": distribution_to_json(distribution),
                }
                connection.execute(insert(PARAMS).values(trial_id=lease.trial_id, **row))
        _set_attributes(connection, USER_ATTRIBUTES, lease.trial_id, user_attrs)
        _set_attributes(connection, SYSTEM_ATTRIBUTES, lease.trial_id, system_attrs)


def report(
    database: Database, lease: Lease, epoch: int, value: float, metrics: Mapping[str, float], lease_seconds: float
) -> None:
    """Record one epoch: `value` as Optuna's intermediate value at step `epoch`, and the `metrics` of METRICS as a row.

    Renews the lease for `lease_seconds`.

    Raises:
        LeaseLost: the trial belongs to somebody else now, or was ended.
    """
    stored, value_type = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    finite = {name: metrics[name] for name in METRICS if math.isfinite(metrics[name])}
    with _held(database, lease, lease_seconds) as connection:
        _delete_epochs(connection, lease.trial_id, epoch)  # an epoch trained again after a restart replaces itself
        row = {"step": epoch, "intermediate_value": stored, "intermediate_value_type": value_type}
        connection.execute(insert(INTERMEDIATE_VALUES).values(trial_id=lease.trial_id, **row))
        connection.execute(insert(EPOCHS).values(trial_id=lease.trial_id, epoch=epoch, **finite))


def cut_back(database: Database, lease: Lease, last_epoch: int) -> None:
    """Remove what was recorded after `last_epoch`, from which the trial goes on.

    Raises:
        LeaseLost: the trial belongs to somebody else now.
    """
    with _held(database, lease) as connection:
        _delete_epochs(connection, lease.trial_id, last_epoch + 1)


def release(database: Database, lease: Lease, last_epoch: int) -> None:
    """Give an interrupted trial back: it waits, with its parameters, to go on after `last_epoch`.

    Raises:
        LeaseLost: the trial belongs to somebody else now.
    """
    with _held(database, lease) as connection:
        _delete_epochs(connection, lease.trial_id, last_epoch + 1)
        connection.execute(_update_trial(lease.trial_id, state=TrialState.WAITING, datetime_start=None))


def finish(
    database: Database, lease: Lease, state: TrialState, value: float | None, user_attrs: Mapping[str, Any]
) -> None:
    """End a trial as COMPLETE, PRUNED or FAIL, with its value (if any) and last attributes, as Optuna's `tell` does.

    Raises:
        LeaseLost: the trial belongs to somebody else now, or was ended.
    """
    with _held(database, lease) as connection:
        _end(connection, lease.trial_id, state, value, user_attrs)


def epochs(database: Database, trial_id: int) -> list[dict[str, Any]]:
    """Every recorded epoch of a trial, in order; metrics that were not finite are None."""
    with database.engine.connect() as connection:
        rows = connection.execute(select(EPOCHS).where(EPOCHS.c.trial_id == trial_id).order_by(EPOCHS.c.epoch))
        return [{key: value for key, value in row._mapping.items() if key != "trial_id"} for row in rows]


@contextmanager
def _held(database: Database, lease: Lease, lease_seconds: float | None = None) -> Iterator[Connection]:
    """A transaction in which the lease is held, and renewed if seconds are given; nothing is written otherwise."""
    with database.engine.begin() as connection:
        if lease_seconds is None:
            held = leases.check(connection, lease)
        else:
            held = leases.renew(connection, lease, lease_seconds)
        running = (TRIALS.c.trial_id == lease.trial_id) & (TRIALS.c.state == TrialState.RUNNING)
        locked = update(TRIALS).where(running).values(state=TrialState.RUNNING)
        if not held or connection.execute(locked).rowcount == 0:
            connection.rollback()
            raise LeaseLost
        yield connection


def _lock_study(connection: Connection, study_id: int) -> None:
    # An UPDATE, because SQLite has no SELECT FOR UPDATE: it takes the write lock before the trials are counted.
    row = {"study_name": STUDIES.c.study_name}
    if connection.execute(update(STUDIES).where(STUDIES.c.study_id == study_id).values(row)).rowcount == 0:
        raise StorageError("the study has been deleted while this worker ran: create it again, or stop the worker")


def _start_next(connection: Connection, study_id: int, max_trials: int) -> int | None:
    of_study = TRIALS.c.study_id == study_id
    started = select(func.count()).where(of_study, TRIALS.c.state != TrialState.WAITING)
    if connection.scalars(started).one() >= max_trials:
        return None
    waiting = select(TRIALS.c.trial_id).where(of_study, TRIALS.c.state == TrialState.WAITING)
    trial_id: int | None = connection.scalar(waiting.order_by(TRIALS.c.number).limit(1))
    if trial_id is not None:
        connection.execute(_update_trial(trial_id, state=TrialState.RUNNING, datetime_start=_now()))
        return trial_id
    number = connection.scalar(select(func.count()).where(of_study))
    row = {"study_id": study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": _now()}
    return int(connection.scalars(insert(TRIALS).values(row).returning(TRIALS.c.trial_id)).one())


def _end(
    connection: Connection, trial_id: int, state: TrialState, value: float | None, user_attrs: Mapping[str, Any]
) -> None:
    if value is not None:
        stored, value_type = models.TrialValueModel.value_to_stored_repr(value)
        row = {"objective": 0, "value": stored, "value_type": value_type}
        connection.execute(insert(VALUES).values(trial_id=trial_id, **row))
    _set_attributes(connection, USER_ATTRIBUTES, trial_id, user_attrs)
    connection.execute(_update_trial(trial_id, state=state, datetime_complete=_now()))


def _set_attributes(connection: Connection, table: Table, trial_id: int, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        connection.execute(delete(table).where(table.c.trial_id == trial_id, table.c.key == key))
        connection.execute(insert(table).values(trial_id=trial_id, key=key, value_json=json.dumps(value)))


def _update_trial(trial_id: int, **row: Any) -> Any:
    return update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(row)


def _delete_epochs(connection: Connection, trial_id: int, first_epoch: int) -> None:
    """Remove what was recorded at `first_epoch` and after it."""
    for table, column in ((INTERMEDIATE_VALUES, "step"), (EPOCHS, "epoch")):
        later = (table.c.trial_id == trial_id) & (table.c[column] >= first_epoch)
        connection.execute(delete(table).where(later))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # Optuna's columns hold naive UTC
