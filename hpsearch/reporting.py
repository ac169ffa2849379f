"""Reporting: what a worker has to say to the storage, done by a thread while an epoch trains."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event

from hpsearch.recipe import Recipe
from hpsearch.search.session import Session
from hpsearch.stock import RENEW, Stock
from hpsearch.storage.ledger import End, Report
from hpsearch.storage.open import FAULTS
from hpsearch.storage.studies import Standing
from hpsearch.train.lanes import Result
from hpsearch.train.program import EpochResult
from hpsearch.trial import Bench, Run

FIRST_EPOCH_SECONDS = 1800.0  # of a worker's first epoch, in which nobody knows how long one takes


@dataclass
class Batch:
    """An epoch of the trials of a group, by trial id: trained, and not known to be recorded.

    `seconds` is the device time of each trial; `due` are those that get a checkpoint once the epoch is recorded. `kept`
    are those that still were this worker's when it was.
    """

    results: dict[int, Result]
    seconds: float
    reports: list[Report] = field(default_factory=list)
    due: set[int] = field(default_factory=set)
    kept: set[int] | None = None

    @property
    def trained(self) -> dict[int, EpochResult]:
        """What went well."""
        return {key: result for key, result in self.results.items() if isinstance(result, EpochResult)}

    @property
    def broken(self) -> dict[int, Exception]:
        """What did not."""
        return {key: result for key, result in self.results.items() if isinstance(result, Exception)}

    @property
    def images_per_second(self) -> float:
        """Of all trials together."""
        return sum(result.images_per_second for result in self.trained.values())

    def advance(self, running: Mapping[int, Run], lost: Iterable[int]) -> None:
        """Note in those that are not lost that the epoch is recorded."""
        for key in self.trained.keys() - set(lost):
            running[key].epoch = self.trained[key].epoch


@dataclass
class Errand:
    """What is to be done in the database: an epoch is recorded, trials end, others are taken and drawn up.

    After a fault `run` goes on with the step that failed. Without `placed`, which says with which recipe a trial begins
    here, nothing is drawn up. `held` are the ids of the trials that ended and still were this worker's, and `now` is
    how far the study is then.
    """

    session: Session
    stock: Stock
    lease_seconds: float
    batch: Batch | None = None
    ends: Sequence[End] = ()
    num_wanted: int = 0
    placed: Callable[[Recipe], Recipe] | None = None
    images_per_second: float = 0.0
    held: set[int] | None = None
    now: Standing | None = None

    def run(self) -> None:
        """Do what has not been done yet."""
        if self.batch is not None and self.batch.kept is None:
            reports = self.batch.reports
            self.batch.kept = self.session.record(reports, self.lease_seconds) if reports else set()
        if self.held is None and (self.ends or self.num_wanted > 0):
            self.held, taken = self.session.turn(self.ends, self.num_wanted, self.lease_seconds)
            self.stock.hold(self.num_wanted, taken)
        if self.placed is not None:
            self.stock.draw_up(self.placed)
            self.stock.prepare(self.placed, self.lease_seconds)
            self.session.beat_if_due(self.images_per_second)
        if self.ends:
            with suppress(*FAULTS):  # whoever needs the database next will see
                self.now = self.session.standing()


class Reporter:
    """Does errands, one after another, in a thread of its own; `batches` are epochs not known to be recorded.

    The thread and the worker never use the database, or the stock, at once, because a worker has one connection:
    whoever wants to use it waits for the `answer` first, if an errand is on its way.
    """

    def __init__(self, bench: Bench, running: Mapping[int, Run], stock: Stock) -> None:
        self._session, self._running, self._stock = bench.session, running, stock
        self._lease_seconds, self._renewed = bench.settings.lease_seconds, time.monotonic()
        self._interruption = bench.interruption
        self._session.goes_on = self._goes_on
        self._thread = ThreadPoolExecutor(1, "hpsearch-reports")
        self._doing: Future[None] | None = None
        self.errand: Errand | None = None  # that is on its way
        self.batches: list[Batch] = []

    def send(self, errand: Errand) -> None:
        """Begin an errand; there must be none on its way."""
        self.errand, self._lease_seconds = errand, errand.lease_seconds
        self._doing = self._thread.submit(errand.run)

    def answer(self) -> Errand:
        """Wait for the errand that is on its way.

        After an exception of the database, which is raised here, the next call begins again.
        """
        assert self.errand is not None
        doing, self._doing = self._doing or self._thread.submit(self.errand.run), None
        with self._session.waiting():
            doing.result()
        errand, self.errand = self.errand, None
        return errand

    @contextmanager
    def renewing(self, lease_seconds: float) -> Iterator[None]:
        """A block in which leases do not run out, though no epoch renews them: the first one may take longer than that.

        A process that hangs in it is found out after FIRST_EPOCH_SECONDS.
        """
        ended, gives_up = Event(), time.monotonic() + FIRST_EPOCH_SECONDS

        def renew() -> None:
            while not ended.wait(RENEW * lease_seconds) and time.monotonic() < gives_up:
                self._renew(lease_seconds)

        renewal = self._thread.submit(renew)  # after the errand that is on its way
        try:
            yield
        finally:
            ended.set()
            renewal.result()

    def _goes_on(self) -> bool:
        """Renew leases between two suggestions, of which a batch may take longer than they last; whether it goes on."""
        if time.monotonic() - self._renewed > RENEW * self._lease_seconds:
            self._renew(self._lease_seconds)
        return not self._interruption.requested

    def _renew(self, lease_seconds: float) -> None:
        self._renewed = time.monotonic()
        held = [*(run.lease for run in list(self._running.values())), *self._stock.leases.values()]
        with suppress(*FAULTS):  # whoever needs the database next will see
            self._session.renew(held, lease_seconds)

    def split(self, batch: Batch, keys: set[int]) -> None:
        """Leave only these trials in the last batch; the others get one of their own, for later."""
        others = {key: result for key, result in batch.results.items() if key not in keys}
        batch.results = {key: result for key, result in batch.results.items() if key in keys}
        if others:
            self.batches.append(Batch(others, batch.seconds))

    def unreported(self, key: int) -> list[EpochResult]:
        """The epochs of one trial that are not known to be recorded."""
        return [batch.trained[key] for batch in self.batches if key in batch.trained]

    def drop(self, key: int) -> None:
        """Record nothing more of a trial."""
        for batch in self.batches:
            batch.results.pop(key, None)

    def close(self) -> None:
        """Wait for what is on its way, and end the thread."""
        self._thread.shutdown()
