"""Ctrl-C and SIGTERM, taken between steps of bookkeeping and at once while a trial trains."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_SECONDS = 0.05  # of this process' computing, after a request that Python has swallowed: then it comes again


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
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGVTALRM)  # by the last one a request comes again
        before = [signal.signal(number, self._handle) for number in signals]
        hook = sys.unraisablehook

        def ignored(unraisable: Any) -> None:
            """Python calls this where an exception ends: in `__del__`, and in a callback of a weak reference."""
            if not isinstance(unraisable.exc_value, Interrupted):
                hook(unraisable)
                return
            signal.setitimer(signal.ITIMER_VIRTUAL, AGAIN_SECONDS)
            self._allowed = True  # the block goes on

        sys.unraisablehook = ignored
        try:
            yield
        finally:
            sys.unraisablehook = hook
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
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
