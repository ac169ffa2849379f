"""Studies in the database: create one from its specification, load it, count its trials."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, select, true
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.orm import Session

from hpsearch.errors import StorageError, StudyFileError
from hpsearch.spec import RESTORE, STORED, StudySpec
from hpsearch.storage import budget, leases
from hpsearch.storage.open import Database
from hpsearch.storage.tables import CONTROL, STUDIES, TRIALS

SPEC_KEY = "hpsearch:spec"  # the study's user attribute that holds its specification as JSON
CREATED_KEY = "hpsearch:created"  # when, in UTC, ISO 8601
DATA_KEY = "hpsearch:data"  # which images its trials train on; see `pinned.py`
RECIPE_KEY = "hpsearch:recipe"  # trial attribute: every hyperparameter that the trial trained with
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
METRIC_NAMES_KEY = "study:metric_names"  # Optuna's own key: the dashboard labels the objective with it


@dataclass(frozen=True)
class LoadedStudy:
    """A study of the database with its specification; `optuna_study` has no sampler and no pruner of its own.

    When it was `created` tells two studies of one name apart, and of one id.
    """

    name: str
    study_id: int
    spec: StudySpec
    optuna_study: optuna.Study
    created: str

    @property
    def plan(self) -> budget.Plan:
        """What the study may use."""
        spec = self.spec
        own = tuple(spec.recipe({}, 0, 0, number).epochs for number in range(len(spec.candidates)))
        searched = spec.space.get("epochs")
        return budget.Plan(spec.budget, spec.max_epochs, spec.objective.maximize, self.created, searched, own)


@dataclass(frozen=True)
class Standing:
    """How many trials have ended, of how many, and the best of them (None before the first)."""

    finished: int
    max_trials: int
    best_number: int | None
    best_value: float | None


@dataclass(frozen=True)
class Progress:
    """How far a study is: trials by state, what may still start, the best finished trial (None before the first)."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int
    abandoned: int  # running ones whose lease has run out
    max_trials: int
    state: str  # what people have set: budget.RUNNING, PAUSED or STOPPED
    startable: int  # trials that may start now
    reason: str  # why no more than those
    best_number: int | None
    best_value: float | None

    @property
    def finished(self) -> int:
        """Trials that have ended, in whatever way."""
        return self.complete + self.pruned + self.failed

    @property
    def done(self) -> bool:
        """Whether all that the budget allows has ended."""
        return self.state == budget.RUNNING and not self.startable and not self.running

    @property
    def word(self) -> str:
        """The study's state in a word or two, for a person."""
        if self.done:
            return "finished"
        if self.state != budget.RUNNING:
            return self.state
        return "running" if self.running > self.abandoned else "waiting for workers"

    @property
    def taken_up(self) -> str:
        """Who goes on with abandoned trials, for a person."""
        if self.state == budget.RUNNING:
            return "the next worker takes them"
        return "a worker takes them after hpsearch resume"

    @property
    def unfinished(self) -> bool:
        """Whether more is to come: trials run or may start, or wait until it is resumed; not once it is stopped."""
        paused = self.state == budget.PAUSED and self.finished < self.max_trials
        return bool(self.running or self.startable or paused)


def create_study(
    database: Database,
    spec: StudySpec,
    name: str,
    max_trials: int | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Record the study, its known good configurations and further `attributes`, all in one transaction.

    `max_trials` is the number of trials that it can have, if that is less than its budget says.

    Raises:
        StorageError: the name is taken.
    """
    attributes = {SPEC_KEY: spec.to_json(), CREATED_KEY: datetime.now(UTC).isoformat(), **(attributes or {})}
    direction = StudyDirection.MAXIMIZE if spec.objective.maximize else StudyDirection.MINIMIZE
    study = models.StudyModel(
        study_name=name,
        directions=[models.StudyDirectionModel(objective=0, direction=direction)],
        user_attributes=[
            models.StudyUserAttributeModel(key=key, value_json=json.dumps(value)) for key, value in attributes.items()
        ],
        system_attributes=[
            models.StudySystemAttributeModel(key=METRIC_NAMES_KEY, value_json=json.dumps([spec.objective.metric]))
        ],
        trials=[_waiting_trial(number, params) for number, params in enumerate(spec.first)],
    )
    try:
        with Session(database.engine) as session, session.begin():
            session.add(study)
            session.flush()
            limit = spec.budget.trials if max_trials is None else max_trials
            budget.open_account(session.connection(), int(study.study_id), limit)
    except IntegrityError as error:
        raise StorageError(
            f"study {name!r} exists already: continue it with `hpsearch worker {name}`, "
            "or create another one with --study-name"
        ) from error


def load_study(database: Database, name: str) -> LoadedStudy:
    """The study called `name`.

    Raises:
        StorageError: there is none, or it was not created by hpsearch.
        StudyFileError: its record is damaged, or was made by rules that have changed since.
    """
    try:
        study = optuna.load_study(
            study_name=name,
            storage=database.storage,
            sampler=optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.NopPruner(),
        )
    except KeyError as error:
        known = study_names(database)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it holds {', '.join(known) or 'none'};"
        raise StorageError(
            f"study {name!r} is not in this storage: {hint} create it with `hpsearch create-study`"
        ) from error
    try:
        attributes = study.user_attrs
    except ValueError as error:  # no JSON
        raise StudyFileError([f"{STORED}: its attributes are damaged ({error}); {RESTORE}"]) from error
    if SPEC_KEY not in attributes:
        raise StorageError(f"study {name!r} was not created by hpsearch: create one with `hpsearch create-study`")
    spec = StudySpec.from_json(attributes[SPEC_KEY])
    return LoadedStudy(name, study._study_id, spec, study, str(attributes.get(CREATED_KEY, "")))


def study_names(database: Database) -> list[str]:
    """All studies, the oldest first."""
    with database.engine.connect() as connection:
        return list(connection.scalars(select(STUDIES.c.study_name).order_by(STUDIES.c.study_id)))


def progress(database: Database, study: LoadedStudy) -> Progress:
    """Count the study's trials and find the best one; a few statements, whatever the number of trials.

    Raises:
        StorageError: the study has been deleted.
    """
    of_study = TRIALS.c.study_id == study.study_id
    values = models.TrialValueModel.__table__
    column = values.c.value
    best = column.desc() if study.spec.objective.maximize else column.asc()
    with _there(database, study), database.statements() as connection:
        by_state = select(TRIALS.c.state, func.count()).where(of_study).group_by(TRIALS.c.state)
        counts: dict[TrialState, int] = {state: n for state, n in connection.execute(by_state)}  # noqa: C416 -- a Row is no pair to dict()
        abandoned = leases.count_expired(connection, study.study_id)
        allowed = budget.allowance(connection, study.study_id, study.plan)
        of_control = CONTROL.c.study_id == study.study_id
        max_trials = connection.scalars(select(CONTROL.c.max_trials).where(of_control)).one()
        first = connection.execute(
            select(TRIALS.c.number, column)
            .join(values, values.c.trial_id == TRIALS.c.trial_id)
            .where(of_study, TRIALS.c.state == TrialState.COMPLETE, column.is_not(None))  # NULL: infinite, by others
            .order_by(best, TRIALS.c.number)
            .limit(1)
        ).one_or_none()
    return Progress(
        complete=counts.get(TrialState.COMPLETE, 0),
        pruned=counts.get(TrialState.PRUNED, 0),
        failed=counts.get(TrialState.FAIL, 0),
        running=counts.get(TrialState.RUNNING, 0),
        waiting=counts.get(TrialState.WAITING, 0),
        abandoned=abandoned,
        max_trials=max_trials,
        state=allowed.state,
        startable=allowed.num_trials,
        reason=allowed.reason,
        best_number=first[0] if first else None,
        best_value=first[1] if first else None,
    )


def standing(database: Database, study: LoadedStudy) -> Standing:
    """As far as `progress` says it, in one statement.

    Raises:
        StorageError: the study has been deleted.
    """
    of_study = TRIALS.c.study_id == study.study_id
    ended = select(func.count()).where(of_study, TRIALS.c.state.in_(FINISHED)).scalar_subquery()
    table = models.TrialValueModel.__table__
    order = table.c.value.desc() if study.plan.maximize else table.c.value.asc()
    best = select(TRIALS.c.number, table.c.value).join(table, table.c.trial_id == TRIALS.c.trial_id)
    best = best.where(of_study, TRIALS.c.state == TrialState.COMPLETE, table.c.value.is_not(None))
    best = best.order_by(order, TRIALS.c.number).limit(1)
    first = best.subquery()
    row = select(ended, CONTROL.c.max_trials, first.c.number, first.c.value)
    row = row.select_from(CONTROL).outerjoin(first, true()).where(CONTROL.c.study_id == study.study_id)
    with _there(database, study), database.statements() as connection:
        return Standing(*connection.execute(row).one())


@contextmanager
def _there(database: Database, study: LoadedStudy) -> Iterator[None]:
    """A block that reads the one row of a study, which anybody may delete."""
    try:
        yield
    except NoResultFound as error:
        if study.name not in study_names(database):
            raise StorageError(f"study {study.name} has been deleted meanwhile: create it again") from error
        raise StorageError(
            f"study {study.name}: its row of control is missing; `hpsearch fsck {study.name} --repair` puts it back"
        ) from error


def ranked(study: LoadedStudy) -> list[FrozenTrial]:
    """The completed trials, the best first; others can record an infinite value, which is none."""
    complete = study.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    valued = [trial for trial in complete if trial.value is not None and math.isfinite(trial.value)]
    sign = -1.0 if study.spec.objective.maximize else 1.0
    return sorted(valued, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def recorded_recipe(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial trained with, by its user attributes; empty if that is not recorded, or damaged."""
    recipe = attributes.get(RECIPE_KEY)
    return recipe if isinstance(recipe, dict) else {}


def _waiting_trial(number: int, params: Mapping[str, object]) -> models.TrialModel:
    fixed = models.TrialSystemAttributeModel(key="fixed_params", value_json=json.dumps(dict(params)))
    return models.TrialModel(number=number, state=TrialState.WAITING, system_attributes=[fixed])
