"""`hpsearch worker`: train trials here, in this process or in one for each GPU or share of the cores."""

import os
import random
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import click

from hpsearch.cli.options import complete_recorded, settings_from, storage_option
from hpsearch.errors import EXIT_INTERRUPTED, HpsearchError, StorageAway, UsageError, exit_code
from hpsearch.events import Event, WorkerFailed, WorkerLeft, to_json
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.settings import Settings, redact

MOST_LANES = 1024
START_SPREAD_SECONDS = 0.5  # workers that are started together come to a shared database within this time, not at once


@click.command()
@click.argument("study", required=False, shell_complete=complete_recorded)
@click.option("--device", metavar="auto|cpu|cuda:N|all", help="Where to train; all: one process per GPU.")
@click.option("--workers", type=click.IntRange(min=1), help="Several processes that share the cores, on a CPU.")
@click.option(
    "--lanes",
    default="auto",
    metavar="auto|K",
    callback=lambda _ctx, _param, text: _lanes(text),
    help="Trials to train at once in each process; auto: as many as pay on a GPU, one a core (four at most) on a CPU."
    "  [default: auto]",
)
@click.option("--max-trials", type=click.IntRange(min=1), help="Leave after so many trials (each process).")
@click.option(
    "--max-idle",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long for something to do before leaving; default: until no trial of a dead worker can turn up.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets; default: HPSEARCH_DATA.")
@storage_option
@click.option("--events", is_flag=True, hidden=True)  # print events as JSON lines, for the process that shows them
def worker(
    study: str | None,
    device: str | None,
    workers: int | None,
    lanes: int | None,
    max_trials: int | None,
    max_idle: float | None,
    data_dir: Path | None,
    storage: str | None,
    events: bool,
) -> int:
    """Train trials of STUDY until its budget is used; without STUDY, of every study in turn.

    Start one on every machine and GPU that has the storage in reach. Ctrl-C gives the running trial back.
    Exit codes: 0 nothing left to do, 1 failed, 2 cannot be used as given, 75 interrupted.
    """
    settings = replace(settings_from(storage, device, data_dir), lanes=lanes)
    if not events and (workers or 1) == 1 and settings.device != "all":
        return _work_and_show(study, settings, max_trials, max_idle)
    if events:
        return _work_and_print(study, settings, max_trials, max_idle)
    devices = _devices(settings.device, workers)
    arguments = [_arguments(study, name, lanes, max_trials, max_idle) for name in devices]
    return _run_processes(arguments, study, settings)


def _work(
    study: str | None, settings: Settings, max_trials: int | None, max_idle: float | None, interruption: Interruption
) -> Generator[Event, None, None]:
    """The events of a worker in this process; an error becomes its last one."""
    from hpsearch.storage.open import FAULTS, connect
    from hpsearch.worker import Limits, serve

    try:
        limits = Limits(max_trials, max_idle)
        if not settings.storage_url.startswith("sqlite"):
            time.sleep(random.uniform(0.0, START_SPREAD_SECONDS))  # noqa: S311
        with connect(settings.storage_url) as database:
            yield from serve(database, study, settings, interruption, limits)
    except Interrupted:
        yield WorkerLeft("interrupted", interrupted=True)
    except StorageAway as error:
        yield WorkerFailed(str(error), EXIT_INTERRUPTED)
    except HpsearchError as error:
        yield WorkerFailed(str(error), exit_code(error))
    except FAULTS as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        yield WorkerFailed(f"storage {redact(settings.storage_url)} does not answer: {reason}", EXIT_INTERRUPTED)


def _work_and_show(study: str | None, settings: Settings, max_trials: int | None, max_idle: float | None) -> int:
    from hpsearch.cli.display import show

    interruption = Interruption()
    with interruption.listening(), closing(_work(study, settings, max_trials, max_idle, interruption)) as events:
        return show(((0, event) for event in events), settings)


def _work_and_print(study: str | None, settings: Settings, max_trials: int | None, max_idle: float | None) -> int:
    interruption = Interruption()
    code = 0
    with (
        _output_of_its_own() as output,
        interruption.listening(),
        closing(_work(study, settings, max_trials, max_idle, interruption)) as events,
    ):
        for event in events:
            print(to_json(event), file=output, flush=True)
            if isinstance(event, WorkerFailed):
                code = event.code
            elif isinstance(event, WorkerLeft) and event.interrupted:
                code = EXIT_INTERRUPTED
    return code


@contextmanager
def _output_of_its_own() -> Iterator[IO[str]]:
    """The standard output; what others print there meanwhile, as a network may, goes to the standard error."""
    with os.fdopen(os.dup(1), "w") as output:
        if sys.stderr is not None:  # None: the shell has closed it, `2>&-`
            os.dup2(2, 1)
        try:
            yield output
        finally:
            sys.stdout.flush()
            os.dup2(output.fileno(), 1)


def _run_processes(arguments: list[list[str]], study: str | None, settings: Settings) -> int:
    from hpsearch.cli.display import show
    from hpsearch.processes import Workers

    # In the environment, as the arguments of a process can be read by everybody on the machine.
    environment = {**os.environ, "HPSEARCH_STORAGE": settings.storage_url, "HPSEARCH_HOME": str(settings.home)}
    if settings.data_dir is not None:
        environment["HPSEARCH_DATA"] = str(settings.data_dir)
    group = Workers(arguments, environment)
    # The workers get Ctrl-C themselves; this process sees them off. To ignore it would be handed down to them.
    signal.signal(signal.SIGINT, lambda _number, _frame: group.leave())
    signal.signal(signal.SIGTERM, lambda _number, _frame: group.terminate())
    return show(group.events(), settings)


def _devices(device: str, workers: int | None) -> list[str]:
    if device != "all":
        return [device] * (workers or 1)
    if workers is not None:
        raise UsageError(f"--workers {workers} with --device all: all means one process per GPU; give one of the two")
    import torch

    if not torch.cuda.is_available():
        raise UsageError("--device all: this machine has no GPU; use --device cpu with --workers N")
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def _arguments(
    study: str | None, device: str, lanes: int | None, max_trials: int | None, max_idle: float | None
) -> list[str]:
    limits = ["--max-trials", str(max_trials)] if max_trials else []
    limits += ["--lanes", str(lanes)] if lanes else []
    limits += ["--max-idle", str(max_idle)] if max_idle is not None else []
    return ["--device", device, *limits, *([study] if study else [])]


def _lanes(text: str) -> int | None:
    """The number of lanes; None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= MOST_LANES:
        raise click.BadParameter(f"{text!r} must be auto, or a number from 1 to {MOST_LANES}.")
    return int(text)
