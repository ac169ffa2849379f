"""What a study's trials look like now, read in bulk: a few statements, whatever the number of trials.

Optuna reads trials through its object mapper, one object for each row: 9 s and 740 MB for 10,000 trials.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import ColumnElement, Connection, Table, and_, or_, select

from hpsearch.storage import bulk
from hpsearch.storage.tables import (
    INTERMEDIATE_VALUES,
    LEASES,
    PARAMS,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
)

Params = tuple[dict[str, Any], dict[str, BaseDistribution]]

UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
MAX_IDS = 10_000  # in one statement; SQLite takes 32,766 parameters, PostgreSQL 65,535

_TRIAL = (TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, TRIALS.c.datetime_start, TRIALS.c.datetime_complete)


def open_trials(connection: Connection, study_id: int, first_number: int) -> Sequence[Any]:
    """Trials that have not ended, and all from `first_number` on, by number; with their leases' `token` and `epoch`."""
    wanted = or_(TRIALS.c.number >= first_number, TRIALS.c.state.in_(UNFINISHED))
    return rows(connection, and_(TRIALS.c.study_id == study_id, wanted))


def trials(connection: Connection, trial_ids: Iterable[int]) -> list[Any]:
    """These trials, as `open_trials` gives them."""
    return [
        row for ids in batches(trial_ids) for row in rows(connection, bulk.among(connection, TRIALS.c.trial_id, ids))
    ]


def rows(connection: Connection, of: ColumnElement[bool]) -> Sequence[Any]:
    """The trials that meet the condition, as `open_trials` gives them."""
    statement = select(*_TRIAL, LEASES.c.token, LEASES.c.epoch).outerjoin(
        LEASES, LEASES.c.trial_id == TRIALS.c.trial_id
    )
    return connection.execute(statement.where(of).order_by(TRIALS.c.number)).all()


def params(connection: Connection, of: ColumnElement[bool], known: dict[str, BaseDistribution]) -> dict[int, Params]:
    """Parameters and distributions of the trials that meet the condition; `known` shares them by their text."""
    columns = (PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)
    statement = select(*columns).join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id).where(of)
    found: dict[int, Params] = {}
    for trial_id, name, value, text in connection.execute(statement.order_by(PARAMS.c.param_id)):
        distribution = known.get(text)
        if distribution is None:
            distribution = known[text] = json_to_distribution(text)
        values, distributions = found.setdefault(trial_id, ({}, {}))
        values[name], distributions[name] = distribution.to_external_repr(value), distribution
    return found


def objectives(connection: Connection, of: ColumnElement[bool]) -> dict[int, list[float]]:
    """The final values of the trials that meet the condition and have some: hpsearch's have one."""
    columns = (VALUES.c.trial_id, VALUES.c.value, VALUES.c.value_type)
    statement = select(*columns).join(TRIALS, TRIALS.c.trial_id == VALUES.c.trial_id).where(of)
    back = models.TrialValueModel.stored_repr_to_value
    found: dict[int, list[float]] = {}
    for trial_id, value, kind in connection.execute(statement.order_by(VALUES.c.objective)):
        found.setdefault(trial_id, []).append(back(value, kind))
    return found


def values(
    connection: Connection, of: ColumnElement[bool], after: int | None = None, steps: Iterable[int] | None = None
) -> Iterator[tuple[int, int, float]]:
    """(trial id, epoch, value) of the trials that meet the condition, if given from the epoch after `after` on.

    If `steps` are given, only those epochs and the last one of each trial.
    """
    table = INTERMEDIATE_VALUES.c
    columns = (table.trial_id, table.step, table.intermediate_value, table.intermediate_value_type)
    statement = select(*columns).join(TRIALS, TRIALS.c.trial_id == table.trial_id).where(of)
    if after is not None:
        statement = statement.where(table.step > after)
    if steps is not None:
        statement = statement.outerjoin(LEASES, LEASES.c.trial_id == table.trial_id)
        statement = statement.where(or_(table.step.in_(sorted(steps)), table.step == LEASES.c.epoch))
    back = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    for trial_id, step, value, kind in connection.execute(statement.order_by(table.trial_id, table.step)):
        yield trial_id, step, back(value, kind)


def sampler_attributes(connection: Connection, of: ColumnElement[bool]) -> dict[int, dict[str, Any]]:
    """The system attributes that samplers look at: fixed parameters, constraints, and the generation of CMA-ES.

    Of running trials also what TPE drew and they did not need: it takes them to have that.
    """
    key = SYSTEM_ATTRIBUTES.c.key
    drawn = and_(key.startswith("tpe:relative_params", autoescape=True), TRIALS.c.state == TrialState.RUNNING)
    wanted = or_(key.in_(("fixed_params", "cma:generation")), key.startswith("constraints"), drawn)
    return attributes(connection, SYSTEM_ATTRIBUTES, and_(of, wanted))


def user_attribute(connection: Connection, key: str, of: ColumnElement[bool]) -> dict[int, Any]:
    """One user attribute of the trials that meet the condition and have it."""
    found = attributes(connection, USER_ATTRIBUTES, and_(of, USER_ATTRIBUTES.c.key == key))
    return {trial_id: own[key] for trial_id, own in found.items()}


def attributes(connection: Connection, table: Table, of: ColumnElement[bool]) -> dict[int, dict[str, Any]]:
    """The attributes of trials, in one of Optuna's two tables for them, that meet the condition."""
    columns = (table.c.trial_id, table.c.key, table.c.value_json)
    statement = select(*columns).join(TRIALS, TRIALS.c.trial_id == table.c.trial_id).where(of)
    found: dict[int, dict[str, Any]] = {}
    for trial_id, key, text in connection.execute(statement):
        found.setdefault(trial_id, {})[key] = json.loads(text)
    return found


def batches(trial_ids: Iterable[int]) -> Iterator[list[int]]:
    """Ids in portions that one statement takes."""
    ids = list(trial_ids)
    for start in range(0, len(ids), MAX_IDS):
        yield ids[start : start + MAX_IDS]
