"""Workers behind a real PgBouncer in transaction mode: fewer connections to the server than workers."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from optuna.trial import TrialState
from sqlalchemy import select, text

from hpsearch.doctor import OK, WARNING, check_database
from hpsearch.events import TrialEnded, WorkerWarned, from_json
from hpsearch.interrupt import Interruption
from hpsearch.processes import THREAD_VARIABLES
from hpsearch.settings import Settings
from hpsearch.storage import fsck
from hpsearch.storage.leases import now
from hpsearch.storage.open import Database, connect, create
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from hpsearch.storage.tables import TRIALS
from hpsearch.worker import Limits, serve
from tests.pgbouncer import MISSING, binary, pooled, through
from tests.postgres import PostgresServer
from tests.working import tiny

pytestmark = pytest.mark.skipif(binary() is None, reason=MISSING)

WORKERS, POOL, TRIALS_IN_ALL = 4, 2, 16


@pytest.fixture
def direct(postgres: PostgresServer) -> str:
    """A database whose sessions are in Tokyo's time unless they say otherwise."""
    url = postgres.new_database()
    with plain(url) as connection:
        name = url.rpartition("/")[2]
        connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'".encode())
    return url


@pytest.fixture
def pooled_url(direct: str, postgres: PostgresServer) -> Iterator[str]:
    """The same database behind a PgBouncer that has fewer connections than there are workers."""
    with pooled(postgres, POOL) as pooler:
        yield through(direct, pooler.port)


def plain(url: str) -> "psycopg.Connection[tuple[object, ...]]":
    """A connection that is not hpsearch's."""
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def check(database: Database, study: LoadedStudy, num_trials: int, began: datetime, home: Path) -> None:
    """Exactly the budget, nothing for fsck to find, and times between the beginning and now."""
    trials = study.optuna_study.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert fsck.run(database, study, str(home / "checkpoints"), mend=False).left == ()
    with database.engine.connect() as connection:
        times = connection.execute(select(TRIALS.c.datetime_start, TRIALS.c.datetime_complete)).all()
    ends = datetime.now(UTC).replace(tzinfo=None)
    for start, end in times:  # naive, in UTC
        assert began <= start <= end <= ends


def test_four_workers_share_two_connections(direct: str, pooled_url: str, tmp_path: Path) -> None:
    """Four processes of `hpsearch worker`."""
    began, most = datetime.now(UTC).replace(tzinfo=None), 0
    with create(pooled_url) as database:
        create_study(database, tiny(trials=f"trials = {TRIALS_IN_ALL}"), "tiny")
    environment = {"HPSEARCH_STORAGE": pooled_url, "HPSEARCH_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    environment |= dict.fromkeys(THREAD_VARIABLES, "1")
    command = [sys.executable, "-P", "-m", "hpsearch", "worker", "--events", "--device", "cpu", "tiny"]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        for _ in range(WORKERS)
    ]
    with plain(direct) as connection:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
        count += "backend_type = 'client backend' AND pid <> pg_backend_pid()"  # not the server's own cleaning
        while any(worker.poll() is None for worker in workers):
            row = connection.execute(count.encode()).fetchone()
            assert row is not None
            most = max(most, int(str(row[0])))
            time.sleep(0.01)
    events = [from_json(line) for worker in workers for line in worker.communicate()[0].splitlines()]
    assert not [event for event in events if isinstance(event, WorkerWarned)]
    ended = sum(isinstance(event, TrialEnded) for event in events)
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    assert ended == TRIALS_IN_ALL
    assert 1 <= most <= POOL
    with connect(direct) as database:
        check(database, load_study(database, "tiny"), TRIALS_IN_ALL, began, tmp_path)


def test_a_worker_needs_no_second_connection(postgres: PostgresServer, direct: str, settings: Settings) -> None:
    """With one connection to the server, whoever asked for a second one while holding the first would wait for ever."""
    began = datetime.now(UTC).replace(tzinfo=None)
    with pooled(postgres, 1) as pooler:
        url = through(direct, pooler.port)
        with create(url) as database:
            create_study(database, tiny(), "tiny")
        with connect(url) as database:
            list(serve(database, "tiny", replace(settings, storage_url=url), Interruption(), Limits()))
            check(database, load_study(database, "tiny"), 6, began, settings.home)


def test_tables_are_made_by_many_at_once(pooled_url: str) -> None:
    errors: list[Exception] = []

    def make() -> None:
        try:
            create(pooled_url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with connect(pooled_url) as database:
        assert database.storage.get_all_studies() == []


def test_time_is_utc_whoever_had_the_connection_before(direct: str, pooled_url: str) -> None:
    utc = text("SELECT now()::timestamp - (now() AT TIME ZONE 'UTC')")  # Optuna's heartbeats: the session's time
    with create(pooled_url) as database, plain(pooled_url) as other:
        for zone in ("America/New_York", "Asia/Tokyo"):
            for _ in range(2 * POOL):
                other.execute(f"SET timezone = '{zone}'".encode())
                with database.engine.connect() as connection:
                    assert connection.scalar(utc) == timedelta(0)
                    assert abs(now(connection) - datetime.now(UTC).timestamp()) < 60
    with plain(direct) as own:
        assert own.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)


def test_doctor_counts_no_connections_behind_a_pooler(pooled_url: str) -> None:
    found = {check.name: check for check in check_database(pooled_url, None, 1_000)}
    assert {check.state for check in found.values()} <= {OK, WARNING}
    assert "1000 workers share the connections of a pooler" in found["connections"].text


def test_statements_are_prepared_where_that_works(direct: str, pooled_url: str) -> None:
    with create(pooled_url) as behind, connect(direct) as before:
        for _ in range(20):
            with behind.engine.connect() as first, behind.engine.connect() as second:
                assert {first.scalar(text("SELECT 1")), second.scalar(text("SELECT 1"))} == {1}
        with behind.engine.connect() as connection, before.engine.connect() as own:
            prepared = text("SELECT count(*) FROM pg_prepared_statements")
            assert connection.scalar(prepared) == 0
            for _ in range(20):
                num = own.scalar(prepared)
            assert num > 0
