"""The ledger: what happens to trials, each event one transaction on Optuna's own tables.

What it writes reads back through Optuna's public API as if Optuna had written it. Every write to a trial is guarded
by `state = 'RUNNING'`, so a trial that was ended elsewhere is never touched again.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, delete, func, insert, select, update

from hpsearch.errors import StorageError
from hpsearch.storage.open import Database
from hpsearch.storage.tables import EPOCHS, INTERMEDIATE_VALUES, METRICS, STUDIES, TRIALS


def create_trial(database: Database, study_id: int, max_trials: int) -> int | None:
    """Start one trial of the study and return its id; None once `max_trials` have been started.

    The count and the new row are one transaction under the study's row lock, so any number of workers start exactly
    `max_trials`. A waiting trial (a known good configuration, or one that was given back) goes first.

    Raises:
        StorageError: the study has been deleted.
    """
    with database.engine.begin() as connection:
        _lock_study(connection, study_id)
        trial_id = _start_next(connection, study_id, max_trials)
    database.storage.get_all_trials(study_id, deepcopy=False)  # Optuna's cache refuses trials that it has not seen
    return trial_id


def report(database: Database, trial_id: int, epoch: int, value: float, metrics: Mapping[str, float]) -> bool:
    """Record one epoch: `value` as Optuna's intermediate value at step `epoch`, and the `metrics` of METRICS as a row.

    Returns False, and writes nothing, if the trial is no longer running.
    """
    stored, value_type = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    with database.engine.begin() as connection:
        if not _lock_running(connection, trial_id):
            return False
        _delete_epochs(connection, trial_id, epoch)  # an epoch trained again after a restart replaces itself
        connection.execute(
            insert(INTERMEDIATE_VALUES).values(
                trial_id=trial_id, step=epoch, intermediate_value=stored, intermediate_value_type=value_type
            )
        )
        finite = {name: metrics[name] for name in METRICS if math.isfinite(metrics[name])}
        connection.execute(insert(EPOCHS).values(trial_id=trial_id, epoch=epoch, **finite))
    return True


def release(database: Database, trial_id: int) -> bool:
    """Give an interrupted trial back: it waits, with its parameters, to be trained again from its first epoch.

    Returns False, and writes nothing, if the trial is no longer running.
    """
    with database.engine.begin() as connection:
        if not _lock_running(connection, trial_id):
            return False
        _delete_epochs(connection, trial_id, 0)
        row = {"state": TrialState.WAITING, "datetime_start": None}
        connection.execute(update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(row))
    return True


def epochs(database: Database, trial_id: int) -> list[dict[str, Any]]:
    """Every recorded epoch of a trial, in order; metrics that were not finite are None."""
    with database.engine.connect() as connection:
        rows = connection.execute(select(EPOCHS).where(EPOCHS.c.trial_id == trial_id).order_by(EPOCHS.c.epoch))
        return [{key: value for key, value in row._mapping.items() if key != "trial_id"} for row in rows]


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
    row = {"state": TrialState.RUNNING, "datetime_start": _now()}
    if trial_id is not None:
        connection.execute(update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(row))
        return trial_id
    number = connection.scalar(select(func.count()).where(of_study))
    row |= {"study_id": study_id, "number": number}
    return int(connection.scalars(insert(TRIALS).values(row).returning(TRIALS.c.trial_id)).one())


def _lock_running(connection: Connection, trial_id: int) -> bool:
    running = (TRIALS.c.trial_id == trial_id) & (TRIALS.c.state == TrialState.RUNNING)
    return connection.execute(update(TRIALS).where(running).values(state=TrialState.RUNNING)).rowcount == 1


def _delete_epochs(connection: Connection, trial_id: int, first_epoch: int) -> None:
    """Remove what was recorded at `first_epoch` and after it."""
    for table, column in ((INTERMEDIATE_VALUES, "step"), (EPOCHS, "epoch")):
        later = (table.c.trial_id == trial_id) & (table.c[column] >= first_epoch)
        connection.execute(delete(table).where(later))


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)  # Optuna's columns hold naive UTC
