"""Signals: taken where a block may stop, at once where it may break, and remembered elsewhere."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
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


HANGING = """
import ctypes
from hpsearch.interrupt import Interruption

library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
with Interruption().listening():
    library.pthread_mutex_lock(mutex)
    print("hangs", flush=True)
    library.pthread_mutex_lock(mutex)  # for ever: it holds the lock itself
"""


def test_a_third_ctrl_c_ends_what_hangs_outside_of_python() -> None:
    with subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            until = time.monotonic() + 60.0
            while process.poll() is None and time.monotonic() < until:
                process.send_signal(signal.SIGINT)  # three or more: while one is pending, another is lost
                time.sleep(0.05)
            assert process.returncode == 130
        finally:
            process.kill()


def test_listening_leaves_nothing_behind() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before, threads, files = signal.set_wakeup_fd(writing), threading.enumerate(), os.listdir("/proc/self/fd")
    try:
        with Interruption().listening(), Interruption().listening():
            signalled()
        assert threading.enumerate() == threads
        assert os.listdir("/proc/self/fd") == files
    finally:
        assert signal.set_wakeup_fd(before) == writing
        os.close(reading)
        os.close(writing)


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


def test_many_open_files_hinder_nobody() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    files: list[int] = []
    try:
        while not files or files[-1] < 1100:
            files.append(os.dup(0))
        with Interruption().listening():
            (thread,) = [thread for thread in threading.enumerate() if thread.name == "hpsearch-insistence"]
            os.kill(os.getpid(), signal.SIGTERM)
            assert thread.is_alive()
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
