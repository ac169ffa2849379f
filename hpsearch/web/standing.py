"""How a study stands: its state in a word, what of its budget is used, and how long the rest will take."""

from collections.abc import Sequence
from dataclasses import dataclass

from hpsearch.storage import budget
from hpsearch.storage.studies import LoadedStudy, Progress
from hpsearch.web.queries import TrialRow
from hpsearch.web.words import duration, metric, number

MIN_ENDED = 3  # trials, before a guess of the time left


@dataclass(frozen=True)
class Used:
    """One limit of the budget: what it limits, what is used of it, in words and as a share (None: no share)."""

    what: str
    used: str
    limit: str
    share: float | None


def state(now: Progress) -> str:
    """The study's state in a word or two."""
    if now.done:
        return "finished"
    if now.state != budget.RUNNING:
        return now.state
    return "running" if now.running - now.abandoned > 0 else "waiting for workers"


def seconds_left(trials: Sequence[TrialRow], now: Progress) -> float | None:
    """A guess from the device time of the trials that have ended, for as many at a time as run now.

    None if nothing runs, or too few have ended. Pauses do not spoil it: only time spent training counts.
    """
    ended = [trial.seconds for trial in trials if trial.ended]
    busy = now.running - now.abandoned
    if len(ended) < MIN_ENDED or busy <= 0:
        return None
    left = now.max_trials - len(ended)
    spent = sum(trial.seconds for trial in trials if trial.state == "RUNNING")
    return max(0.0, left * sum(ended) / len(ended) - spent) / busy


def limits(study: LoadedStudy, now: Progress, trials: Sequence[TrialRow], hours: float | None) -> list[Used]:
    """Every limit of the budget; `hours` since the first trial began, None before it."""
    given = study.spec.budget
    epochs, device_hours = sum(trial.epoch for trial in trials), sum(trial.seconds for trial in trials) / 3600
    rows = [Used("trials ended", f"{now.finished:,}", f"{now.max_trials:,}", now.finished / max(1, now.max_trials))]
    if given.epochs is not None:
        rows.append(Used("epochs", f"{epochs:,}", f"{given.epochs:,}", epochs / given.epochs))
    if given.gpu_hours is not None:
        rows.append(
            Used("device hours", f"{device_hours:.2f}", number(given.gpu_hours), device_hours / given.gpu_hours)
        )
    if given.wall_clock_hours is not None:
        passed = hours or 0.0
        limit = number(given.wall_clock_hours)
        rows.append(Used("hours since the start", f"{passed:.2f}", limit, passed / given.wall_clock_hours))
    if given.target is not None:
        name = study.spec.objective.metric
        rows.append(Used("target", metric(now.best_value, name), metric(given.target, name), None))
    if given.epochs is None:
        rows.append(Used("epochs trained", f"{epochs:,}", "", None))
    if given.gpu_hours is None:
        rows.append(Used("device time", duration(device_hours * 3600), "", None))
    return rows
