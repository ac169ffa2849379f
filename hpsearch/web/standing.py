"""How a study stands: its state in a word, what of its budget is used, and how long the rest will take."""

from collections.abc import Sequence
from dataclasses import dataclass

from hpsearch.sections import Budget
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


def seconds_left(given: Budget, trials: Sequence[TrialRow], now: Progress, hours: float | None = None) -> float | None:
    """A guess from the device time of the trials that have ended, for as many devices as train now.

    Of an epoch of several lanes each trial has its share, so that device time is divided by devices, not by lanes.

    The limit that is reached first counts; what runs then trains to its end. A target cannot be foreseen. None if
    nothing runs, if people have paused or stopped it, or if too few have ended. Pauses do not spoil it: only time
    spent training counts, but for the hours since the first trial began.
    """
    ended = [trial for trial in trials if trial.ended]
    training = {trial.owner for trial in trials if trial.state == "RUNNING" and not trial.abandoned}
    busy = min(now.running - now.abandoned, len(training))
    if len(ended) < MIN_ENDED or busy <= 0 or now.state != budget.RUNNING:
        return None
    mean = sum(trial.seconds for trial in ended) / len(ended)
    spent = sum(trial.seconds for trial in trials if trial.state == "RUNNING")
    unfinished = max(0.0, now.running * mean - spent) / busy  # what runs now
    if not now.startable:
        return unfinished
    ends = [max(0.0, (now.max_trials - len(ended)) * mean - spent) / busy]
    epochs = sum(trial.epoch for trial in ended)
    if given.epochs is not None and epochs:
        per_epoch = sum(trial.seconds for trial in ended) / epochs
        ends.append((given.epochs - sum(trial.epoch for trial in trials)) * per_epoch / busy)
    if given.gpu_hours is not None:
        ends.append((given.gpu_hours * 3600 - sum(trial.seconds for trial in trials)) / busy)
    if given.wall_clock_hours is not None:
        ends.append((given.wall_clock_hours - (hours or 0.0)) * 3600)
    return max(unfinished, min(ends))


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
