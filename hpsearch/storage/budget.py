"""Budgets: how many trials may still be started, decided in the transaction that starts them.

A budget decides when trials begin and cuts none short: what runs when it is used up trains to its end. The numbers of
trials and of epochs are exact, because a trial reserves itself and all its epochs before it begins; hours and a target
value are noticed when the next trial would begin. A trial that was given back has begun: it goes on all the same.
"""

from dataclasses import dataclass

from optuna.trial import TrialState
from sqlalchemy import Connection, case, func, insert, select, update

from hpsearch.sections import Budget
from hpsearch.storage.leases import clock, now
from hpsearch.storage.tables import CONTROL, LEASES, TRIALS, VALUES

# The states of a study that people set (CONTROL.state).
RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"


@dataclass(frozen=True)
class Plan:
    """What a study may use: its file's budget, the epochs of its longest trial, and whether high values are good.

    With `created`, whoever takes trials makes sure that the study is still the one created then.
    """

    budget: Budget
    max_epochs: int
    maximize: bool
    created: str = ""


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
        reserved, num_given_back = _epochs(connection, study_id, plan.max_epochs)
        fitting = (budget.epochs - reserved) // plan.max_epochs + num_given_back
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


def _epochs(connection: Connection, study_id: int, max_epochs: int) -> tuple[int, int]:
    """Epochs recorded, with all that trials may still need that run or were given back; the number of the latter."""
    given_back = TRIALS.c.state == TrialState.WAITING  # those that never ran have no lease
    reserved = case((given_back | (TRIALS.c.state == TrialState.RUNNING), max_epochs), else_=LEASES.c.epoch)
    columns = (func.coalesce(func.sum(reserved), 0), func.coalesce(func.sum(case((given_back, 1), else_=0)), 0))
    joined = select(*columns).select_from(LEASES).join(TRIALS, TRIALS.c.trial_id == LEASES.c.trial_id)
    epochs, num_given_back = connection.execute(joined.where(TRIALS.c.study_id == study_id)).one()
    return int(epochs), int(num_given_back)


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
