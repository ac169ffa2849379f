"""Ctrl-C and SIGTERM, taken where a worker may stop: between steps of training, and at once while data is loaded."""

import math
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INSISTENT = 3  # Ctrl-C so often ends the process where it is, as one that is killed: a step may hang
LAST_SECONDS = 3.0  # that it then has to end by an exception, which a step that hangs in C++ never sees


class Interrupted(BaseException):
    """The process was asked to stop.

    No Exception, as KeyboardInterrupt is none: a network's or a data set's code would take it for one of its own.
    """


class Interruption:
    """Whether the process was asked to stop (SIGINT or SIGTERM).

    The request is remembered, so that neither a database transaction nor an operation of torch is cut in the middle:
    torch calls Python from C++, where an exception that it does not expect may abort the process. `stoppable()` blocks
    end at their next `heed()`, `breakable()` ones at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._num_keys = 0  # how often it was Ctrl-C
        self._breakable = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the two signals here until the block ends."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._handle) for number in signals]
        try:
            with _ending_what_hangs():
                yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """A block that a request ends with Interrupted, where its code calls `heed()`, in whichever thread."""
        _heeded.append(self)
        try:
            heed()
            yield
        finally:
            _heeded.remove(self)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A block that a request ends with Interrupted at any point, as a download. Nothing of torch belongs in it."""
        self._breakable = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._breakable = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._num_keys += number == signal.SIGINT
        if self._num_keys >= INSISTENT:
            signal.default_int_handler(number, frame)
        if self._breakable:
            self._breakable = False
            raise Interrupted


@contextmanager
def _ending_what_hangs() -> Iterator[None]:
    """End the process if it is in the block some time after it was insisted on: Python's handlers wait for C++ code."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reading,), name="hpsearch-insistence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, _OVER)
        thread.join()
        os.close(writing)
        os.close(reading)


_OVER = b"\0"  # no signal has this number


def _watch(reading: int) -> None:
    """Count the signals, a byte each, until the block is over."""
    num_keys, until, poll = 0, math.inf, select.poll()  # not select's own function, which stops at 1,024 open files
    poll.register(reading, select.POLLIN)
    while (left := until - time.monotonic()) > 0:
        if poll.poll(1000.0 * min(left, 3600.0)):
            numbers = os.read(reading, 4096)
            if _OVER in numbers:
                return
            num_keys += numbers.count(signal.SIGINT)
            if num_keys >= INSISTENT:
                until = min(until, time.monotonic() + LAST_SECONDS)
    os._exit(128 + signal.SIGINT)


_heeded: list[Interruption] = []  # of the blocks that are under way; signals are the process' own too


def heed() -> None:
    """Raise Interrupted if the process was asked to stop, and a block that this belongs to may be left here."""
    if any(one.requested for one in _heeded):
        raise Interrupted
