"""`hpsearch status --watch`: a study as it runs, in a terminal; plain lines where the output is none."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpsearch.cli.tables import WORKER_COLUMNS, worker_rows
from hpsearch.storage import budget
from hpsearch.web import study_pages
from hpsearch.web.source import Source
from hpsearch.web.words import duration, metric, moment, spoken

if TYPE_CHECKING:
    from hpsearch.settings import Settings
    from hpsearch.storage.open import Database
    from hpsearch.storage.studies import LoadedStudy, Progress

PERIOD_SECONDS = 2.0
MAX_ROWS = 12  # of running trials, and of workers
MAX_EVENTS = 4
BAR_WIDTH = 40


def watch(database: "Database", study: "LoadedStudy", settings: "Settings") -> None:
    """Show the study until it has finished or been stopped, or Ctrl-C."""
    source, console = Source(database, settings), Console()
    listed = source.find(study.study_id)
    assert listed is not None
    if not console.is_terminal:
        _lines(source, listed, study)
        return
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            context, _ = study_pages.one_study(source, listed, study, with_figures=False)
            live.update(view(context), refresh=True)
            if _over(context["now"]):
                return
            time.sleep(PERIOD_SECONDS)


def view(context: dict[str, Any]) -> Group:
    """The study's page in characters."""
    parts: list[Any] = [Text(context["listed"].name, style="bold"), _bar(context), Text(sentence(context))]
    if context["running"]:
        parts.append(_running(context))
    if context["workers"]:
        parts.append(_table(WORKER_COLUMNS, worker_rows(context["workers"][:MAX_ROWS])))
    if context["importances"] and context["importances"].shares:
        parts.append(Text(context["importances"].sentence(), style="dim"))
    for event in context["events"][:MAX_EVENTS]:
        trial = "" if event["number"] is None else f"trial {event['number']} "
        parts.append(Text(f"{moment(event['at'])} UTC  {trial}{event['kind']}: {event['text']}", style="dim"))
    return Group(*parts)


def sentence(context: dict[str, Any]) -> str:
    """The study in one line."""
    now, name = context["now"], context["metric"]
    best = f"best {spoken(name)} {metric(now.best_value, name)} in trial {now.best_number}"
    left = context["seconds_left"]
    parts = [
        context["state"],
        f"{now.finished} of {now.max_trials} trials ended ({now.pruned} stopped early, {now.failed} failed)",
        f"{now.running} running" + (f", {now.abandoned} of them abandoned" if now.abandoned else ""),
        "no result yet" if now.best_number is None else best,
        *([] if left is None or now.done else [f"about {duration(left)} left"]),
    ]
    return "; ".join(parts)


def _lines(source: Source, listed: Any, study: "LoadedStudy") -> None:
    last = ""
    while True:
        context, _ = study_pages.one_study(source, listed, study, with_figures=False)
        line = sentence(context)
        if line != last:
            click.echo(line)
            last = line
        if _over(context["now"]):
            return
        time.sleep(PERIOD_SECONDS)


def _over(now: "Progress") -> bool:
    """Whether nothing more is to come: it has finished, or was stopped and no worker trains any more."""
    return now.done or (now.state == budget.STOPPED and now.running <= now.abandoned)


def _bar(context: dict[str, Any]) -> Text:
    now = context["now"]
    full = round(BAR_WIDTH * now.finished / max(1, now.max_trials))
    return Text.assemble(("━" * full, "blue"), ("━" * (BAR_WIDTH - full), "dim"))


def _running(context: dict[str, Any]) -> Table:
    name = context["metric"]
    rows = [
        [
            str(trial.number),
            f"{trial.epoch}/{context['study'].spec.max_epochs}",
            metric(last.get(name), name),
            f"{last['images_per_second']:,.0f}" if last.get("images_per_second") and not trial.abandoned else "",
            ("abandoned by " if trial.abandoned else "") + (trial.owner or "").rsplit(":", 1)[0],
        ]
        for trial, last in context["running"][:MAX_ROWS]
    ]
    return _table(["trial", "epoch", spoken(name), "images/s", "worker"], rows)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
