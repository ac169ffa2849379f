"""What the storage costs: hpsearch against Optuna call by call, on SQLite and PostgreSQL.

Run: python -m benchmarks.storage    (in the repository's folder; about fifteen minutes; `--help` names the parts)

Both sides work on studies of the same trials in databases of their own. PostgreSQL is started here, with fsync on.
"""

import argparse
import multiprocessing
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import optuna
import psycopg
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy import insert, text

from benchmarks.population import NAME, lenet, populated, quality, reports
from hpsearch.search import pruners
from hpsearch.search.asking import ask, suggest
from hpsearch.search.samplers import make_sampler
from hpsearch.search.session import Session
from hpsearch.spec import StudySpec
from hpsearch.storage import fleet, ledger
from hpsearch.storage.ledger import End
from hpsearch.storage.open import Database, connect
from hpsearch.storage.studies import LoadedStudy, load_study
from hpsearch.storage.tables import INTERMEDIATE_VALUES
from tests.postgres import running_server
from tests.sessions import report, take

LANES, EPOCHS, TRIALS, LEASE = 64, 100, 1_000, 600.0
STUDY = ("training.epochs=100", "pruner.min_epochs=1")  # rungs at 1, 3, 9, 27 and 81
OPTUNAS_EPOCHS = (1, 50, 100)  # at which Optuna is measured; between them its cost is taken to be linear
WORKERS, EMPTY_REPORTS = 4, 5
EMPTY_TRIALS = {"tpe": 512, "random": 2_048}  # that train nothing, on either side

Result = TypeVar("Result")
New = Callable[[], str]  # the URL of a new, empty database


def timed(work: Callable[..., Result], *arguments: Any) -> tuple[float, Result]:
    """Seconds, and what came of it."""
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result


def session(database: Database, study: LoadedStudy) -> Session:
    return Session(database, study, fleet.Worker(f"{os.getpid()}", "here", os.getpid(), "cpu"), LEASE)


def compare(what: str, theirs: float, ours: float, note: str = "", unit: str = "s") -> None:
    ratio = ours / theirs if unit == "trials/s" else theirs / ours
    print(f"  {what:58s}{theirs:10.2f}{ours:10.3f} {unit:8s}{ratio:8.0f} times  {note}", flush=True)


@contextmanager
def study_of(new: New, spec: StudySpec, num_trials: int) -> Iterator[tuple[Database, LoadedStudy]]:
    database, study = populated(new(), spec, num_trials)
    with database:
        yield database, study


# 64 lanes, 100 epochs: reports and decisions


def rungs(new: New) -> None:
    """Storage time of 64 lanes over 100 epochs, at 1,000 finished trials; nobody is stopped."""
    print(f"\n{LANES} lanes x {EPOCHS} epochs at {TRIALS} finished trials: reports and decisions, all in")
    ours = {
        name: our_epochs(new, lenet("training.epochs=100", f"pruner={{name='{name}'}}")) for name in ("asha", "median")
    }
    halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    note = f"Optuna measured at epochs {', '.join(map(str, OPTUNAS_EPOCHS))}, extrapolated"
    compare(
        "median, Optuna's default: 100 decisions",
        their_epochs(new, optuna.pruners.MedianPruner()),
        ours["median"],
        note,
    )
    compare("successive halving: five rungs", their_epochs(new, halving, (1, 3, 9, 27, 81)), ours["asha"], note)


def our_epochs(new: New, spec: StudySpec) -> float:
    with study_of(new, spec, TRIALS) as (database, study):
        mine = session(database, study)
        leases = [one.lease for one in take(mine, LANES)]
        epochs = [reports(leases, epoch) for epoch in range(1, EPOCHS + 1)]
        return timed(lambda: [report(mine, epoch, LEASE) for epoch in epochs])[0]


def their_epochs(new: New, pruner: optuna.pruners.BasePruner, rungs: tuple[int, ...] = ()) -> float:
    """Epochs at rungs are measured, each; of the others a few, each with the values of those before already there."""
    with study_of(new, lenet(*STUDY), TRIALS) as (database, _):
        theirs = optuna.load_study(study_name=NAME, storage=database.storage, pruner=pruner)
        theirs.sampler = optuna.samplers.RandomSampler(seed=0)
        lanes = [theirs.ask() for _ in range(LANES)]

        def epoch(number: int) -> None:
            for lane in lanes:
                lane.report(quality(lane.number, number), number)
            for lane in lanes:
                lane.should_prune()

        measured, last = {}, 0
        for number in sorted({*OPTUNAS_EPOCHS, *rungs}):
            skip(database, lanes, range(last + 1, number))
            (measured[number], _), last = timed(epoch, number), number
    plain = [number for number in OPTUNAS_EPOCHS if number not in rungs]
    at = {number: np.interp(number, plain, [measured[one] for one in plain]) for number in range(1, EPOCHS + 1)}
    return float(sum((at | {number: measured[number] for number in rungs}).values()))


def skip(database: Database, lanes: list[optuna.Trial], epochs: range) -> None:
    """Values of epochs that are not measured, in bulk."""
    rows = [
        {
            "trial_id": lane._trial_id,
            "step": epoch,
            "intermediate_value": quality(lane.number, epoch),
            "intermediate_value_type": "FINITE",
        }
        for lane in lanes
        for epoch in epochs
    ]
    if rows:
        with database.engine.begin() as connection:
            connection.execute(insert(INTERMEDIATE_VALUES), rows)


# 64 suggestions


def suggestions(new: New) -> None:
    """64 new trials, with their parameters, at 1,000 finished ones."""
    print(f"\n{LANES} trials with TPE's suggestions (space of studies/lenet.toml) at {TRIALS} finished trials")
    for sampler in ("tpe", "random"):
        spec = lenet(*STUDY, f"sampler={{name='{sampler}'}}")
        first, ours = our_suggestions(new, spec)
        with study_of(new, spec, TRIALS) as (_, study):
            theirs = study.optuna_study
            theirs.sampler = optunas_sampler(spec)
            ask_optuna(theirs, spec, 1)
            once, _ = timed(ask_optuna, theirs, spec, LANES)
        compare(sampler, once, ours, f"hpsearch's first trial, with the reading of the study: {first:.2f} s")


def our_suggestions(new: New, spec: StudySpec) -> tuple[float, float]:
    """The first trial, with the reading of the study, and 64 more."""
    with study_of(new, spec, TRIALS) as (database, study):
        mine = session(database, study)
        return timed(take, mine, 1)[0], timed(take, mine, LANES)[0]


def ask_optuna(study: optuna.Study, spec: StudySpec, num: int) -> None:
    for _ in range(num):
        suggest(study.ask(), spec)


def optunas_sampler(spec: StudySpec) -> optuna.samplers.BaseSampler:
    if spec.sampler.name == "random":
        return optuna.samplers.RandomSampler(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`, which conditions need
        return optuna.samplers.TPESampler(n_startup_trials=16, group=True, seed=0)


# Trials that train nothing


def throughput(new: New) -> None:
    """Trials per second of four processes; each trial reports five values and ends."""
    print(f"\ntrials that train nothing: {EMPTY_REPORTS} reports each, {WORKERS} worker processes, from an empty study")
    for sampler, num_trials in EMPTY_TRIALS.items():
        spec = lenet("training.epochs=5", "pruner={name='none'}", f"sampler={{name='{sampler}'}}")
        theirs = per_second(new, spec, optimize, num_trials, 1)
        for lanes in (LANES, 1):
            ours = per_second(new, spec, empty_lanes, num_trials, lanes)
            compare(f"{sampler}, {num_trials} trials, lanes per worker: {lanes}", theirs, ours, unit="trials/s")


def per_second(new: New, spec: StudySpec, work: Callable[..., None], num_trials: int, lanes: int) -> float:
    url = new()
    with study_of(lambda: url, spec, 0) as (_, study):
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(WORKERS + 1)
        share = (num_trials // WORKERS, lanes, ready)
        workers = [context.Process(target=work, args=(url, spec, *share)) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        ready.wait()
        took, _ = timed(ready.wait)  # until all are done
        for worker in workers:
            worker.join()
        ended = study.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert all(worker.exitcode == 0 for worker in workers)
    assert len(ended) >= num_trials
    assert all(len(trial.intermediate_values) == EMPTY_REPORTS for trial in ended)
    return len(ended) / took


def optimize(url: str, spec: StudySpec, num_trials: int, _lanes: int, ready: Any) -> None:
    with connect(url) as database:
        study = load_study(database, NAME).optuna_study
        study.sampler = make_sampler(spec, os.getpid()) if spec.sampler.name == "random" else optunas_sampler(spec)

        def objective(trial: optuna.Trial) -> float:
            suggest(trial, spec)
            for epoch in range(1, EMPTY_REPORTS + 1):
                trial.report(quality(trial.number, epoch), epoch)
            return quality(trial.number, EMPTY_REPORTS)

        ready.wait()
        study.optimize(objective, n_trials=num_trials)
        ready.wait()


def empty_lanes(url: str, _spec: StudySpec, num_trials: int, lanes: int, ready: Any) -> None:
    with connect(url) as database:
        mine = session(database, load_study(database, NAME))
        ready.wait()
        done = 0
        while done < num_trials:
            leases = [one.lease for one in take(mine, min(lanes, num_trials - done))]
            for epoch in range(1, EMPTY_REPORTS + 1):
                report(mine, reports(leases, epoch), LEASE)
            ends = [End(lease, TrialState.COMPLETE, quality(lease.number, EMPTY_REPORTS)) for lease in leases]
            done += len(mine.finish(ends))
        ready.wait()


# The start of a worker

OURS = """
from hpsearch.search.session import Session
from hpsearch.storage import fleet
from hpsearch.storage.open import connect
from hpsearch.storage.studies import load_study
database = connect(URL)
session = Session(database, load_study(database, NAME), fleet.Worker("w", "here", 1, "cpu"), 60.0)
assert session.assign(session.lease(1).leases)
"""
THEIRS = """
import optuna, warnings
warnings.simplefilter("ignore")
optuna.logging.set_verbosity(optuna.logging.ERROR)
sampler = optuna.samplers.TPESampler(n_startup_trials=16, group=True, seed=0)
study = optuna.load_study(study_name=NAME, storage=URL, sampler=sampler)
trial = study.ask()
trial.suggest_float("learning_rate", 3e-4, 5e-2, log=True)
"""
TORCH = "import torch\n"
REPORT = """
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
print(int(peak) / 1024)
"""


def start(new: New) -> None:
    """A fresh process until its first trial is drawn up, on a study of 10,000 trials."""
    print("\nstart of a worker on a study of 10000 trials: a fresh process until its first trial is drawn up")
    url = new()
    with study_of(lambda: url, lenet(*STUDY), 10_000):
        theirs, ours, both = (fresh(program, url) for program in (THEIRS, OURS, TORCH + OURS))
    compare("time", theirs[0], ours[0], f"with `import torch` {both[0]:.2f} s")
    compare("resident memory at the most", theirs[1], ours[1], f"with `import torch` {both[1]:.0f} MB", "MB")


def fresh(program: str, url: str, times: int = 2) -> tuple[float, float]:
    """Seconds and MB of a process of its own; the best of so many."""
    code = f"URL, NAME = {url!r}, {NAME!r}\n{program}\n{REPORT}"
    found = []
    for _ in range(times):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        found.append((time.perf_counter() - started, float(done.stdout)))
    return min(found)


# What grows with the number of trials


def growth(new: New) -> None:
    """Each part of the work on 64 trials, in milliseconds, by the number of finished trials."""
    print(f"\nhpsearch, {LANES} trials at once, in ms, by the number of finished trials")
    columns = {number: parts(new, number) for number in (100, 1_000, 10_000)}
    print(f"  {'':44s}" + "".join(f"{number:10d}" for number in columns))
    for name in columns[100]:
        print(f"  {name:44s}" + "".join(f"{times[name] * 1e3:10.1f}" for times in columns.values()), flush=True)


def parts(new: New, num_trials: int) -> dict[str, float]:
    spec = lenet(*STUDY)
    with study_of(new, spec, num_trials) as (database, study):
        mine = session(database, study)
        found = {"first look at the study (view)": timed(mine._view.sync)[0]}
        take(mine, 1)
        found["take"], taken = timed(ledger.take, database, study.study_id, LANES, "me", LEASE, study.plan)
        leases = taken.leases
        found["sync, 64 new trials"], _ = timed(mine._view.sync)
        found["suggestions (TPE)"], drawn = timed(
            lambda: [ask(mine._view, spec, lease, 0, None)[0] for lease in leases]
        )
        found["set up"], _ = timed(ledger.set_up, database, study.study_id, drawn)
        epochs = [reports(leases, epoch) for epoch in range(1, 10)]
        found["report, one epoch"] = min([timed(ledger.report, database, epoch, LEASE)[0] for epoch in epochs])
        found["sync, nine new epochs"], _ = timed(mine._view.sync)
        trials = [mine._view.trial(lease.trial_id) for lease in leases]
        for pruner in (mine._pruner, pruners.median(spec)):
            name = f"decisions, {type(pruner).__name__}"
            found[name], _ = timed(pruners.failing, pruner, mine._view.study, trials)
        ends = [End(lease, TrialState.COMPLETE, 0.5) for lease in leases]
        found["finish"], _ = timed(ledger.finish, database, ends)
        found["sync, 64 ended trials"], _ = timed(mine._view.sync)
    return found


# The marks of the design


def marks(new: New) -> None:
    """What must hold whatever Optuna needs; the best of five, because the machine may be shared."""
    print(f"\nhpsearch alone, the best of five, load {os.getloadavg()[0]:.1f}")
    spec = lenet(*STUDY)
    epochs = min(our_epochs(new, spec) for _ in range(5))
    print(f"  {LANES} lanes x {EPOCHS} epochs with their rungs at {TRIALS} trials{epochs:20.2f} s")
    print(f"  {LANES} trials with TPE at {TRIALS} trials{min(our_suggestions(new, spec)[1] for _ in range(5)):36.2f} s")
    url = new()
    with study_of(lambda: url, spec, 10_000):
        seconds, memory = fresh(OURS, url, 5)
    print(f"  start at 10000 trials{seconds:49.2f} s, {memory:.0f} MB", flush=True)


PARTS = {part.__name__: part for part in (marks, rungs, suggestions, throughput, start, growth)}


@contextmanager
def databases(name: str) -> Iterator[New]:
    """A function that makes new databases of this kind."""
    with ExitStack() as stack:
        if name == "postgresql":
            yield stack.enter_context(running_server(fsync=True)).new_database
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield lambda: f"sqlite:///{folder / str(time.monotonic_ns())}.db"


def version(new: New) -> str:
    with sqlalchemy.create_engine(new()).connect() as connection:
        return str(connection.scalar(text("SHOW server_version")))


def main() -> None:
    parser = argparse.ArgumentParser(description="what the storage costs, hpsearch against Optuna call by call")
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        f"Python {platform.python_version()}, Optuna {optuna.__version__}, SQLAlchemy {sqlalchemy.__version__}, ",
        end="",
    )
    print(f"SQLite {sqlite3.sqlite_version}, psycopg {psycopg.__version__}")
    for name in arguments.databases:
        with databases(name) as new:
            print(f"\n=== {name} {version(new) if name == 'postgresql' else ''}{'':46s}Optuna  hpsearch")
            for part in arguments.parts:
                PARTS[part](new)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
