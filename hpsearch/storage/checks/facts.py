"""What a database says about every trial of a study, in a dozen statements, for `fsck.py` to check.

Nothing is taken for granted: what cannot be read, as nobody who wrote by the rules would have written it, is None.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, Table, and_, func, or_, select

from hpsearch.recipe import Recipe
from hpsearch.storage import leases, snapshot
from hpsearch.storage.ledger import REASON_KEY
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy
from hpsearch.storage.tables import (
    CONFIGURATIONS,
    CONTROL,
    EPOCHS,
    INTERMEDIATE_VALUES,
    LEASES,
    PARAMS,
    TRIALS,
    USER_ATTRIBUTES,
)

_ValueType = models.TrialIntermediateValueModel.TrialIntermediateValueType


@dataclass(frozen=True)
class Span:
    """The epochs of a trial in one table: how many, the first, the last; all 0 if there is none."""

    count: int = 0
    first: int = 0
    last: int = 0

    @property
    def whole(self) -> bool:
        """Whether they are 1 to n; each is there once, by the table's key."""
        return self.last == self.count and self.first == min(1, self.count)


@dataclass(frozen=True)
class Trial:
    """One trial. `lease` is its row there; `live` says that somebody trains it now."""

    trial_id: int
    number: int
    state: TrialState
    lease: Any | None
    live: bool
    values: Span = Span()
    epochs: Span = Span()
    agree: bool = True  # the two tables about the epochs that both have
    last_value: float = math.nan  # Optuna's intermediate value of the last epoch
    objective: float | None = None
    params: Mapping[str, Any] | None = field(default_factory=dict)  # None: unreadable
    has_recipe: bool = False
    recipe: Recipe | None = None  # None although has_recipe: unreadable
    reason: bool = False  # why it ended is recorded
    ordered: bool = False  # a person chose its configuration, or a part of it
    infeasible: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state.is_finished()

    @property
    def curve_is_whole(self) -> bool:
        """Whether both tables have epochs 1 to n, n not beyond the recipe, and say the same."""
        last = self.recipe.epochs if self.recipe is not None else self.values.last
        return self.values == self.epochs and self.values.whole and self.agree and self.values.last <= last

    @property
    def foreign(self) -> bool:
        """Whether nothing shows that hpsearch ever had it."""
        ours = self.lease is not None or self.has_recipe or self.epochs.count or self.reason
        return self.state != TrialState.WAITING and not ours


@dataclass(frozen=True)
class Facts:
    """One study at one moment: its trials by number, its row of control, and digest -> trial id."""

    study: LoadedStudy
    trials: tuple[Trial, ...]
    control: Any | None
    configurations: Mapping[str, int]


def read(connection: Connection, study: LoadedStudy) -> Facts:
    """Everything about the study; consistent if the connection's transaction is."""
    of = TRIALS.c.study_id == study.study_id
    now = leases.now(connection)
    columns = (TRIALS.c.trial_id, TRIALS.c.number, TRIALS.c.state, *(c for c in LEASES.c if c.name != "trial_id"))
    rows = connection.execute(
        select(*columns, LEASES.c.trial_id.label("lease"))
        .outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
        .where(of)
        .order_by(TRIALS.c.number, TRIALS.c.trial_id)
    ).all()
    more = _Columns(connection, study, of)
    trials = tuple(
        Trial(
            row.trial_id,
            row.number,
            row.state,
            lease := row if row.lease is not None else None,
            lease is not None and row.state == TrialState.RUNNING and row.expires >= now,
            **more.of(row.trial_id),
        )
        for row in rows
    )
    known = select(CONFIGURATIONS.c.digest, CONFIGURATIONS.c.trial_id)
    pairs = connection.execute(known.where(CONFIGURATIONS.c.study_id == study.study_id))
    control = connection.execute(select(CONTROL).where(CONTROL.c.study_id == study.study_id)).one_or_none()
    return Facts(study, trials, control, {digest: trial_id for digest, trial_id in pairs})  # noqa: C416 -- Rows


def curves(
    connection: Connection, trial_ids: Iterable[int], metric: str
) -> dict[int, tuple[dict[int, float], dict[int, float | None]]]:
    """For each trial: Optuna's intermediate values, and the objective's column of the table of epochs, by epoch."""
    found: dict[int, tuple[dict[int, float], dict[int, float | None]]] = {}
    for ids in snapshot.batches(trial_ids):
        found |= {trial_id: ({}, {}) for trial_id in ids}
        for trial_id, step, value in snapshot.values(connection, TRIALS.c.trial_id.in_(ids)):
            found[trial_id][0][step] = value
        columns = select(EPOCHS.c.trial_id, EPOCHS.c.epoch, EPOCHS.c[metric]).where(EPOCHS.c.trial_id.in_(ids))
        for trial_id, epoch, measured in connection.execute(columns):
            found[trial_id][1][epoch] = measured
    return found


class _Columns:
    """What other tables say about the trials, each read at once."""

    def __init__(self, connection: Connection, study: LoadedStudy, of: Any) -> None:
        self._values = _spans(connection, INTERMEDIATE_VALUES, "step", of)
        self._epochs = _spans(connection, EPOCHS, "epoch", of)
        self._disagreeing = _disagreeing(connection, study.spec.objective.metric, of)
        self._last = _last_values(connection, of)
        self._objectives = snapshot.objectives(connection, of)
        self._params = _params(connection, of)
        self._recipes = _texts(connection, RECIPE_KEY, of)
        self._reasons = _texts(connection, REASON_KEY, of)
        self._notes = snapshot.sampler_attributes(connection, of)

    def of(self, trial_id: int) -> dict[str, Any]:
        """The fields of Trial for one of them."""
        notes = self._notes.get(trial_id, {})
        constraints = [value for key, value in notes.items() if key.startswith("constraints")]
        return {
            "values": self._values.get(trial_id, Span()),
            "epochs": self._epochs.get(trial_id, Span()),
            "agree": trial_id not in self._disagreeing,
            "last_value": self._last.get(trial_id, math.nan),
            "objective": next(iter(self._objectives.get(trial_id, ())), None),
            "params": self._params.get(trial_id, {}),
            "has_recipe": trial_id in self._recipes,
            "recipe": _recipe(self._recipes.get(trial_id)),
            "reason": trial_id in self._reasons,
            "ordered": bool(notes.get("fixed_params")),
            "infeasible": any(isinstance(value, float | int) and value > 0 for value in constraints),
        }


def _spans(connection: Connection, table: Table, column: str, of: Any) -> dict[int, Span]:
    step = table.c[column]
    counted = select(table.c.trial_id, func.count(), func.min(step), func.max(step)).group_by(table.c.trial_id)
    joined = counted.join(TRIALS, TRIALS.c.trial_id == table.c.trial_id).where(of)
    return {trial_id: Span(count, first, last) for trial_id, count, first, last in connection.execute(joined)}


def _disagreeing(connection: Connection, metric: str, of: Any) -> set[int]:
    """Trials with an epoch whose value is one thing here and another there.

    NaN stands for an epoch that diverged, whatever was measured; what is infinite is NULL among the epochs.
    """
    value, kind, measured = (
        INTERMEDIATE_VALUES.c.intermediate_value,
        INTERMEDIATE_VALUES.c.intermediate_value_type,
        EPOCHS.c[metric],
    )
    finite = and_(kind == _ValueType.FINITE, or_(measured.is_(None), measured != value))
    infinite = and_(kind.in_([_ValueType.INF_POS, _ValueType.INF_NEG]), measured.is_not(None))
    both = and_(EPOCHS.c.trial_id == INTERMEDIATE_VALUES.c.trial_id, EPOCHS.c.epoch == INTERMEDIATE_VALUES.c.step)
    joined = select(EPOCHS.c.trial_id).distinct().join(INTERMEDIATE_VALUES, both)
    joined = joined.join(TRIALS, TRIALS.c.trial_id == EPOCHS.c.trial_id).where(of, or_(finite, infinite))
    return set(connection.scalars(joined))


def _last_values(connection: Connection, of: Any) -> dict[int, float]:
    table = INTERMEDIATE_VALUES.c
    last = select(table.trial_id, func.max(table.step).label("step")).group_by(table.trial_id)
    newest = last.join(TRIALS, TRIALS.c.trial_id == table.trial_id).where(of).subquery()
    columns = select(table.trial_id, table.intermediate_value, table.intermediate_value_type)
    joined = columns.join(newest, and_(newest.c.trial_id == table.trial_id, newest.c.step == table.step))
    back = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    return {trial_id: back(value, kind) for trial_id, value, kind in connection.execute(joined)}


def _params(connection: Connection, of: Any) -> dict[int, dict[str, Any] | None]:
    """As `snapshot.params`, for rows that may be damaged."""
    known: dict[str, BaseDistribution] = {}
    found: dict[int, dict[str, Any] | None] = {}
    columns = (PARAMS.c.trial_id, PARAMS.c.param_name, PARAMS.c.param_value, PARAMS.c.distribution_json)
    statement = select(*columns).join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id).where(of)
    for trial_id, name, value, text in connection.execute(statement):
        try:
            distribution = known.get(text) or known.setdefault(text, json_to_distribution(text))
            params = found.setdefault(trial_id, {})
            if params is not None:
                params[name] = distribution.to_external_repr(value)
        except (ValueError, KeyError, TypeError, IndexError):
            found[trial_id] = None
    return found


def _texts(connection: Connection, key: str, of: Any) -> dict[int, str]:
    columns = select(USER_ATTRIBUTES.c.trial_id, USER_ATTRIBUTES.c.value_json)
    joined = columns.join(TRIALS, TRIALS.c.trial_id == USER_ATTRIBUTES.c.trial_id)
    rows = connection.execute(joined.where(of, USER_ATTRIBUTES.c.key == key))
    return {trial_id: text for trial_id, text in rows}  # noqa: C416 -- a Row is no pair to dict()


def _recipe(text: str | None) -> Recipe | None:
    try:
        return Recipe(**json.loads(text)) if text is not None else None
    except Exception:  # whatever is wrong with it, nobody can train it
        return None
