"""Trials as the ledger knows them: taken, reported, drawn up, by one or by eight threads."""

import threading
from collections.abc import Callable

from hpsearch.sections import Budget
from hpsearch.storage import ledger
from hpsearch.storage.budget import Plan
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Drawn, Report
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy
from hpsearch.storage.tables import METRICS

MEASURED = dict.fromkeys(METRICS, 0.5)


def take_many(
    database: Database, study: LoadedStudy, num: int, owner: str = "me", seconds: float = 60.0
) -> tuple[Lease, ...]:
    """More trials."""
    return ledger.take(database, study.study_id, num, owner, seconds, study.plan).leases


def take(database: Database, study: LoadedStudy, owner: str = "me", seconds: float = 60.0) -> Lease:
    """One more trial."""
    (lease,) = take_many(database, study, 1, owner, seconds)
    return lease


def report(database: Database, lease: Lease, epoch: int, value: float, seconds: float = 60.0) -> None:
    """One epoch of one trial, which must be held."""
    assert ledger.report(database, [Report(lease, epoch, value, MEASURED)], seconds) == {lease.trial_id}


def drawn(lease: Lease, digest: str, **more: object) -> Drawn:
    """A trial without parameters, told apart by its digest."""
    return Drawn(lease, {}, {"a": 1}, {}, digest, **more)  # type: ignore[arg-type]


def plan(study: LoadedStudy, **budget: float) -> Plan:
    """A budget of 100 trials and these limits."""
    return Plan(Budget(trials=100, **budget), study.spec.max_epochs, maximize=True)  # type: ignore[arg-type]


def in_eight_threads(work: Callable[[str, int], None]) -> None:
    """`work(owner, 1 to 3)` eight times at once."""
    threads = [threading.Thread(target=work, args=(f"thread {number}", 1 + number % 3)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
