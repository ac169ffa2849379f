"""The worker: takes trials, one study after another, until there is nothing to do or a limit is reached.

With `trial.py` the place where the search and the training half meet.
"""

import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hpsearch import catalogue
from hpsearch.artifacts import Checkpoints
from hpsearch.data.load import load
from hpsearch.errors import HpsearchError, LeaseLost, StorageAway, UsageError
from hpsearch.events import Event, StudyOpened, TrialEnded, WorkerLeft, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.recipe import Recipe
from hpsearch.search.pruners import make_pruner
from hpsearch.search.samplers import corner, max_trials
from hpsearch.settings import Settings
from hpsearch.storage import ledger
from hpsearch.storage.open import FAULTS, Database
from hpsearch.storage.studies import LoadedStudy, load_study, progress, study_names
from hpsearch.train.program import place
from hpsearch.trial import Bench, run_trial

OWNER = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"  # of the leases that this process holds
IDLE_POLL_SECONDS = 1.0  # between looks for a study with trials left
STORAGE_PAUSE_SECONDS = 0.5  # before the second attempt to reach a storage; doubles with each
MAX_STORAGE_PAUSE_SECONDS = 15.0
CRASHES_BEFORE_LEAVING = 3  # trials in a row that end by an exception: then the fault is not the trial's


@dataclass(frozen=True)
class Limits:
    """When a worker leaves although there may be more to do."""

    max_trials: int | None = None
    max_idle_seconds: float = 0.0


def run(
    database: Database,
    study_name: str,
    settings: Settings,
    interruption: Interruption,
    max_trials_here: int | None = None,
) -> Iterator[Event]:
    """Take and train trials until the study's budget is used, `max_trials_here` are done, or the process is stopped.

    Raises:
        StorageError, DataError, UsageError: the study, its data or its model cannot be used; no trial was taken.
        HpsearchError: three trials in a row ended by an exception.
    """
    study = load_study(database, study_name)
    device = choose_device(settings.device)
    bench = _prepare(database, study, settings, device, interruption)
    now = progress(database, study)
    limit = max_trials(study.spec)
    yield StudyOpened(
        study.name, study.spec.objective.metric, str(device), limit, now.finished, now.best_number, now.best_value
    )
    crashes = done = 0
    while done != max_trials_here and not interruption.requested:
        lease = None
        try:
            lease = ledger.take_trial(database, study.study_id, limit, OWNER, settings.lease_seconds)
            if lease is None:
                return
            outcome = yield from run_trial(bench, lease)
        except FAULTS as error:
            yield WorkerWarned(f"the storage does not answer ({_first_line(error)}); waiting for it")
            _wait_for_storage(bench)
            if lease is not None:
                with contextlib.suppress(LeaseLost):
                    ledger.release(database, lease, study.spec.max_epochs)
            continue
        done += 1
        crashes = crashes + 1 if outcome.traceback else 0
        if crashes == CRASHES_BEFORE_LEAVING:
            raise HpsearchError(
                f"study {study.name}: {crashes} trials in a row failed, the last one with: {outcome.reason}; "
                f"see `hpsearch trials {study.name} --json` for the tracebacks, and create the study again once mended"
            )


def _wait_for_storage(bench: Bench) -> None:
    """Wait until the storage answers again, with growing pauses.

    Raises:
        StorageAway: it did not within the time that the settings give it, or the process was asked to stop.
    """
    deadline = time.monotonic() + bench.settings.storage_wait_seconds
    pause = STORAGE_PAUSE_SECONDS
    while not bench.database.answers():
        if bench.interruption.requested or time.monotonic() + pause > deadline:
            raise StorageAway(
                f"the storage has not answered for {bench.settings.storage_wait_seconds:.0f} s; what was trained is in "
                f"{bench.checkpoints.folder}; run the same command again when it is back"
            )
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- so that many workers do not come back in one moment
        pause = min(2 * pause, MAX_STORAGE_PAUSE_SECONDS)


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def _try_model(bench: Bench, recipe: Recipe) -> None:
    """One forward pass, so that a network that does not suit the images takes no trial.

    Raises:
        UsageError: it does not.
    """
    try:
        model = bench.model(recipe).to(bench.data.device).eval()
        with torch.inference_mode():
            shape = tuple(model(torch.zeros(2, *bench.data.input_shape, device=bench.data.device)).shape)
    except UsageError:
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    else:
        if shape == (2, bench.data.num_classes):
            return
        problem = f"2 of them give outputs of shape {shape}, not (2, {bench.data.num_classes})"
    raise UsageError(f"model {recipe.model}: does not suit images of shape {bench.data.input_shape}: {problem}")


def serve(
    database: Database,
    study_name: str | None,
    settings: Settings,
    interruption: Interruption,
    limits: Limits,
) -> Iterator[Event]:
    """Work on the named study, or on each that has trials left, the oldest first, until there is nothing to do.

    Raises what `run` raises.
    """
    idle_since = time.monotonic()
    left = limits.max_trials
    while not interruption.requested and left != 0:
        name = _next_study(database, study_name)
        if name is None:
            if time.monotonic() - idle_since >= limits.max_idle_seconds:
                yield WorkerLeft("no trials left to start" + (f" in study {study_name}" if study_name else ""))
                return
            time.sleep(IDLE_POLL_SECONDS)
            continue
        for event in run(database, name, settings, interruption, left):
            yield event
            if left is not None:
                left -= isinstance(event, TrialEnded)
        idle_since = time.monotonic()
    if interruption.requested:
        yield WorkerLeft("interrupted", interrupted=True)
    else:
        yield WorkerLeft(f"{limits.max_trials} trials done, as asked")


def _next_study(database: Database, study_name: str | None) -> str | None:
    for name in [study_name] if study_name else study_names(database):
        study = load_study(database, name)
        now = progress(database, study)
        if now.abandoned or now.started < max_trials(study.spec):
            return name
    return None


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda:N` means here.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_gpus = torch.cuda.device_count()
    known = ["cpu", *(f"cuda:{index}" for index in range(num_gpus)), *(["cuda"] if num_gpus else [])]
    if name not in known:
        raise UsageError(f"--device {name}: this machine has {', '.join(known)}; auto takes the best one")
    return torch.device(name)


def _prepare(
    database: Database, study: LoadedStudy, settings: Settings, device: torch.device, interruption: Interruption
) -> Bench:
    """Load the data onto the device, and make sure that the study's model can be built for it."""
    spec = study.spec
    if mistakes := catalogue.check_names(spec):
        raise UsageError(f"study {study.name}: {'; '.join(mistakes)}")
    constructor = catalogue.load("hpsearch.models", spec.model.name)
    dataset = load(
        spec.data.name,
        data_dir=settings.data_dir,
        cache_dir=settings.home / "datasets",
        image_size=spec.data.image_size,
    )
    bench = Bench(
        database=database,
        study=study,
        data=place(dataset, device),
        constructor=constructor,
        interruption=interruption,
        fingerprint=dataset.fingerprint,
        settings=settings,
        checkpoints=Checkpoints(settings.home / "checkpoints"),
    )
    _try_model(bench, spec.recipe(corner(spec), 0, 0))
    study.optuna_study.pruner = make_pruner(spec)
    return bench
