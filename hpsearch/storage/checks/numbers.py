"""Promises about the study as a whole: trial numbers 0 to n-1, the budget, and a lease for whatever runs."""

import json
import math
from collections.abc import Iterator

from optuna.trial import TrialState
from sqlalchemy import insert, literal, select, update

from hpsearch.storage import budget, bulk
from hpsearch.storage.checks.facts import Facts, Trial
from hpsearch.storage.checks.findings import Finding, about
from hpsearch.storage.ledger import REASON_KEY
from hpsearch.storage.tables import CONTROL, LEASES, TRIALS, USER_ATTRIBUTES

LOST = "its record was missing when fsck looked: deleted past hpsearch"


def check_numbers(facts: Facts) -> Iterator[Finding]:
    """Each number from 0 on belongs to one trial. The next trial is numbered by the count: a gap makes a double."""
    rightful: dict[int, Trial] = {}
    for trial in sorted(facts.trials, key=lambda trial: (not trial.live, trial.trial_id)):
        if trial.number >= 0:
            rightful.setdefault(trial.number, trial)
    highest, count = max(rightful, default=-1), len(facts.trials)
    gaps = [number for number in range(highest) if number not in rightful]
    movers = [trial for trial in facts.trials if rightful.get(trial.number) is not trial]
    if len(gaps) - len(movers) > _room(facts):  # so many trials cannot have been lost: numbers were changed
        movers += [trial for number, trial in rightful.items() if number >= count]
        free, lost = [number for number in range(count) if number not in rightful], []
    else:
        free, lost = [*gaps, *range(highest + 1, highest + 1 + len(movers))], gaps[len(movers) :]
    for trial, number in zip(movers, free, strict=False):
        why = "there is a gap below it" if rightful.get(trial.number) is trial else "another trial has the same number"
        cure = (update(TRIALS).where(TRIALS.c.trial_id == trial.trial_id).values(number=number),)
        text = why if trial.number >= 0 else "its number is negative"
        yield about(trial, "number", text, cure, f"makes it trial {number}; its recipe stays")
    for number in lost:
        yield _gap(facts.study.study_id, number)


def _room(facts: Facts) -> float:
    """How many trials the budget would still have allowed."""
    started = sum(trial.state != TrialState.WAITING for trial in facts.trials)
    return math.inf if facts.control is None else facts.control.max_trials - started


def _gap(study_id: int, number: int) -> Finding:
    now = bulk.now()
    row = {"study_id": study_id, "number": number, "state": TrialState.FAIL}
    of_it = (TRIALS.c.study_id == study_id) & (TRIALS.c.number == number)
    reason = select(TRIALS.c.trial_id, literal(REASON_KEY), literal(json.dumps(LOST))).where(of_it)
    cure = (
        insert(TRIALS).values(**row, datetime_start=now, datetime_complete=now),
        insert(USER_ATTRIBUTES).from_select(["trial_id", "key", "value_json"], reason),
    )
    does = "records that it was lost, as FAIL with that reason and nothing else, so that no other trial gets its number"
    return Finding("number", "there is no trial of this number", number, cure=cure, does=does)


def check_budget(facts: Facts) -> Iterator[Finding]:
    """No more trials and epochs than the budget has."""
    spec = facts.study.spec
    started = sum(trial.state != TrialState.WAITING for trial in facts.trials)
    if facts.control is None:
        limit = max(spec.max_trials, started)
        row = {"study_id": facts.study.study_id, "state": budget.RUNNING, "max_trials": limit}
        does = f"makes it anew with {limit} trials, as the study file says, or as many as were started"
        yield Finding("budget", "its row of control is missing", cure=(insert(CONTROL).values(row),), does=does)
        return
    if facts.control.state not in (budget.RUNNING, budget.PAUSED, budget.STOPPED):
        why = f"nobody knows what was meant; say it with `hpsearch resume {facts.study.name}`, or pause, or stop"
        yield Finding("budget", f"its state is {facts.control.state!r}", why_not=why)
    if started > (limit := facts.control.max_trials):
        allows = f"`hpsearch extend {facts.study.name} --trials {started - limit}` allows it"
        text = f"{started} trials were started, its budget is {limit}"
        yield Finding("budget", text, why_not=f"what was trained is not deleted; {allows}")
    recorded = sum(trial.values.count for trial in facts.trials)
    if spec.budget.epochs is not None and recorded > spec.budget.epochs:
        text = f"{recorded} epochs are recorded, its budget is {spec.budget.epochs}"
        yield Finding("budget", text, why_not="what was trained is not deleted")


def check_leases(facts: Facts) -> Iterator[Finding]:
    """What runs has a lease, which knows the last epoch; else no worker would ever take it over."""
    for trial in facts.trials:
        if trial.foreign:
            yield _foreign(facts, trial)
        elif trial.lease is None and (trial.state == TrialState.RUNNING or trial.values.count):
            last = trial.values.last
            row = {"trial_id": trial.trial_id, "owner": "fsck", "token": 1, "expires": 0.0, "crashes": 0}
            yield about(
                trial,
                "lease",
                f"it is {trial.state.name} and has no lease",
                (insert(LEASES).values(**row, epoch=last, seconds=0.0),),
                f"gives it one that has run out, at epoch {last}; the device time spent on it is not known any more",
            )
        elif trial.lease is not None and trial.curve_is_whole and trial.lease.epoch != trial.values.last:
            believed = update(LEASES).where(LEASES.c.trial_id == trial.trial_id).values(epoch=trial.values.last)
            yield about(
                trial,
                "lease",
                f"its lease says that epoch {trial.lease.epoch} is the last, its curve ends with {trial.values.last}",
                (believed,),
                "believes the curve",
            )


def _foreign(facts: Facts, trial: Trial) -> Finding:
    text = f"it is {trial.state.name} and was not trained by hpsearch: no lease, no recipe"
    if trial.ended:
        return about(
            trial, "foreign", f"{text}; it counts against the budget, and samplers learn from it", damage=False
        )
    which = f"--study-name {facts.study.name} --trial-number {trial.number}"
    command = f"`optuna tell --storage URL {which} --state fail`"
    why = f"whoever started it may still train it, and no worker takes it over; {command} ends it"
    return about(trial, "foreign", text, why_not=why)
