"""Signals: taken at once where that is allowed, remembered elsewhere, and never lost."""

import os
import signal
import time
import weakref
from collections.abc import Callable

import pytest

from hpsearch.interrupt import Interrupted, Interruption

LOST_SECONDS = 10.0  # then a request has been lost


class Thing:
    """Something that can be referred to weakly."""


class Final:
    """Something that a signal meets while it is finalised."""

    def __del__(self) -> None:
        signalled()


def signalled(_reference: object = None) -> None:
    """A signal comes here."""
    os.kill(os.getpid(), signal.SIGTERM)


def finalised() -> None:
    """Python ignores exceptions of `__del__`."""
    one = Final()
    del one


def called_back() -> None:
    """And those of callbacks of weak references."""
    thing = Thing()
    reference = weakref.ref(thing, signalled)
    del thing
    assert reference() is None


@pytest.mark.parametrize("happens", [signalled, finalised, called_back])
def test_a_signal_ends_the_block_wherever_it_comes(happens: Callable[[], None]) -> None:
    interruption = Interruption()

    def block() -> None:
        with interruption.allowed():
            happens()
            until = time.monotonic() + LOST_SECONDS
            while time.monotonic() < until:
                pass  # it computes

    with interruption.listening(), pytest.raises(Interrupted):
        block()
    assert interruption.requested


def test_a_signal_elsewhere_is_remembered() -> None:
    interruption = Interruption()
    with interruption.listening():
        finalised()
        with pytest.raises(Interrupted), interruption.allowed():
            raise LookupError("the block begins")
