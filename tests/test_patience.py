"""Patience: a storage is waited for as long as the settings say, however long it takes to fail."""

from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from hpsearch.errors import StorageAway
from hpsearch.events import Event, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.patience import CALM_SECONDS, MAX_STORAGE_PAUSE_SECONDS, Patience
from hpsearch.settings import Settings
from hpsearch.storage.open import BUSY_TIMEOUT_SECONDS

FAULT = OperationalError("X", {}, Exception("database is locked"))
ANSWER_SECONDS = 2 * CALM_SECONDS  # of a storage that is slow in everything


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that patience goes by."""
    clock = Clock()
    monkeypatch.setattr("hpsearch.patience.time", clock)
    return clock


def patience(settings: Settings, clock: Clock, answer_seconds: float = 0.0) -> Patience:
    """For a storage that can be reached, after a while."""

    def answers() -> bool:
        clock.sleep(answer_seconds)
        return True

    engine = SimpleNamespace(url=make_url("postgresql+psycopg://somebody@somewhere/something"))
    database: Any = SimpleNamespace(answers=answers, explain=str, engine=engine)
    return Patience(database, settings, Interruption())


def failing(clock: Clock, seconds: float, times: int) -> Callable[[], str]:
    """A call that takes so long to fail, so many times; then it succeeds."""
    left = times

    def call() -> str:
        nonlocal left
        if left > 0:
            left -= 1
            clock.sleep(seconds)
            raise FAULT
        return "done"

    return call


def warnings_of(waiting: Generator[Event, None, str]) -> int:
    """How often a person is told, until the call succeeds."""
    return sum(isinstance(event, WorkerWarned) for event in waiting)


@pytest.mark.parametrize("seconds", [0.0, BUSY_TIMEOUT_SECONDS, 10 * CALM_SECONDS])
@pytest.mark.parametrize("answer_seconds", [0.0, ANSWER_SECONDS])
def test_a_storage_that_stays_away_is_given_up(
    settings: Settings, clock: Clock, seconds: float, answer_seconds: float
) -> None:
    began, waiting = clock.now, patience(settings, clock, answer_seconds).patiently(failing(clock, seconds, times=1000))
    assert isinstance(next(waiting), WorkerWarned)
    with pytest.raises(StorageAway):
        next(waiting)
    assert clock.now - began <= settings.storage_wait_seconds + 2 * seconds + answer_seconds


@pytest.mark.parametrize("seconds", [0.0, BUSY_TIMEOUT_SECONDS])
def test_so_is_one_of_which_nobody_knows_when_it_was_called(settings: Settings, clock: Clock, seconds: float) -> None:
    waits, began = patience(settings, clock), clock.now
    clock.sleep(seconds)
    assert waits.begins(FAULT)
    while clock.now - began < settings.storage_wait_seconds - 2 * seconds - 2 * MAX_STORAGE_PAUSE_SECONDS:
        waits.wait()
        clock.sleep(seconds)
        assert waits.begins(FAULT) is None
    clock.sleep(settings.storage_wait_seconds)
    with pytest.raises(StorageAway):
        waits.wait()


@pytest.mark.parametrize("seconds", [0.0, BUSY_TIMEOUT_SECONDS])
def test_after_a_calm_the_patience_is_new(settings: Settings, clock: Clock, seconds: float) -> None:
    waits = patience(settings, clock)
    for _ in range(10):
        assert warnings_of(waits.patiently(failing(clock, seconds, times=3))) == 1
        clock.sleep(CALM_SECONDS + 1)
    assert waits.begins(FAULT, clock.now)


def test_what_succeeds_between_two_faults_is_no_time_of_failing(settings: Settings, clock: Clock) -> None:
    """However little calm there is: it is only told anew after one."""
    waits, told = patience(settings, clock), 0
    for _ in range(100):
        told += warnings_of(waits.patiently(failing(clock, 0.0, times=1)))
        clock.sleep(CALM_SECONDS - 5)
    assert told == 1


def test_the_time_that_is_told_is_that_of_failing(settings: Settings, clock: Clock) -> None:
    waits, failed = patience(settings, clock), 0.0

    def fail(times: int) -> None:
        nonlocal failed
        for _ in range(times):
            began = clock.now
            try:
                warnings_of(waits.patiently(failing(clock, 20.0, times=1)))
            finally:
                failed += clock.now - began
            clock.sleep(CALM_SECONDS / 2)

    with pytest.raises(StorageAway) as away:
        fail(100)
    failed -= 20.0  # a row begins when its first fault is known
    assert f"failed for {failed:.0f} s" in str(away.value)
    assert settings.storage_wait_seconds - 2 * 20 < failed <= settings.storage_wait_seconds + 20


def test_a_fault_soon_after_is_of_the_same_row(settings: Settings, clock: Clock) -> None:
    waits = patience(settings, clock)
    assert warnings_of(waits.patiently(failing(clock, 0.0, times=1))) == 1
    clock.sleep(CALM_SECONDS / 2)
    assert warnings_of(waits.patiently(failing(clock, BUSY_TIMEOUT_SECONDS, times=1))) == 0
