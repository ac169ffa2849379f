"""The worker: takes trials of one study and trains them. The one place where search and training meet."""

import math
import time
import traceback
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass

import optuna
import torch
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError
from torch import nn

from hpsearch import catalogue
from hpsearch.data.load import load
from hpsearch.errors import HpsearchError, UsageError
from hpsearch.events import EpochDone, Event, StudyOpened, TrialEnded, TrialStarted, WorkerLeft
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.models.build import Constructor, build_model
from hpsearch.recipe import Recipe, fold
from hpsearch.search.pruners import make_pruner
from hpsearch.search.samplers import corner, make_sampler, max_trials, suggest
from hpsearch.settings import Settings
from hpsearch.storage import ledger
from hpsearch.storage.open import Database
from hpsearch.storage.studies import (
    REASON_KEY,
    RECIPE_KEY,
    TRACEBACK_KEY,
    LoadedStudy,
    load_study,
    progress,
    study_names,
)
from hpsearch.train.program import DeviceData, Program, place

IDLE_POLL_SECONDS = 1.0  # between looks for a study with trials left
CRASHES_BEFORE_LEAVING = 3  # trials in a row that end by an exception: then the fault is not the trial's


@dataclass(frozen=True)
class Limits:
    """When a worker leaves although there may be more to do."""

    max_trials: int | None = None
    max_idle_seconds: float = 0.0


@dataclass(frozen=True)
class Bench:
    """What the trials of one study share in this process."""

    database: Database
    study: LoadedStudy
    data: DeviceData
    constructor: Constructor
    interruption: Interruption

    def model(self, recipe: Recipe) -> nn.Module:
        """The recipe's model, freshly initialised."""
        return build_model(recipe, self.data.input_shape, self.data.num_classes, self.constructor)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; `state` WAITING means that it was given back."""

    state: TrialState
    epoch: int
    value: float | None = None
    reason: str = ""
    traceback: str = ""


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
        trial_id = ledger.create_trial(database, study.study_id, limit)
        if trial_id is None:
            return
        outcome = yield from _run_trial(bench, trial_id)
        done += 1
        crashes = crashes + 1 if outcome.traceback else 0
        if crashes == CRASHES_BEFORE_LEAVING:
            raise HpsearchError(
                f"study {study.name}: {crashes} trials in a row failed, the last one with: {outcome.reason}; "
                f"see `hpsearch trials {study.name} --json` for the tracebacks, and create the study again once mended"
            )


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
        if progress(database, study).started < max_trials(study.spec):
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
    constructor = catalogue.load("hpsearch.models", spec.model.name)
    dataset = load(
        spec.data.name,
        data_dir=settings.data_dir,
        cache_dir=settings.home / "datasets",
        image_size=spec.data.image_size,
    )
    bench = Bench(database, study, place(dataset, device), constructor, interruption)
    bench.model(spec.recipe(corner(spec), 0, 0))
    study.optuna_study.pruner = make_pruner(spec)
    return bench


def _run_trial(bench: Bench, trial_id: int) -> Generator[Event, None, Outcome]:
    """Train one trial to its end, whatever that is, and record it."""
    number = bench.database.storage.get_trial_number_from_id(trial_id)
    try:
        outcome = yield from _train(bench, trial_id, number)
    except Interrupted:
        outcome = Outcome(TrialState.WAITING, 0, reason="interrupted: it goes back to the queue")
    except GeneratorExit:  # nobody reads the events any more
        ledger.release(bench.database, trial_id)
        raise
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError):
        raise  # the storage is at fault, not the trial
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        outcome = Outcome(TrialState.FAIL, 0, reason=reason, traceback=traceback.format_exc())
    _record(bench, trial_id, number, outcome)
    now = progress(bench.database, bench.study)
    yield TrialEnded(
        trial=number,
        state=outcome.state.name,
        epoch=outcome.epoch,
        value=outcome.value,
        reason=outcome.reason,
        finished=now.finished,
        best_number=now.best_number,
        best_value=now.best_value,
    )
    return outcome


def _train(bench: Bench, trial_id: int, number: int) -> Generator[Event, None, Outcome]:
    """Choose the trial's recipe and train it: to its last epoch, a rung that it fails, or a loss that is no number."""
    recipe = _choose_recipe(bench.study, trial_id, number)
    yield TrialStarted(number, recipe.epochs)
    program = Program(recipe, bench.model(recipe), bench.data)
    spec = bench.study.spec
    value = math.nan
    while program.epoch < recipe.epochs:
        with bench.interruption.allowed():
            result = program.run_epoch()
        value = math.nan if result.diverged else getattr(result, spec.objective.metric)
        if not ledger.report(bench.database, trial_id, result.epoch, value, asdict(result)):
            return Outcome(TrialState.FAIL, result.epoch, reason="ended by somebody else while it trained")
        yield EpochDone(number, result.epoch, recipe.epochs, value, result.images_per_second)
        if result.diverged:
            reason = f"diverged in epoch {result.epoch}: the training loss or a gradient is not a finite number"
            return Outcome(TrialState.PRUNED, result.epoch, reason=reason)
        if result.epoch < recipe.epochs and _fails_rung(bench, trial_id):
            return Outcome(TrialState.PRUNED, result.epoch, value, f"pruned by {spec.pruner.name}")
    return Outcome(TrialState.COMPLETE, program.epoch, value)


def _choose_recipe(study: LoadedStudy, trial_id: int, number: int) -> Recipe:
    spec = study.spec
    study.optuna_study.sampler = make_sampler(spec, number)
    trial = optuna.Trial(study.optuna_study, trial_id)
    params = suggest(trial, spec)
    seed = spec.seeds[number % len(spec.seeds)] if spec.seeds else fold(spec.seed, number)
    recipe = spec.recipe(params, seed, stream_seed=fold(spec.seed, seed, 1))
    trial.set_user_attr(RECIPE_KEY, recipe.as_dict())
    return recipe


def _fails_rung(bench: Bench, trial_id: int) -> bool:
    study = bench.study.optuna_study
    return study.pruner.prune(study, bench.database.storage.get_trial(trial_id))


def _record(bench: Bench, trial_id: int, number: int, outcome: Outcome) -> None:
    if outcome.state == TrialState.WAITING:
        ledger.release(bench.database, trial_id)
        return
    storage = bench.database.storage
    if storage.get_trial(trial_id).state != TrialState.RUNNING:
        return  # ended by somebody else
    for key, text in ((REASON_KEY, outcome.reason), (TRACEBACK_KEY, outcome.traceback)):
        if text:
            storage.set_trial_user_attr(trial_id, key, text)
    value = outcome.value if outcome.state == TrialState.COMPLETE else None
    bench.study.optuna_study.tell(number, value, state=outcome.state)
