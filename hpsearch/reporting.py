"""Reporting: epochs on their way to the storage, written by a thread while the next ones train."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from hpsearch.search.session import Session
from hpsearch.storage.ledger import Report
from hpsearch.train.lanes import Result
from hpsearch.train.program import EpochResult
from hpsearch.trial import Run


@dataclass
class Batch:
    """An epoch of the trials of a group, by trial id: trained, and not known to be recorded.

    `seconds` is the device time of each trial; `due` are those that get a checkpoint once the epoch is recorded.
    """

    results: dict[int, Result]
    seconds: float
    reports: list[Report] = field(default_factory=list)
    due: set[int] = field(default_factory=set)
    sent: bool = False

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


class Reporter:
    """Records epochs, one after another, in a thread of its own; `batches` are those not known to be recorded.

    The thread and the worker never use the database at once, because a worker has one connection: whoever wants to use
    it waits for the `answer` first, if something is `on_its_way`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(1, "hpsearch-reports")
        self._writing: Future[set[int]] | None = None
        self._lease_seconds = 0.0
        self.batches: list[Batch] = []

    @property
    def on_its_way(self) -> bool:
        """Whether the first batch has been sent."""
        return bool(self.batches) and self.batches[0].sent

    def send(self, lease_seconds: float) -> None:
        """Begin to record the first batch, and to renew its leases."""
        self._lease_seconds, self.batches[0].sent = lease_seconds, True
        self._begin()

    def answer(self) -> set[int]:
        """Wait for the first batch: the ids of its trials that still were this worker's.

        After an exception of the database, which is raised here, the next call begins again.
        """
        writing, self._writing = self._writing or self._begin(), None
        with self._session.waiting():
            return writing.result()

    def unreported(self, key: int) -> list[EpochResult]:
        """The epochs of one trial that are not known to be recorded."""
        return [batch.trained[key] for batch in self.batches if key in batch.trained]

    def drop(self, key: int) -> None:
        """Record nothing more of a trial."""
        for batch in self.batches:
            batch.results.pop(key, None)
        self.batches = [batch for batch in self.batches if batch.results or batch.sent]

    def close(self) -> None:
        """Wait for what is on its way, and end the thread."""
        self._thread.shutdown()

    def _begin(self) -> Future[set[int]]:
        batch = self.batches[0]
        self._writing = self._thread.submit(
            self._session.record, batch.reports, self._lease_seconds, batch.images_per_second
        )
        return self._writing
