"""What the pages show, read in bulk: a few statements for each, whatever the number of trials."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, func, select

from hpsearch.pictures import ARTIFACT_KEY
from hpsearch.space import Space, recorded_name
from hpsearch.storage import leases, snapshot
from hpsearch.storage.ledger import REASON_KEY, TRACEBACK_KEY
from hpsearch.storage.studies import CREATED_KEY, RECIPE_KEY
from hpsearch.storage.tables import (
    CONTROL,
    EPOCHS,
    EVENTS,
    LEASES,
    PARAMS,
    STUDIES,
    STUDY_USER_ATTRIBUTES,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    VALUES,
)

ENDED = ("COMPLETE", "PRUNED", "FAIL")


class TrialRow(NamedTuple):
    """One trial as the database has it; `epoch` is the last recorded one, `seconds` the device time spent on it."""

    trial_id: int
    number: int
    state: str
    value: float | None
    epoch: int
    seconds: float
    owner: str | None
    owners: int  # how many workers have had it
    crashes: int
    abandoned: bool = False  # whether its lease has run out

    @property
    def ended(self) -> bool:
        """Whether nobody will train it any more."""
        return self.state in ENDED


class Listed(NamedTuple):
    """A study of the database; `created` is empty if hpsearch did not make it."""

    study_id: int
    name: str
    created: str

    @property
    def maker(self) -> str:
        """Who made it, if it cannot be loaded."""
        return "made by another version of hpsearch, or damaged" if self.created else "not made by hpsearch"


def studies(connection: Connection) -> list[Listed]:
    """All studies, the newest first."""
    created = STUDY_USER_ATTRIBUTES
    joined = select(STUDIES.c.study_id, STUDIES.c.study_name, func.coalesce(created.c.value_json, "")).outerjoin(
        created, (created.c.study_id == STUDIES.c.study_id) & (created.c.key == CREATED_KEY)
    )
    return [Listed(*row) for row in connection.execute(joined.order_by(STUDIES.c.study_id.desc()))]


def trials(connection: Connection, study_id: int, number: int | None = None) -> list[TrialRow]:
    """Every trial of the study, by number; or the one of that number alone, if there is one."""
    columns = (TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, VALUES.c.value, VALUES.c.value_type)
    lease = (LEASES.c.epoch, LEASES.c.seconds, LEASES.c.owner, LEASES.c.token, LEASES.c.crashes)
    expired = (TRIALS.c.state == TrialState.RUNNING) & (LEASES.c.expires < leases.clock(connection))
    joined = select(*columns, *lease, expired).outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
    joined = joined.outerjoin(VALUES, (VALUES.c.trial_id == TRIALS.c.trial_id) & (VALUES.c.objective == 0))
    joined = joined.where(TRIALS.c.study_id == study_id).order_by(TRIALS.c.number)
    if number is not None:
        joined = joined.where(TRIALS.c.number == number)
    back = models.TrialValueModel.stored_repr_to_value
    return [
        TrialRow(i, n, state.name, kind and back(value, kind), epoch or 0, s or 0.0, o, t or 0, c or 0, bool(gone))
        for i, n, state, value, kind, epoch, s, o, t, c, gone in connection.execute(joined)
    ]


def epochs(connection: Connection, trial_ids: Iterable[int], names: Sequence[str]) -> dict[int, list[tuple[Any, ...]]]:
    """(epoch, *metrics) of these trials, in order; a metric that was not finite is None."""
    found: dict[int, list[tuple[Any, ...]]] = {}
    columns = [EPOCHS.c[name] for name in names]
    for ids in snapshot.batches(trial_ids):
        statement = select(EPOCHS.c.trial_id, EPOCHS.c.epoch, *columns).where(EPOCHS.c.trial_id.in_(ids))
        for trial_id, *row in connection.execute(statement.order_by(EPOCHS.c.trial_id, EPOCHS.c.epoch)):
            found.setdefault(trial_id, []).append(tuple(row))
    return found


def last_epochs(connection: Connection, trial_ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The last recorded epoch of these trials, with every metric."""
    found: dict[int, dict[str, Any]] = {}
    for ids in snapshot.batches(trial_ids):
        last = (LEASES.c.trial_id == EPOCHS.c.trial_id) & (LEASES.c.epoch == EPOCHS.c.epoch)
        for row in connection.execute(select(EPOCHS).join(LEASES, last).where(EPOCHS.c.trial_id.in_(ids))):
            found[row.trial_id] = dict(row._mapping)
    return found


def recipes(connection: Connection, trial_ids: Iterable[int], space: Space) -> dict[int, dict[str, Any]]:
    """What these trials of one study train with, but for the hyperparameters that their conditions exclude.

    A recipe has a value for every hyperparameter, which says nothing where it is not used: the momentum of AdamW.
    """
    found: dict[int, dict[str, Any]] = {}
    for ids in snapshot.batches(trial_ids):
        known = snapshot.user_attribute(connection, RECIPE_KEY, TRIALS.c.trial_id.in_(ids))
        pairs = select(PARAMS.c.trial_id, PARAMS.c.param_name).where(PARAMS.c.trial_id.in_(ids))
        drawn = {tuple(pair) for pair in connection.execute(pairs)}
        for trial_id, recipe in known.items():
            if not isinstance(recipe, dict):  # damaged
                continue
            without = {name for name, one in space.items() if (trial_id, recorded_name(name, one)) not in drawn}
            found[trial_id] = {name: value for name, value in recipe.items() if name not in without}
    return found


def endings(connection: Connection, trial_ids: Iterable[int]) -> dict[int, tuple[str, str]]:
    """Why these trials ended before their last epoch, and the traceback of an exception; both may be empty."""
    of_them = TRIALS.c.trial_id.in_(list(trial_ids))
    reasons = snapshot.user_attribute(connection, REASON_KEY, of_them)
    traces = snapshot.user_attribute(connection, TRACEBACK_KEY, of_them)
    return {trial_id: (reasons.get(trial_id, ""), traces.get(trial_id, "")) for trial_id in reasons | traces}


def artifacts(connection: Connection, trial_id: int) -> dict[str, str]:
    """The trial's files, as its worker recorded them: file name to id."""
    table, key = SYSTEM_ATTRIBUTES, SYSTEM_ATTRIBUTES.c.key
    of_trial = (table.c.trial_id == trial_id) & key.startswith(ARTIFACT_KEY)
    found = {}
    for text in connection.scalars(select(table.c.value_json).where(of_trial)):
        known = json.loads(json.loads(text) or "null") or {}  # null: it was deleted
        found[str(known.get("filename"))] = str(known.get("artifact_id"))
    return found


def times(connection: Connection, trial_id: int) -> tuple[Any, Any]:
    """When the trial began and ended, in UTC."""
    columns = (TRIALS.c.datetime_start, TRIALS.c.datetime_complete)
    start, end = connection.execute(select(*columns).where(TRIALS.c.trial_id == trial_id)).one()
    return start, end


def trial_events(connection: Connection, trial_id: int) -> list[dict[str, Any]]:
    """What happened to one trial, the oldest first."""
    columns = (EVENTS.c.at, EVENTS.c.kind, EVENTS.c.text)
    rows = connection.execute(select(*columns).where(EVENTS.c.trial_id == trial_id).order_by(EVENTS.c.event_id))
    return [dict(row._mapping) for row in rows]


def hours_since_start(connection: Connection, study_id: int) -> float | None:
    """How long ago the study's first trial began, by the database's clock; None before it."""
    first = connection.scalar(select(CONTROL.c.started).where(CONTROL.c.study_id == study_id))
    return None if first is None else (leases.now(connection) - first) / 3600
