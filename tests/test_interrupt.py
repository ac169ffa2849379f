"""Signals: taken where a block may stop, at once where it may break, and remembered elsewhere."""

import contextlib
import os
import signal
import time

import pytest

from hpsearch.interrupt import Interrupted, Interruption, heed

LOST_SECONDS = 10.0  # then a request has been lost


def signalled(_reference: object = None) -> None:
    """A signal comes here."""
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_block_stops_where_it_heeds_and_nowhere_else(number: signal.Signals) -> None:
    """Between two steps of training: torch may abort the process if an exception comes out of its own Python code."""
    interruption, done = Interruption(), list[str]()

    def block() -> None:
        with interruption.stoppable():
            heed()
            signal.raise_signal(number)
            done.append("the step")
            heed()
            done.append("another step")

    with interruption.listening(), pytest.raises(Interrupted):
        block()
    assert done == ["the step"]
    assert interruption.requested
    heed()  # nothing is to be left any more


def test_a_breakable_block_ends_at_once() -> None:
    interruption = Interruption()

    def block() -> None:
        with interruption.breakable():
            signalled()
            until = time.monotonic() + LOST_SECONDS
            while time.monotonic() < until:
                time.sleep(0.01)
            raise LookupError("the request was lost")

    with interruption.listening(), pytest.raises(Interrupted):
        block()


def test_a_signal_elsewhere_is_remembered() -> None:
    interruption = Interruption()
    with interruption.listening():
        signalled()
        heed()
        for begin in (interruption.stoppable, interruption.breakable):
            with pytest.raises(Interrupted), begin():
                raise LookupError("the block begins")


def test_a_third_ctrl_c_leaves_a_step_that_hangs() -> None:
    interruption, presses = Interruption(), list[int]()

    def block() -> None:
        with interruption.stoppable():
            for press in range(3):
                presses.append(press)
                signal.raise_signal(signal.SIGINT)

    with interruption.listening(), pytest.raises(KeyboardInterrupt):
        block()
    assert presses == [0, 1, 2]


def test_no_code_takes_a_request_for_an_error_of_its_own() -> None:
    interruption, broken = Interruption(), list[Exception]()

    def block() -> None:
        with interruption.breakable():
            try:
                signalled()
                time.sleep(LOST_SECONDS)
            except Exception as error:  # as a network or a data set that is not ours might
                broken.append(error)

    with interruption.listening(), contextlib.suppress(Interrupted):
        block()
        raise LookupError("the request was lost")
    assert broken == []
