"""Workers that train nothing: many in one process, each a thread with a connection of its own; benchmarks/scale.py."""

import dataclasses
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import create_engine
from sqlalchemy.pool import SingletonThreadPool

from benchmarks.population import NAME, quality, reports
from hpsearch.recipe import Recipe
from hpsearch.search.asking import digest_of, recipe
from hpsearch.search.samplers import at, distribution
from hpsearch.search.session import Session
from hpsearch.space import active
from hpsearch.storage import fleet, ledger
from hpsearch.storage import open as opening
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Drawn, End
from hpsearch.storage.open import FAULTS, Database, connect
from hpsearch.storage.studies import RECIPE_KEY, load_study
from tests.sessions import report, take

LEASE_SECONDS, SPEED = 120.0, 10_000.0
STACK_BYTES = 512 * 1024  # of a thread


@dataclass(frozen=True)
class Load:
    """What the workers of one process do: one report of all lanes each `period` seconds, trials of `epochs` epochs.

    They begin one after another during `ramp` seconds; then `seconds` are measured.
    """

    url: str
    workers: int
    lanes: int
    epochs: int
    ramp: float
    seconds: float
    period: float = 1.0


@dataclass
class Seen:
    """What came of it: seconds from when each report was due, and of each change to new trials; faults; CPU seconds."""

    reports: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    faults: int = 0
    cpu_seconds: float = 0.0


class Simulated(Session):
    """A worker's real session, but that what it tries is drawn here, at random and without a look at the study.

    The view of a study with many thousands of trials is for each worker's own memory; a thousand do not fit here.
    """

    def _draw_up(self, leases: Sequence[Lease], _placed: Callable[[Recipe], Recipe]) -> dict[int, Recipe]:
        drawn = [self._drawn(lease) for lease in leases]
        accepted, _ = ledger.set_up(self.database, self.study.study_id, [one for one, _ in drawn])
        return {one.lease.trial_id: chosen for one, chosen in drawn if one.lease.trial_id in accepted}

    def _drawn(self, lease: Lease) -> tuple[Drawn, Recipe]:
        spec, draw = self.study.spec, random.Random(f"trial {lease.number}")
        params: dict[str, Any] = {}
        for name, parameter in spec.parameters.items():
            if active(parameter, params):
                params[name] = at(parameter, draw.random())
        kinds = {name: distribution(spec.parameters[name]) for name in params}
        internal = {name: (kind.to_internal_repr(params[name]), kind) for name, kind in kinds.items()}
        chosen = recipe(spec, params, lease.number)
        return Drawn(lease, internal, {RECIPE_KEY: chosen.as_dict()}, {}, digest_of(params, None)), chosen


def simulate(load: Load, ready: Any, results: Any) -> None:
    """The workers of one process; `ready` is a barrier, `results` a queue that gets what was `Seen`."""
    threading.stack_size(STACK_BYTES)
    seen = Seen()
    with connect(load.url) as database:
        many = one_connection_each(database, load.workers)
        study = load_study(database, NAME)
        database.close()
        names = [fleet.Worker(f"simulated:{os.getpid()}:{i}", "here", os.getpid(), "cpu") for i in range(load.workers)]
        sessions = [Simulated(many, study, name, LEASE_SECONDS) for name in names]
        ready.wait()
        begin = time.monotonic()
        threads = [
            threading.Thread(target=_work, args=(session, load, begin, seen, random.Random(f"{os.getpid()} {i}")))
            for i, session in enumerate(sessions)
        ]
        for thread in threads:
            thread.start()
        _sleep_until(begin + load.ramp)
        before = time.process_time()
        _sleep_until(begin + load.ramp + load.seconds)
        seen.cpu_seconds = time.process_time() - before
        for thread in threads:
            thread.join()
        many.engine.dispose()
    results.put(seen)


def one_connection_each(database: Database, num_threads: int) -> Database:
    """The same database with a connection for each thread that it keeps, as each worker's process has one."""
    options = opening._engine_options(database.engine.url)
    options |= {"poolclass": SingletonThreadPool, "pool_size": num_threads + 1}
    return dataclasses.replace(database, engine=create_engine(database.engine.url, **options))


def _work(session: Session, load: Load, begin: float, seen: Seen, dice: random.Random) -> None:
    measured, end = begin + load.ramp, begin + load.ramp + load.seconds
    _sleep_until(begin + dice.uniform(0.0, max(0.0, load.ramp - load.period)))
    leases: list[Lease] = []
    epoch, last = 0, dice.randint(1, load.epochs)  # the first trials are shorter, so that changes do not coincide
    due = time.monotonic()
    while due < end:
        try:
            if not leases:
                started = time.monotonic()
                leases, epoch = [one.lease for one in take(session, load.lanes)], 0
                if started >= measured:
                    seen.changes.append(time.monotonic() - started)
            due = max(due + load.period, time.monotonic())
            _sleep_until(due)
            if due >= end:
                break
            epoch += 1
            report(session, reports(leases, epoch), LEASE_SECONDS, SPEED)
            if due >= measured:
                seen.reports.append(time.monotonic() - due)
            if epoch >= last:
                session.finish([End(lease, TrialState.COMPLETE, quality(lease.number, epoch)) for lease in leases])
                leases, last = [], load.epochs
        except FAULTS:
            seen.faults += 1
            time.sleep(dice.uniform(0.5, 1.0) * load.period)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
