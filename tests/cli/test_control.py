"""Many worker processes: exact budgets, time zones, pause, resume, stop and extend."""

import json
import signal
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy
from optuna.trial import TrialState

from hpsearch.storage.events import events
from hpsearch.storage.open import connect
from hpsearch.storage.studies import load_study
from tests.cli.running import hpsearch, start
from tests.postgres import PostgresServer
from tests.studies import TINY

LONG = ("--set", "training.epochs=10000", "--set", "pruner.name=none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with one study file."""
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def status(folder: Path, study: str = "tiny") -> dict[str, object]:
    """What `hpsearch status --json` says."""
    found: dict[str, object] = json.loads(hpsearch(folder, "status", study, "--json").stdout)
    return found


def wait_until(folder: Path, **expected: object) -> dict[str, object]:
    """Wait until the status says this."""
    deadline = time.monotonic() + 60
    while any((now := status(folder))[key] != value for key, value in expected.items()):
        assert time.monotonic() < deadline, now
        time.sleep(0.2)
    return now


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_eight_workers_share_twenty_trials_exactly(folder: Path, postgres: PostgresServer, kind: str) -> None:
    url = postgres.new_database() if kind == "postgresql" else f"sqlite:///{folder / 'study.db'}"
    hpsearch(folder, "create-study", "tiny.toml", "--trials", "20", HPSEARCH_STORAGE=url)
    crew = [start(folder, "worker", "tiny", HPSEARCH_STORAGE=url, HPSEARCH_DEVICE="cpu") for _ in range(8)]
    for process in crew:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    late = hpsearch(folder, "worker", "tiny", "--workers", "4", HPSEARCH_STORAGE=url)
    assert "all of its 20 trials have been started" in late.stdout
    with connect(url) as database:
        trials = load_study(database, "tiny").optuna_study.trials
    assert [trial.number for trial in trials] == list(range(20))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_workers_in_three_time_zones(folder: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with connect_plain(url) as connection:  # what a session gets if it asks for nothing
        connection.execute(sqlalchemy.text(f"ALTER DATABASE {url.rpartition('/')[2]} SET timezone = 'Asia/Kolkata'"))
    hpsearch(folder, "create-study", "tiny.toml", "--trials", "12", HPSEARCH_STORAGE=url)
    zones = ("UTC", "Asia/Tokyo", "America/New_York")
    lease = {"HPSEARCH_LEASE_SECONDS": "20", "HPSEARCH_STORAGE": url, "HPSEARCH_DEVICE": "cpu"}
    crew = [start(folder, "worker", "tiny", TZ=zone, PGTZ=zone, **lease) for zone in zones]
    for process in crew:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    with connect(url) as database:
        study = load_study(database, "tiny")
        trials, happened = study.optuna_study.trials, events(database, study.study_id)
    assert len(trials) == 12
    assert happened == []  # nobody took a live trial for an abandoned one
    now = datetime.now(UTC).replace(tzinfo=None)
    for trial in trials:
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert 0 <= (now - trial.datetime_complete).total_seconds() < 300
        assert trial.datetime_start <= trial.datetime_complete


def connect_plain(url: str) -> sqlalchemy.Connection:
    """A connection that commits by itself."""
    return sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool).connect()


def test_pause_resume_and_stop(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml", *LONG)
    process = start(folder, "worker", "tiny", HPSEARCH_DEVICE="cpu")
    try:
        now = wait_until(folder, running=1)
        hpsearch(folder, "pause", "tiny")
        now = wait_until(folder, running=0, state="paused")
        assert (now["waiting"], now["trials"]) == (1, "0/6")
        deadline = time.monotonic() + 30
        while [worker["state"] for worker in status(folder)["workers"]] != ["paused"]:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline
        assert "is paused already" in hpsearch(folder, "pause", "tiny").stdout
        hpsearch(folder, "resume", "tiny")
        wait_until(folder, running=1, state="running")
        text = hpsearch(folder, "status", "tiny").stdout
        for word in ("training", "waits for storage", "cpu", "released", "control"):
            assert word in text
        hpsearch(folder, "stop", "tiny")
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "study tiny: it is stopped" in output
    assert "next: hpsearch resume tiny" in output
    assert output.count("study tiny: it is paused; it goes on after `hpsearch resume") == 1
    assert status(folder)["workers"] == []
    assert "it is stopped" in hpsearch(folder, "worker", "tiny").stdout


def test_extend(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml", "--trials", "1")
    hpsearch(folder, "worker", "tiny")
    assert "1000000000 at most" in hpsearch(folder, "extend", "tiny", "--trials", "1000000000", code=2).stderr
    extended = hpsearch(folder, "extend", "tiny", "--trials", "1").stdout
    assert "2 trials instead of 1" in extended
    assert extended.endswith("next: hpsearch worker tiny\n")
    hpsearch(folder, "stop", "tiny")
    extended = hpsearch(folder, "extend", "tiny", "--trials", "1").stdout
    assert extended.endswith("next: hpsearch resume tiny && hpsearch worker tiny\n")
    hpsearch(folder, "resume", "tiny")
    hpsearch(folder, "worker", "tiny")
    assert status(folder)["trials"] == "3/3"


def test_extend_says_when_another_limit_has_ended_the_study(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml", "--set", "budget.epochs=3")
    hpsearch(folder, "worker", "tiny")
    said = hpsearch(folder, "extend", "tiny", "--trials", "2").stdout
    assert "none of them can start: its budget of 3 epochs" in said
    assert "next:" not in said


def test_a_space_that_is_used_up(folder: Path) -> None:
    small = ("--set", "space={ optimizer = ['sgd', 'adam'], batch_size = [16, 32] }", "--set", "first=[]")
    created = hpsearch(folder, "create-study", "tiny.toml", *small, "--trials", "50").stdout
    assert "4 trials, all that there is to try" in created
    hpsearch(folder, "worker", "tiny", "--workers", "2")
    tried = [trial["searched"] for trial in json.loads(hpsearch(folder, "trials", "tiny", "--json").stdout)]
    assert len({json.dumps(one, sort_keys=True) for one in tried}) == len(tried) == 4
    refused = hpsearch(folder, "extend", "tiny", "--trials", "1", code=2)
    assert "tries all of its 4 configurations already" in refused.stderr


def test_a_space_of_which_failed_and_repeated_trials_took_places_can_be_finished(folder: Path) -> None:
    small = ("--set", "space={ optimizer = ['sgd', 'adam'], batch_size = [16, 32] }", "--set", "first=[]")
    hpsearch(folder, "create-study", "tiny.toml", *small)
    with connect(f"sqlite:///{folder / 'storage' / 'hpsearch.db'}") as database:
        study = load_study(database, "tiny").optuna_study
        for given in ({"batch_size": 17}, *2 * [{"optimizer": "sgd", "batch_size": 16}]):
            study.enqueue_trial(given)
    hpsearch(folder, "worker", "tiny")
    assert "give at most 2," in hpsearch(folder, "extend", "tiny", "--trials", "3", code=2).stderr
    hpsearch(folder, "extend", "tiny", "--trials", "2")
    hpsearch(folder, "worker", "tiny")
    found = [trial["searched"] for trial in json.loads(hpsearch(folder, "trials", "tiny", "--json").stdout)]
    assert len({json.dumps(one, sort_keys=True) for one in found if one}) == 4
    assert "tries all of its 4" in hpsearch(folder, "extend", "tiny", "--trials", "1", code=2).stderr


def test_a_killed_worker_is_seen_and_its_trial_taken_over(folder: Path) -> None:
    hpsearch(folder, "create-study", "tiny.toml", *LONG, "--trials", "1")
    process = start(folder, "worker", "tiny", HPSEARCH_DEVICE="cpu", HPSEARCH_LEASE_SECONDS="1")
    wait_until(folder, running=1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(folder, abandoned=1, state="waiting for workers")
    other = start(folder, "worker", "tiny", HPSEARCH_DEVICE="cpu")
    wait_until(folder, abandoned=0, running=1)
    assert "adopted" in hpsearch(folder, "status", "tiny").stdout
    other.send_signal(signal.SIGINT)
    assert other.wait(timeout=60) == 75
    other.communicate()
