"""Ctrl-C and SIGTERM, taken between steps of bookkeeping and at once while a trial trains."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The process was asked to stop while it trained."""


class Interruption:
    """Whether the process was asked to stop (SIGINT or SIGTERM).

    Inside `allowed()` the request raises Interrupted at once; anywhere else it is only remembered, so that a database
    transaction is never cut in the middle.
    """

    def __init__(self) -> None:
        self.requested = False
        self._allowed = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the two signals here until the block ends."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._handle) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A block that may be left at any point by Interrupted."""
        self._allowed = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._allowed = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if self._allowed:
            self._allowed = False
            raise Interrupted
