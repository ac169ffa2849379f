"""`hpsearch storage`: make the tables of a storage, and copy all studies into another one."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from hpsearch.cli.options import settings_from, storage_option
from hpsearch.errors import UsageError
from hpsearch.settings import redact

if TYPE_CHECKING:
    from hpsearch.storage.copy import Copied, Step

ENVIRONMENT = "-"  # as an argument: the URL is in the environment


@click.group()
def storage() -> None:
    """Make the tables of a storage, or copy all its studies into another one."""


@storage.command()
@storage_option
def create(storage: str | None) -> None:
    """Make the tables where they are missing, so that workers can wait for studies; `create-study` does so too."""
    from hpsearch.storage.open import create as make

    url = settings_from(storage).storage_url
    with make(url):
        click.echo(f"{redact(url)} is ready")


@storage.command()
@click.argument("source", metavar="[FROM]", default=ENVIRONMENT)
@click.argument("destination", metavar="[TO]", default=ENVIRONMENT)
def copy(source: str, destination: str) -> None:
    """Copy every study of the storage FROM into the storage TO, which holds none yet, and compare them row by row.

    Both are URLs, of SQLite or PostgreSQL. FROM may be left out, or be -, for the storage in HPSEARCH_STORAGE (else
    sqlite:///storage/hpsearch.db), and so may TO for that in HPSEARCH_STORAGE_TO. Passwords belong there, into
    ~/.pgpass, or into the files that HPSEARCH_STORAGE_PASSWORD_FILE and HPSEARCH_STORAGE_TO_PASSWORD_FILE name: others
    can read a command line.

    The copy is what FROM holds at one moment. Stop its workers first (`hpsearch stop STUDY`): what they report after
    that moment is not in the copy, and their trials go on from a checkpoint in the new storage. TO is filled in one
    transaction: if anything fails, or a single row differs, it is left as it was.
    """
    from hpsearch.storage.copy import copy as run
    from hpsearch.storage.open import connect

    given = [None if url == ENVIRONMENT else url for url in (source, destination)]
    settings = settings_from(given[0], storage_to=given[1])
    if not settings.storage_to:
        raise UsageError("where to is not said: give the storage's URL as TO, or set HPSEARCH_STORAGE_TO")
    started = time.monotonic()
    with connect(settings.storage_url) as database:
        copied = _watched(run(database, settings.storage_to))
    seconds = time.monotonic() - started
    click.echo(
        f"copied {_number(copied.num_studies, 'study', 'studies')}, {_number(copied.num_trials, 'trial', 'trials')}, "
        f"{copied.num_rows:,} rows in {seconds:.1f} s; every row is the same on both sides"
    )
    if copied.left_out:
        click.echo(f"not copied, as they are not hpsearch's: {', '.join(copied.left_out)}")
    if copied.num_running:
        click.echo(
            f"{_number(copied.num_running, 'trial was', 'trials were')} being trained: workers of the new storage take "
            f"over within {copied.lease_seconds:.0f} s, from the last checkpoint. Stop the workers of the old storage: "
            "what they report from now on stays there"
        )


def _watched(steps: "Iterable[Step | Copied]") -> "Copied":
    """What came of the copy; with a bar meanwhile, in a terminal."""
    from hpsearch.storage.copy import Copied

    with _bar() as show:
        for step in steps:
            if isinstance(step, Copied):
                return step
            show(step)
    raise AssertionError("a copy ends with what has been copied")


@contextlib.contextmanager
def _bar() -> Iterator["Callable[[Step], None]"]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _step: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("copy and compare")
        yield lambda step: progress.update(task, completed=step.num_done, total=step.num_all)


def _number(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
