"""A SQLite database on a full disk, or read-only: workers wait or leave, nothing is damaged, and it goes on."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from hpsearch.artifacts import FolderCheckpoints
from hpsearch.errors import StorageAway, StorageError
from hpsearch.events import EpochDone, Event, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage.open import Database, connect, create
from hpsearch.storage.studies import create_study, load_study, progress
from hpsearch.worker import Limits, serve
from tests.cli.running import hpsearch
from tests.disks import SmallDisk, small_disk
from tests.studies import TINY


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 2 MB with nothing on it."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        yield disk


@pytest.fixture
def settings(disk: SmallDisk, tmp_path: Path) -> Settings:
    """The database on the small disk, everything else beside it; no patience."""
    url = f"sqlite:///{disk.folder}/study.db"
    return Settings(url, tmp_path, None, "cpu", lease_seconds=1.0, storage_wait_seconds=2.0)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """The study `tiny` on the small disk."""
    with create(settings.storage_url) as database:
        create_study(database, parse(TINY, "tiny.toml"), "tiny")
        yield database


def work(database: Database, settings: Settings) -> Iterator[Event]:
    """One worker, to its end."""
    return serve(database, "tiny", settings, Interruption(), Limits())


def work_disturbed(
    database: Database, settings: Settings, trial: int, disturb: Callable[[], None]
) -> tuple[list[Event], str]:
    """One worker, disturbed after the second epoch of a trial: what it told, and why it left (empty: at its end)."""
    told = []
    try:
        for event in work(database, settings):
            told.append(event)
            if isinstance(event, EpochDone) and (event.trial, event.epoch) == (trial, 2):
                disturb()
    except StorageAway as error:
        return told, str(error)
    return told, ""


def integrity(settings: Settings) -> str:
    """What SQLite finds in the file."""
    with connect(settings.storage_url) as database, database.engine.connect() as connection:
        return str(connection.scalar(text("PRAGMA integrity_check")))


def check_finished(database: Database) -> None:
    """Exactly the budget, each curve without a gap."""
    study = load_study(database, "tiny")
    assert progress(database, study).finished == 6
    for number, trial in enumerate(study.optuna_study.trials):
        assert trial.number == number
        assert list(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        assert trial.value == trial.intermediate_values[len(trial.intermediate_values)]


def test_a_worker_leaves_a_full_disk_cleanly_and_the_next_one_goes_on(
    disk: SmallDisk, database: Database, settings: Settings
) -> None:
    told, reason = work_disturbed(database, settings, 0, disk.fill)
    assert "disk is full" in reason
    assert "run the same command again once it is mended" in reason
    assert len([event for event in told if isinstance(event, WorkerWarned)]) == 1
    # What was trained is kept; what still fitted into the room that SQLite's log had kept for itself has ended.
    kept = FolderCheckpoints(settings.home / "checkpoints").keys("")
    running = load_study(database, "tiny").optuna_study.get_trials(states=[TrialState.RUNNING])
    trained = [trial for trial in running if trial.intermediate_values]
    assert len(trained) <= len(kept) <= len(running)  # one that was only taken has trained nothing
    assert integrity(settings) == "ok"
    disk.make_room()
    list(work(database, settings))
    check_finished(database)


def test_a_worker_waits_on_a_full_disk_until_there_is_room(
    disk: SmallDisk, database: Database, settings: Settings
) -> None:
    patient = replace(settings, storage_wait_seconds=60.0)
    timer = threading.Timer(1.5, disk.make_room)

    def fill_for_a_while() -> None:
        disk.fill()
        timer.start()

    told, reason = work_disturbed(database, patient, 0, fill_for_a_while)
    timer.join()
    assert reason == ""
    warnings = [event for event in told if isinstance(event, WorkerWarned)]
    assert len(warnings) == 1
    assert "disk is full" in warnings[0].message
    check_finished(database)
    assert integrity(settings) == "ok"


def test_a_worker_that_begins_on_a_full_disk(disk: SmallDisk, database: Database, settings: Settings) -> None:
    disk.fill()
    started = time.monotonic()
    with pytest.raises(StorageAway, match="disk is full"):
        list(work(database, settings))
    assert time.monotonic() - started < 20
    assert integrity(settings) == "ok"
    disk.make_room()
    list(work(database, settings))
    check_finished(database)


def test_a_checkpoint_folder_on_the_same_full_disk(disk: SmallDisk, database: Database, settings: Settings) -> None:
    together = replace(settings, artifacts=str(disk.folder / "checkpoints"), checkpoint_seconds=0.0)
    reason = work_disturbed(database, together, 1, disk.fill)[1]
    assert reason == "" or "disk is full" in reason  # ended trials make room, so the worker may get through
    assert integrity(settings) == "ok"
    disk.make_room()
    list(work(database, together))
    check_finished(database)


def test_a_database_that_becomes_read_only_ends_the_worker_at_once(
    disk: SmallDisk, database: Database, settings: Settings
) -> None:
    patient = replace(settings, storage_wait_seconds=600.0)

    def forbid() -> None:
        database.close()  # a file system with open files cannot be made read-only
        disk.set_read_only(True)

    reason = work_disturbed(database, patient, 0, forbid)[1]
    assert "cannot be written by this user" in reason
    assert "\n" not in reason
    disk.set_read_only(False)
    assert integrity(settings) == "ok"
    list(work(database, settings))
    check_finished(database)


def test_a_read_only_database_is_refused_in_one_sentence(disk: SmallDisk, settings: Settings, tmp_path: Path) -> None:
    with create(settings.storage_url) as database:
        create_study(database, parse(TINY, "tiny.toml"), "tiny")
    disk.set_read_only(True)
    with pytest.raises(StorageError, match=r"cannot be opened: .* cannot be written by this user.*make it writable"):
        connect(settings.storage_url)
    for command in ("worker", "status", "trials"):
        done = hpsearch(tmp_path, command, "tiny", "--storage", settings.storage_url, code=2)
        assert len((done.stdout + done.stderr).splitlines()) == 1, done.stdout + done.stderr
        assert "make it writable" in done.stderr
    disk.set_read_only(False)
