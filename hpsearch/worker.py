"""The worker: takes trials, one study after another, until there is nothing to do or a limit is reached.

With `trial.py` the place where the search and the training half meet.
"""

import contextlib
import math
import os
import random
import secrets
import socket
import time
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass

import torch
from optuna.trial import TrialState

from hpsearch import catalogue, crashes, weights
from hpsearch.ends import Ends
from hpsearch.errors import DataError, HpsearchError, StorageAway, TrialsFail, UsageError
from hpsearch.events import LOST_STATE, Event, StudyOpened, TrialEnded, TrialStarted, WorkerLeft, WorkerWarned
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.patience import Patience
from hpsearch.pictures import Pictures
from hpsearch.search.session import Session
from hpsearch.settings import Settings
from hpsearch.storage import budget, fleet, leases
from hpsearch.storage.checkpoints import open_checkpoints, open_shelf
from hpsearch.storage.open import FAULTS, Database
from hpsearch.storage.pinned import pin_data
from hpsearch.storage.studies import LoadedStudy, load_study, progress, study_names
from hpsearch.train.device_data import place
from hpsearch.train.lanes import Lanes
from hpsearch.train.plan import PROGRAMS, LaneCount
from hpsearch.trained import dataset_of
from hpsearch.training import Training
from hpsearch.trial import Bench, one_line
from hpsearch.trying import try_models

OWNER = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"  # of the leases that this process holds
IDLE_POLL_SECONDS = 1.0  # between looks for a study with trials left; grows while there is none
IDLE_GROWTH, MAX_IDLE_GROWTH = 1.3, 5.0  # by so much from one look to the next, and in all
DATA_SECONDS = 600.0  # until a data set that could not be used is tried again
FAILURES_BEFORE_LEAVING = 3  # trials in a row that end by an exception: then the fault is not the trial's


@dataclass(frozen=True)
class Limits:
    """When a worker leaves although there may be more to do.

    `max_idle_seconds` is how long it waits for something new; None: until all leases of the study's running trials
    have run out or been renewed, so that trials of a worker that died are taken over.
    """

    max_trials: int | None = None
    max_idle_seconds: float | None = None


def run(
    database: Database,
    study_name: str,
    settings: Settings,
    interruption: Interruption,
    max_trials_here: int | None = None,
) -> Iterator[Event]:
    """Take and train trials until none can be started, `max_trials_here` are done, or the process is stopped.

    Raises:
        StorageError, DataError, UsageError: the study, its data or its model cannot be used; no trial was taken.
        TrialsFail: three trials in a row ended by an exception.
        HpsearchError: the device failed.
    """
    study = load_study(database, study_name)
    device = choose_device(settings.device)
    try:
        bench = _prepare(database, study, settings, device, interruption)
    except Interrupted:
        return
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:  # somebody else uses it, perhaps
        raise HpsearchError(f"the device {device} cannot be used: {one_line(error)}") from error
    now = progress(database, study)
    yield StudyOpened(
        study.name,
        study.spec.objective.metric,
        str(device),
        now.max_trials,
        now.finished,
        now.best_number,
        now.best_value,
    )
    count = lane_count(settings, study, device)
    num_threads = 1 if device.type == "cuda" else min(count.number, torch.get_num_threads())
    lanes = Lanes(bench.data, bench.constructor, fuse=device.type == "cuda", num_threads=num_threads)
    patience = Patience(database, settings, interruption, bench.session.waiting)
    training = Training(bench, lanes, count, patience, max_trials_here)
    ends, pinned = training.ends, False
    try:
        while ends.done != max_trials_here:
            found = yield from training.fill()
            yield from map(WorkerWarned, bench.session.complaints())
            if not training.running and not found:
                return
            if not pinned:
                yield from _pin_again(database, bench, training, patience)
                pinned = True
            yield from training.round()
            if ends.failures_in_a_row >= FAILURES_BEFORE_LEAVING:
                failed = _all_fail(study, ends)
                yield from training.give_back("its worker leaves, because others fail there")
                raise failed
    except Interrupted:
        yield from training.give_back("the worker was asked to stop")
    except StorageAway:
        training.keep()  # the trials go on from here once their leases have run out
        raise
    except GeneratorExit:  # nobody reads the events any more
        for _ in training.give_back("nobody watched the worker any more"):
            pass
        raise
    finally:
        training.close()


def lane_count(settings: Settings, study: LoadedStudy, device: torch.device) -> LaneCount:
    """How many lanes this worker has."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    cache = settings.home / "lanes.json"
    return LaneCount(settings.lanes, on_gpu, f"{name}, {study.spec.model.name}, {PROGRAMS}", cache)


def _pin_again(
    database: Database, bench: Bench, training: Training, patience: Patience
) -> Generator[Event, None, None]:
    """Now that a trial has begun, make sure that no worker with other images came before it.

    Raises:
        DataError: one did; the trials go back to the queue.
    """
    try:
        yield from patience.patiently(lambda: pin_data(database, bench.study, bench.fingerprint))
    except DataError:
        yield from training.give_back("its worker has other images")
        raise


def _all_fail(study: LoadedStudy, ends: Ends) -> TrialsFail:
    return TrialsFail(
        f"study {study.name}: {ends.failures_in_a_row} trials in a row failed, the last one with: "
        f"{ends.last_failure}; see `hpsearch trials {study.name} --json` for the tracebacks, and create the study "
        "again once mended"
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
    with crashes.kept(settings.home / "crashes", OWNER):
        yield from _serve(database, study_name, settings, interruption, limits)


def _serve(
    database: Database, study_name: str | None, settings: Settings, interruption: Interruption, limits: Limits
) -> Iterator[Event]:
    left, idle = limits.max_trials, _Idle(database, settings, limits)
    patience = Patience(database, settings, interruption)
    paused = False  # as it was said
    unusable = _Unusable()
    while not interruption.requested and left != 0:
        name, called = study_name, time.monotonic()
        try:
            name, nothing = _next_study(database, study_name, unusable.names())
            begun = False
            for event in run(database, name, settings, interruption, left) if name is not None else ():
                yield event
                called = time.monotonic()
                begun |= isinstance(event, TrialStarted)
                if left is not None:
                    left -= isinstance(event, TrialEnded) and event.state not in (TrialState.WAITING.name, LOST_STATE)
            if not begun and not interruption.requested:
                if nothing.paused is not None and not paused:
                    which = nothing.paused.name
                    yield WorkerWarned(f"study {which}: it is paused; it goes on after `hpsearch resume {which}`")
                paused = nothing.paused is not None
                if not idle.goes_on(nothing):
                    unusable.say()
                    yield WorkerLeft(nothing.sentence)
                    break
                continue
        except (UsageError, TrialsFail) as error:
            if study_name or name is None or name in unusable.names():
                raise
            yield unusable.add(name, error)
        except FAULTS as error:
            if warning := patience.begins(error, called):
                yield warning
            patience.wait()
        idle = _Idle(database, settings, limits)
    else:
        asked = interruption.requested
        yield WorkerLeft("interrupted" if asked else f"{limits.max_trials} trials done, as asked", interrupted=asked)
    with contextlib.suppress(*FAULTS):
        fleet.leave(database, myself(settings))


class _Unusable:
    """Studies that a worker cannot train; those whose data set may still come, for a while."""

    def __init__(self) -> None:
        self._errors: dict[str, tuple[HpsearchError, float]] = {}  # and until when

    def names(self) -> list[str]:
        """Of those that are passed over now, the first one first."""
        return [name for name, (_, until) in self._errors.items() if time.monotonic() < until]

    def add(self, name: str, error: HpsearchError) -> WorkerWarned:
        """Pass the study over from now on."""
        passing = isinstance(error, DataError)
        error.__traceback__ = error.__cause__ = error.__context__ = None  # whose frames hold the study's images
        self._errors[name] = error, time.monotonic() + DATA_SECONDS if passing else math.inf
        return WorkerWarned(f"study {name} is passed over{' for a while' if passing else ''}: {error}")

    def say(self) -> None:
        """Raise why the first of them is passed over now, if there is one."""
        for name in self.names():
            raise self._errors[name][0]


@dataclass(frozen=True)
class _Nothing:
    """Why there is nothing to do: in words; the paused study; until when trials of other workers may become free.

    `denied`: there was something, but it could not be had: others were faster, or somebody keeps it locked.
    """

    sentence: str
    paused: LoadedStudy | None = None
    lease_seconds: float | None = None
    denied: bool = False


class _Idle:
    """A worker without work, and how long it waits for some."""

    def __init__(self, database: Database, settings: Settings, limits: Limits) -> None:
        self._database, self._settings, self._limits = database, settings, limits
        self._since, self._growth = time.monotonic(), 1.0
        self._until: float | None = None  # when leases that were live at the beginning will have run out

    def goes_on(self, nothing: _Nothing) -> bool:
        """Wait a little and say True, or False if it is time to leave."""
        passed = time.monotonic() - self._since
        if nothing.lease_seconds is not None and self._until is None:
            self._until = passed + nothing.lease_seconds + IDLE_POLL_SECONDS
        lingers = nothing.lease_seconds is not None and passed < (self._until or 0.0)
        most = self._limits.max_idle_seconds
        waits = nothing.paused is not None or nothing.denied or lingers
        if not (waits if most is None else passed < most):
            return False
        state = fleet.PAUSED if nothing.paused is not None else fleet.WAITING
        sign = fleet.Sign(nothing.paused.study_id if nothing.paused else None, state)
        fleet.beat(self._database, myself(self._settings), sign)
        pause = IDLE_POLL_SECONDS * self._growth * random.uniform(0.7, 1.0)  # noqa: S311 -- not all at one moment
        self._growth = min(MAX_IDLE_GROWTH, IDLE_GROWTH * self._growth)  # a fleet that waits must not be a burden
        time.sleep(pause)
        return True


def _next_study(database: Database, study_name: str | None, unusable: Collection[str]) -> tuple[str | None, _Nothing]:
    """The study to work on; without one, why not."""
    paused: LoadedStudy | None = None
    live: list[float] = []
    reason = "no trials left to start"
    for name in [study_name] if study_name else [name for name in study_names(database) if name not in unusable]:
        try:
            study = load_study(database, name)
            now = progress(database, study)
        except UsageError:  # somebody else's in the same database, or of another version, or deleted just now
            if study_name:
                raise
            continue
        if now.state == budget.RUNNING and (now.abandoned or now.startable):
            return name, _Nothing(f"study {name}: others hold what is left of it", denied=True)
        if now.state == budget.PAUSED:
            paused = study
        if now.state == budget.RUNNING and now.running:
            with database.engine.connect() as connection:
                live.append(leases.seconds_left(connection, study.study_id) or 0.0)
        if study_name:
            reason = f"study {name}: {now.reason}"
    return None, _Nothing(reason, paused, max(live) if live else None)


def myself(settings: Settings) -> fleet.Worker:
    """This process in the table of workers."""
    return fleet.Worker(OWNER, socket.gethostname(), os.getpid(), str(choose_device(settings.device)))


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
        raise UsageError(
            f"device {name} (--device or HPSEARCH_DEVICE): this machine has {', '.join(known)}; auto takes the best one"
        )
    return torch.device(name)


def _prepare(
    database: Database, study: LoadedStudy, settings: Settings, device: torch.device, interruption: Interruption
) -> Bench:
    """Load the data onto the device, and make sure that the study's model can be built for it."""
    spec = study.spec
    if mistakes := catalogue.check_names(spec):
        raise UsageError(f"study {study.name}: {'; '.join(mistakes)}")
    constructor = catalogue.load("hpsearch.models", spec.model.name)
    with interruption.breakable():  # a download takes long
        dataset = dataset_of(spec, settings)
    pin_data(database, study, dataset.fingerprint)
    kept = open_checkpoints(settings.weights)
    bench = Bench(
        session=Session(
            database,
            study,
            myself(settings),
            settings.lease_seconds,
            lambda owner: crashes.last_words(settings.home / "crashes", owner),
        ),
        data=place(dataset, device),
        constructor=constructor,
        classes=dataset.classes,
        interruption=interruption,
        fingerprint=dataset.fingerprint,
        settings=settings,
        checkpoints=open_checkpoints(settings.checkpoints),
        weights=kept,
        pictures=Pictures(open_shelf(settings.pictures)),
        start=weights.of_export(kept, spec.model.export, dataset.classes) if spec.model.export else None,
    )
    try_models(bench)
    return bench
