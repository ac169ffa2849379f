"""Patience: how a worker waits for a storage that fails."""

import math
import random
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from hpsearch.errors import StorageAway
from hpsearch.events import Event, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.storage.open import BUSY_TIMEOUT_SECONDS, FAULTS, Database, is_read_only

STORAGE_PAUSE_SECONDS = 0.5  # before the second attempt to reach a storage; doubles with each
MAX_STORAGE_PAUSE_SECONDS = 15.0
CALM_SECONDS = 30.0  # without a fault; then the next one is the first of a new row

Value = TypeVar("Value")


class Patience:
    """How a worker waits for a storage that fails: with growing pauses, and not for ever.

    `waiting` makes a block whose time is counted.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        interruption: Interruption,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._database, self._settings, self._interruption, self._waiting = database, settings, interruption, waiting
        self._failed_seconds = 0.0  # of the present row of faults; what succeeded between them counts not
        self._since = self._last = -math.inf  # when the last fault began, and when it was last waited for
        self._reason, self._pause = "", STORAGE_PAUSE_SECONDS

    def begins(self, error: Exception, called: float | None = None) -> WorkerWarned | None:
        """Take note of a fault; what to tell about it, if it is the first of a row.

        `called` is when the call began that failed, by the monotonic clock: a storage may take longer to fail than a
        calm lasts. None: nobody knows, and it may have waited for a lock of SQLite.
        """
        self._reason, now = self._database.explain(error), time.monotonic()
        began = now - BUSY_TIMEOUT_SECONDS if called is None else called
        calm, self._since = began - self._last, max(began, self._last)
        if calm > self._pause:
            self._pause = STORAGE_PAUSE_SECONDS  # something has succeeded, or the call would have come at once
        if calm < CALM_SECONDS:
            return None
        self._failed_seconds, self._since = 0.0, now  # there may have been hours of work in the call
        return WorkerWarned(f"the storage does not answer ({self._reason}); waiting for it")

    def wait(self) -> None:
        """Pause, then go on until the storage can be reached; a full disk can be read but not written.

        Raises:
            StorageAway: it has failed for longer than the settings allow, the process was asked to stop, or the
                storage has become read-only.
        """
        while True:
            failed = self._failed_seconds + time.monotonic() - self._since
            over = failed + self._pause > self._settings.storage_wait_seconds
            if over or self._interruption.requested or is_read_only(self._database.engine.url):
                raise StorageAway(
                    f"the storage has failed for {failed:.0f} s ({self._reason}); "
                    f"what was trained is in {self._settings.checkpoints}; run the same command again once it is mended"
                )
            time.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 -- so that many workers do not come back at once
            self._pause = min(2 * self._pause, MAX_STORAGE_PAUSE_SECONDS)
            answers = self._database.answers()
            self._last = time.monotonic()  # after the answer, which may take long as well
            if answers:
                self._failed_seconds += self._last - self._since
                return

    def patiently(self, call: Callable[[], Value]) -> Generator[Event, None, Value]:
        """The call's value; while the storage is away, wait for it and call again.

        Raises:
            StorageAway: see `wait`.
        """
        while True:
            called = time.monotonic()
            try:
                return call()
            except FAULTS as error:
                if warning := self.begins(error, called):
                    yield warning
                with self._waiting():
                    self.wait()
