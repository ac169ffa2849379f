"""Budgets: how many trials may still be started, decided in the transaction that starts them.

A budget decides when trials begin and cuts none short: what runs when it is used up trains to its end. The numbers of
trials and of epochs are exact, because a trial reserves itself and all its epochs before it begins (the most that a
trial may have, until its own number is known); hours and a target value are noticed when the next trial would begin. A
trial that was given back has begun: it goes on all the same.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, case, func, insert, select, update

from hpsearch.sections import Budget
from hpsearch.space import Choice, Parameter
from hpsearch.storage.leases import clock, now
from hpsearch.storage.tables import CONTROL, LEASES, PARAMS, SYSTEM_ATTRIBUTES, TRIALS, VALUES

# The states of a study that people set (CONTROL.state).
RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"


@dataclass(frozen=True)
class Plan:
    """What a study may use: its file's budget, the epochs of its longest trial, and whether high values are good.

    With `created`, whoever takes trials makes sure that the study is still the one created then. `epochs` is the
    hyperparameter, if it is searched; `own` are those of each candidate.
    """

    budget: Budget
    max_epochs: int
    maximize: bool
    created: str = ""
    epochs: Parameter | None = None
    own: tuple[int, ...] = ()

    def needed(self, number: int, drawn: float | None = None, enqueued: str | None = None) -> int:
        """The epochs of a trial: its candidate's, as drawn (in Optuna's terms), as enqueued (JSON), or the most."""
        if self.own:
            return self.own[number % len(self.own)]
        if self.epochs is not None and drawn is not None:
            return int(self.epochs.choices[int(drawn)] if isinstance(self.epochs, Choice) else drawn)
        with suppress(ValueError):  # else it is damaged
            given = json.loads(enqueued or "{}")
            value: Any = given.get("epochs") if isinstance(given, Mapping) else None
            if self.epochs is not None and self.epochs.contains(value):
                return int(value)
        return self.max_epochs


@dataclass(frozen=True)
class Allowance:
    """How many trials may be started now, and what forbids more; `state` is what people set.

    `begun` is whether the study's clock runs already.
    """

    num_trials: int
    reason: str
    state: str
    begun: bool = True


def open_account(connection: Connection, study_id: int, max_trials: int) -> None:
    """The row of a new study."""
    connection.execute(insert(CONTROL).values(study_id=study_id, state=RUNNING, max_trials=max_trials))


def allowance(connection: Connection, study_id: int, plan: Plan) -> Allowance:
    """What may still be started; exact if the caller holds the study's lock."""
    control = connection.execute(select(CONTROL).where(CONTROL.c.study_id == study_id)).one()
    if control.state != RUNNING:
        return Allowance(0, f"it is {control.state}", control.state)
    of_study = TRIALS.c.study_id == study_id
    started = connection.scalars(select(func.count()).where(of_study, TRIALS.c.state != TrialState.WAITING)).one()
    left, reason = control.max_trials - started, f"all of its {control.max_trials} trials have been started"
    budget = plan.budget
    if budget.epochs is not None:
        fitting = _num_fitting(connection, study_id, plan, budget.epochs, control.max_trials)
        if fitting < left:
            left, reason = fitting, f"its budget of {budget.epochs} epochs has no room for another trial"
    if left > 0 and (used_up := _used_up(connection, study_id, plan, control.started)):
        left, reason = min(left, _num_begun(connection, study_id)), used_up
    return Allowance(max(0, left), reason, control.state, control.started is not None)


def note_start(connection: Connection, study_id: int) -> None:
    """Start the clock of the study with its first trial."""
    first = (CONTROL.c.study_id == study_id) & CONTROL.c.started.is_(None)
    connection.execute(update(CONTROL).where(first).values(started=clock(connection)))


def extend(connection: Connection, study_id: int, num_trials: int) -> int:
    """Allow `num_trials` more; the new number."""
    of_study = CONTROL.c.study_id == study_id
    connection.execute(update(CONTROL).where(of_study).values(max_trials=CONTROL.c.max_trials + num_trials))
    return int(connection.scalars(select(CONTROL.c.max_trials).where(of_study)).one())


def _num_fitting(connection: Connection, study_id: int, plan: Plan, epochs: int, max_trials: int) -> int:
    """How many trials have room in so many epochs, in the order in which they start; those given back have it already.

    Trials that end between the two statements count twice, not never.
    """
    of_study = TRIALS.c.study_id == study_id
    is_open = TRIALS.c.state.in_((TrialState.RUNNING, TrialState.WAITING))
    drawn = (PARAMS.c.trial_id == TRIALS.c.trial_id) & (PARAMS.c.param_name == "epochs")
    key, value = SYSTEM_ATTRIBUTES.c.key, SYSTEM_ATTRIBUTES.c.value_json
    enqueued = (SYSTEM_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id) & (key == "fixed_params")
    columns = (TRIALS.c.state, LEASES.c.trial_id, TRIALS.c.number, PARAMS.c.param_value, value)
    rows = select(*columns).select_from(TRIALS).outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
    rows = rows.outerjoin(PARAMS, drawn).outerjoin(SYSTEM_ATTRIBUTES, enqueued)
    queue: list[int] = []
    left, num = epochs, 0
    for state, leased, *which in connection.execute(rows.where(of_study, is_open).order_by(TRIALS.c.number)):
        needed, waiting = plan.needed(*which), state == TrialState.WAITING
        if leased is not None:
            left, num = left - needed, num + waiting
        elif waiting:  # those that never ran have no lease
            queue.append(needed)
    sums = select(func.coalesce(func.sum(case((is_open, 0), else_=LEASES.c.epoch)), 0), func.count())
    sums = sums.select_from(TRIALS).outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
    recorded, count = connection.execute(sums.where(of_study)).one()
    left -= int(recorded)
    queue += [plan.needed(number) for number in range(count, max_trials)] if plan.own else []
    for needed in queue:
        if needed > left:
            return num
        left, num = left - needed, num + 1
    return num + max(0, left) // plan.max_epochs


def _num_begun(connection: Connection, study_id: int) -> int:
    """Trials that were given back after an epoch or more; `ledger.take` takes them before any other."""
    joined = select(func.count()).select_from(LEASES).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    waiting = (TRIALS.c.study_id == study_id) & (TRIALS.c.state == TrialState.WAITING)
    return connection.scalars(joined.where(waiting, LEASES.c.epoch > 0)).one()


def _used_up(connection: Connection, study_id: int, plan: Plan, started: float | None) -> str:
    """Which of the budgets without a number of trials is used up; empty if none is."""
    budget = plan.budget
    if budget.gpu_hours is not None:
        spent = select(func.coalesce(func.sum(LEASES.c.seconds), 0.0)).join(
            TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id
        )
        if connection.scalars(spent.where(TRIALS.c.study_id == study_id)).one() >= budget.gpu_hours * 3600:
            return f"its {budget.gpu_hours:g} GPU-hours are used"
    hours = budget.wall_clock_hours
    if hours is not None and started is not None and now(connection) - started >= hours * 3600:
        return f"its {hours:g} hours of wall-clock time are over"
    if budget.target is not None:
        best = func.max(VALUES.c.value) if plan.maximize else func.min(VALUES.c.value)
        joined = select(best).join(TRIALS, TRIALS.c.trial_id == VALUES.c.trial_id)
        value = connection.scalar(joined.where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE))
        if value is not None and (value >= budget.target if plan.maximize else value <= budget.target):
            return f"a trial has reached the target {budget.target:g}"
    return ""
