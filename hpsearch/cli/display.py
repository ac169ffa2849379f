"""What a person sees while workers run: a live table in a terminal, plain lines elsewhere, the result at the end."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpsearch.cli.tables import duration
from hpsearch.errors import EXIT_FAILED, EXIT_INTERRUPTED, StorageError, UsageError
from hpsearch.events import (
    EpochDone,
    Event,
    StudyOpened,
    TrialEnded,
    TrialResumed,
    TrialStarted,
    WorkerFailed,
    WorkerLeft,
    WorkerWarned,
)
from hpsearch.processes import WorkerExited
from hpsearch.settings import Settings

if TYPE_CHECKING:
    from hpsearch.storage.studies import LoadedStudy

MAX_ROWS = 16  # of the live table; a worker may have hundreds of lanes


@dataclass
class Watch:
    """What is known from the events so far: one row per worker, and the study as a whole."""

    study: str = ""
    metric: str = ""
    max_trials: int = 0
    finished: int = 0
    best_number: int | None = None
    best_value: float | None = None
    rows: dict[tuple[int, int], EpochDone] = field(default_factory=dict)  # by worker and trial
    devices: dict[int, str] = field(default_factory=dict)
    failures: list[WorkerFailed] = field(default_factory=list)
    interrupted: bool = False
    crashed: bool = False
    first_finished: int = 0
    started: float = 0.0
    epochs: int = 0  # trained since then
    lengths: list[int] = field(default_factory=list)  # epochs of the trials that have ended here
    limited: bool = False  # the study may end before it has had all of its trials

    def take(self, worker: int, event: Event | WorkerExited) -> str | None:
        """Take one event in; the line that a plain output shows for it, if any."""
        match event:
            case StudyOpened():
                return self._open(worker, event)
            case TrialStarted():
                self.rows[worker, event.trial] = EpochDone(event.trial, 0, event.epochs, float("nan"), 0.0)
            case TrialResumed():
                return f"trial {event.trial} goes on after epoch {event.epoch} of {event.epochs}"
            case EpochDone():
                self.rows[worker, event.trial] = event
                self.epochs += 1
            case TrialEnded():
                return self._end(worker, event)
            case WorkerLeft():
                self.interrupted |= event.interrupted
                return f"worker {worker}: {event.reason}"
            case WorkerWarned():
                return f"worker {worker}: {event.message}"
            case WorkerFailed():
                known = event.message in {failure.message for failure in self.failures}
                self.failures.append(event)
                return None if known else f"worker {worker}: {event.message}"
            case WorkerExited():
                if event.code not in (0, EXIT_INTERRUPTED) and not self.failures:
                    self.crashed = True
                    return f"worker {worker}: its process ended with code {event.code}"
        return None

    def exit_code(self) -> int:
        """The exit code of the whole command."""
        if self.failures:
            return max(failure.code for failure in self.failures)
        return EXIT_FAILED if self.crashed else EXIT_INTERRUPTED if self.interrupted else 0

    def time_left(self) -> str:
        """How long the whole study will still take, at the pace since this command began.

        Trials are taken to be as long as those that have ended here, and workers elsewhere to be as fast. Other limits
        of the budget can only make it shorter.
        """
        if self.finished >= self.max_trials:
            return "study finished"
        guess, elsewhere = "at most", 1.0
        length = float(max((row.epochs for row in self.rows.values()), default=0))  # if nothing is pruned
        if self.lengths:
            guess, length = "at most" if self.limited else "about", sum(self.lengths) / len(self.lengths)
            elsewhere = max(1.0, (self.finished - self.first_finished) / len(self.lengths))
        if not self.epochs or not length:
            return "time left unknown"
        begun = sum(min(row.epoch, length) for row in self.rows.values())
        left = max(0.0, (self.max_trials - self.finished) * length - begun * elsewhere)
        pace = self.epochs * elsewhere / (time.monotonic() - self.started)
        return f"{guess} {duration(left / pace)} left"

    def summary(self) -> str:
        """Trials, best value and time left, in one line."""
        best = "no result yet" if self.best_value is None else f"best {self.best_value:.4f} in trial {self.best_number}"
        return f"{self.finished} of {self.max_trials} trials ended, {best}, {self.time_left()}"

    def _open(self, worker: int, event: StudyOpened) -> str | None:
        self.devices[worker] = event.device
        for key in [key for key in self.rows if key[0] == worker]:
            del self.rows[key]  # of its process that was killed
        if event.study == self.study:
            return None
        self.study, self.metric, self.max_trials = event.study, event.metric, event.max_trials
        self.finished = self.first_finished = event.finished
        self.best_number, self.best_value = event.best_number, event.best_value
        self.started = time.monotonic()
        return f"study {event.study}: {event.finished} of {event.max_trials} trials ended"

    def _end(self, worker: int, event: TrialEnded) -> str:
        row = self.rows.pop((worker, event.trial), None)
        if event.state in ("COMPLETE", "PRUNED") and event.epoch:
            self.lengths.append(event.epoch)
        self.finished, self.max_trials = max(self.finished, event.finished), event.max_trials or self.max_trials
        self.best_number, self.best_value = event.best_number, event.best_value
        epochs = f" after epoch {event.epoch} of {row.epochs}" if row and event.epoch else ""
        value = "" if event.value is None else f", {self.metric} {event.value:.4f}"
        reason = f" ({event.reason})" if event.reason else ""
        return f"trial {event.trial} {event.state.lower()}{epochs}{value}{reason}"


def show(events: Iterable[tuple[int, Event | WorkerExited]], settings: Settings) -> int:
    """Show the events of all workers until they end, then the result; the exit code of the command."""
    console = Console()
    watch = Watch()
    if console.is_terminal:
        with Live(_table(watch), console=console, refresh_per_second=4) as live:
            for worker, event in events:
                line = _taken(watch, worker, event, settings)
                if line and isinstance(event, TrialEnded) and event.state != "COMPLETE":
                    line = None  # the table's caption counts them; only results stay on the screen
                if line and not isinstance(event, WorkerFailed):
                    console.print(Text(line))
                live.update(_table(watch))
    else:
        for worker, event in events:
            line = _taken(watch, worker, event, settings)
            if line and not isinstance(event, WorkerFailed):
                click.echo(f"{line}; {watch.summary()}" if isinstance(event, TrialEnded) else line)
    for message in dict.fromkeys(failure.message for failure in watch.failures):
        click.echo(f"hpsearch: {message}", err=True)
    if watch.study:
        with contextlib.suppress(StorageError):  # it is away: that has been said
            _show_result(watch, settings)
    return watch.exit_code()


def _taken(watch: Watch, worker: int, event: Event | WorkerExited, settings: Settings) -> str | None:
    """Take one event in; of a study that is new here, also what its file says of its budget."""
    new = isinstance(event, StudyOpened) and event.study != watch.study
    line = watch.take(worker, event)
    if new:
        from hpsearch.storage.open import FAULTS, connect
        from hpsearch.storage.studies import load_study

        with contextlib.suppress(UsageError, *FAULTS), connect(settings.storage_url) as database:
            given = load_study(database, watch.study).spec.budget
            watch.limited = {given.epochs, given.gpu_hours, given.wall_clock_hours, given.target} != {None}
    return line


def _table(watch: Watch) -> Group:
    table = Table(box=box.SIMPLE_HEAD, title=f"study {watch.study}" if watch.study else "starting workers")
    for column in ("worker", "device", "trial", "epoch", watch.metric or "value", "images/s"):
        table.add_column(column, justify="right", overflow="fold")
    shown = sorted(watch.rows.items())[:MAX_ROWS]
    for (worker, _), row in shown:
        value, speed = (f"{row.value:.4f}", f"{row.images_per_second:,.0f}") if row.epoch else ("-", "-")
        device = watch.devices.get(worker, "")
        table.add_row(str(worker), device, str(row.trial), f"{row.epoch}/{row.epochs}", value, speed)
    if more := len(watch.rows) - len(shown):
        table.caption = f"and {more} more trials"
    return Group(table, Text(watch.summary() if watch.study else "loading", style="bold"))


def _show_result(watch: Watch, settings: Settings) -> None:
    from hpsearch.cli.tables import print_best, trial_row
    from hpsearch.search.importance import importances
    from hpsearch.storage import budget
    from hpsearch.storage.open import connect
    from hpsearch.storage.studies import load_study, progress, ranked

    with connect(settings.storage_url) as database:
        study = load_study(database, watch.study)
        now = progress(database, study)
        best = ranked(study)[:1]
        if best:
            click.echo(f"\nbest of study {watch.study} so far" if not now.done else "\nbest")
            print_best(study, [trial_row(study, trial) for trial in best])
            if study.spec.space:
                click.echo(importances(study.optuna_study).sentence())
        again = f"{'worker' if now.state == budget.RUNNING else 'resume'} {watch.study}"
        click.echo(f"next: hpsearch {_after(study) if now.done else again}")
    click.echo("      hpsearch dashboard")


def _after(study: "LoadedStudy") -> str:
    """The command that says what a finished study has found."""
    from hpsearch.confirm import CONFIRM, link_of

    link = link_of(study)
    if link.get("kind") == CONFIRM:
        return f"confirm {link['study']}"
    return f"{'final-test' if study.spec.candidates else 'best'} {study.name}"
