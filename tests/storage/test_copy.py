"""hpsearch storage copy: the same studies on both sides, whatever is in them; or nothing, and one sentence."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from filelock import FileLock
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import MetaData, create_engine, func, inspect, select, text

from hpsearch.errors import HpsearchError
from hpsearch.interrupt import Interruption
from hpsearch.search.session import Session
from hpsearch.settings import Settings
from hpsearch.storage import copy as copying
from hpsearch.storage import fleet, fsck, ledger, tables
from hpsearch.storage.copy import TABLES, Copied, Step, copy
from hpsearch.storage.open import Database, connect, create, filling
from hpsearch.storage.studies import create_study, load_study, progress, study_names
from hpsearch.worker import Limits, serve
from tests.cli.running import hpsearch, start
from tests.postgres import PostgresServer, running_server
from tests.sessions import take
from tests.storage.sandbox import ABANDONED, Sandbox, value_of
from tests.working import tiny


@pytest.fixture
def destination(storage_url: str, tmp_path: Path, postgres: PostgresServer) -> str:
    """An empty storage of the kind that the source is not."""
    return postgres.new_database() if storage_url.startswith("sqlite") else f"sqlite:///{tmp_path / 'new' / 'copy.db'}"


def copied(source: str, destination: str) -> Copied:
    """Copy to the end."""
    with connect(source) as database:
        *steps, last = copy(database, destination)
    assert isinstance(last, Copied)
    dones = [step.num_done for step in steps if isinstance(step, Step)]
    assert dones == sorted(dones)
    assert dones[-1] == 2 * last.num_rows
    return last


def rows(url: str) -> dict[str, list[str]]:
    """Every row of every table that is there, as the database itself describes them."""
    engine = sqlalchemy.create_engine(url)
    found = MetaData()
    found.reflect(engine)
    with engine.connect() as connection:
        content = {
            name: sorted(repr(sorted(row._asdict().items())) for row in connection.execute(select(table)))
            for name, table in found.tables.items()
        }
    engine.dispose()
    return content


def as_optuna_reads(url: str) -> dict[str, Any]:
    """Every study with all its trials, through Optuna's public API."""
    with connect(url) as database:
        names = optuna.get_all_study_names(database.storage)
        studies = [optuna.load_study(study_name=name, storage=database.storage) for name in names]
        return {
            study.study_name: as_text([study.directions, study.user_attrs, *map(vars, study.trials)])
            for study in studies
        }


def as_text(value: Any) -> str:
    """For comparison: nan equals nothing, and a dictionary has no order."""
    if isinstance(value, dict):
        return str(sorted((key, as_text(one)) for key, one in value.items()))
    return str(list(map(as_text, value))) if isinstance(value, list) else repr(value)


def add_everything(database: Database) -> None:
    """Studies of Optuna's own, with all that is hard to carry from one database to another."""
    study = optuna.create_study(study_name="Größe “☃” 数", storage=database.storage)
    study.set_user_attr("notes", "ünï\ncode \t \\N \\. 🙂 '\" \u0000")
    study.set_user_attr("nested", {"big": 2**200, "small": 5e-324, "flags": [True, False, None], "nan": math.nan})
    study.enqueue_trial({"kind": "b", "depth": 3}, user_attrs={"from": "a person"})
    study.enqueue_trial({"kind": "a", "rate": 0.1})
    reports = ((1.0, math.nan, -0.1), (math.inf, 0.1 + 0.2), (-math.inf, 1e-320), (1.7976931348623157e308,), ())
    values = (0.1 + 0.2, math.inf, -math.inf, None, None)
    for number, (curve, value) in enumerate(zip(reports, values, strict=True)):
        trial = study.ask()
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            trial.suggest_float("rate", 1e-9, 1.0, log=True)
        else:
            trial.suggest_int("depth", 1, 2**40)
        trial.suggest_categorical("mixed", [None, True, 1.5, "ß", 7])
        for step, reported in enumerate(curve):
            trial.report(reported, step)
        trial.set_user_attr("text", "日本語\r\n")
        state = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[
            number
        ]
        study.tell(trial, value, state=state)
    study.ask().report(0.5, 2**31 - 1)  # stays RUNNING
    study.enqueue_trial({"kind": "a"})  # stays WAITING
    both = optuna.create_study(study_name="two", storage=database.storage, directions=["minimize", "maximize"])
    both.tell(both.ask(), [math.inf, 0.25])
    optuna.create_study(study_name="deleted", storage=database.storage)
    optuna.delete_study(study_name="deleted", storage=database.storage)  # leaves a gap in the ids
    with database.engine.begin() as connection:
        connection.execute(models.TrialHeartbeatModel.__table__.insert().values(trial_id=1))


def test_there_and_back_again(
    sandbox: Sandbox, destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "PORTION", 3)
    add_everything(sandbox.database)
    sandbox.database.close()
    report = copied(sandbox.url, destination)
    assert (report.num_studies, report.num_trials) == (3, 6 + 7 + 1)
    assert report.left_out == ()
    back = f"sqlite:///{tmp_path / 'back.db'}"
    copied(destination, back)
    assert rows(destination) == rows(back)
    assert as_optuna_reads(sandbox.url) == as_optuna_reads(destination) == as_optuna_reads(back)
    if sandbox.url.startswith("postgresql"):
        assert rows(sandbox.url) == rows(back)
    with connect(destination) as database:
        study = load_study(database, "tiny")
        assert fsck.run(database, study, sandbox.place, mend=False) == fsck.Report(6, (), ())
        create_study(database, tiny(), "another")  # its ids come after those that were copied
        assert study_names(database)[-1] == "another"
        optuna.load_study(study_name="two", storage=database.storage).ask().set_user_attr("a", 1)
    assert set(rows(back)) == {table.name for table in TABLES}


def test_a_running_study_goes_on_in_the_new_storage(storage_url: str, destination: str, tmp_path: Path) -> None:
    settings = Settings(storage_url, tmp_path, None, "cpu", checkpoint_seconds=0.0)
    with create(storage_url) as database:
        create_study(database, tiny(), "tiny")
        list(serve(database, "tiny", settings, Interruption(), Limits(max_trials=2)))
        study = load_study(database, "tiny")
        session = Session(database, study, fleet.Worker("me", "here", 1, "cpu"), 3600.0)
        lease = take(session, 1)[0].lease
        report_epoch(database, lease, 1, 3600.0)
        report = copied(storage_url, destination)
        assert report.num_running == 1
        assert 0 < report.lease_seconds <= 3600.0
        report_epoch(database, lease, 2)  # the old storage knows nothing of the new one
        with connect(destination) as new:
            assert [row["epoch"] for row in ledger.epochs(new, lease.trial_id)] == [1]
            ledger.prepare(new, [(lease, {})], 0.0)  # the copy of its lease runs out
            list(serve(new, "tiny", settings, Interruption(), Limits()))
            study = load_study(new, "tiny")
            now = progress(new, study)
            assert (now.finished, now.running, now.waiting, now.done) == (6, 0, 0, True)
            assert fsck.run(new, study, settings.checkpoints, mend=False) == fsck.Report(6, (), ())
        assert [row["epoch"] for row in ledger.epochs(database, lease.trial_id)] == [1, 2]


def test_a_copy_is_of_one_moment(sandbox: Sandbox, destination: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PORTION", 1)
    with connect(sandbox.url) as database:
        steps = copy(database, destination)
        next(steps)
        sandbox.report(sandbox.leases[ABANDONED], 3)
        create_study(sandbox.database, tiny(), "later")
        *_, last = steps
    assert isinstance(last, Copied)
    assert last.num_studies == 1
    with connect(destination) as new:
        assert study_names(new) == ["tiny"]
        assert [row["epoch"] for row in ledger.epochs(new, sandbox.ids[ABANDONED])] == [1, 2]


@pytest.mark.timeout(600)
def test_workers_that_run_meanwhile(tmp_path: Path, postgres: PostgresServer) -> None:
    old, new = f"sqlite:///{tmp_path / 'old.db'}", postgres.new_database()
    changes = {"epochs": "epochs = 60", "trials": "trials = 4", 'name = "asha"': 'name = "none"'}
    variables = {"HPSEARCH_LEASE_SECONDS": "2", "HPSEARCH_CHECKPOINT_SECONDS": "0.2", "HPSEARCH_DEVICE": "cpu"}
    with create(old) as database:
        create_study(database, tiny(**changes), "tiny")
        workers = start(tmp_path, "worker", "tiny", "--workers", "2", HPSEARCH_STORAGE=old, **variables)
        try:
            wait_for_running(database, 2)
            report = copied(old, new)
        finally:
            os.killpg(workers.pid, signal.SIGKILL)
            workers.communicate()
    assert report.num_running
    hpsearch(tmp_path, "worker", "tiny", "--workers", "2", HPSEARCH_STORAGE=new, **variables)
    with connect(new) as database:
        study = load_study(database, "tiny")
        trials = study.optuna_study.get_trials(deepcopy=False)
        assert [trial.number for trial in trials] == list(range(4))
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        assert all(list(trial.intermediate_values) == list(range(1, 61)) for trial in trials)
        # Checkpoints of trials that had ended in the old storage only may be left over.
        place = str(tmp_path / "storage" / "checkpoints")
        assert fsck.run(database, study, place, mend=True).left == ()


def report_epoch(database: Database, lease: ledger.Lease, epoch: int, seconds: float = 1.0) -> None:
    value = value_of(lease, epoch)
    measured = dict.fromkeys(tables.METRICS, 0.5) | {"validation_accuracy": value}
    assert ledger.report(database, [ledger.Report(lease, epoch, value, measured, 1.0)], seconds)


def wait_for_running(database: Database, number: int) -> None:
    """Until so many trials are being trained, and an epoch of each is recorded."""
    deadline = time.monotonic() + 60
    count = select(func.count(tables.EPOCHS.c.trial_id.distinct()))
    while time.monotonic() < deadline:
        with database.engine.connect() as connection:
            if connection.scalars(count).one() >= number:
                return
        time.sleep(0.1)
    raise AssertionError("the workers did not begin")


# What goes wrong: nothing is left in the destination.


def num_rows(url: str) -> int:
    """In all tables, but for the two that say of which version they are."""
    versions = ("alembic_version", "version_info")
    return sum(len(content) for name, content in rows(url).items() if name not in versions)


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of its own, because it is stopped."""
    with running_server() as server:
        yield server


@pytest.mark.parametrize("done", [0.1, 0.7], ids=["while writing", "while comparing"])
def test_a_destination_that_goes_away(
    sandbox: Sandbox, own_server: PostgresServer, done: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "PORTION", 1)
    url = own_server.new_database()
    with connect(sandbox.url) as database:
        steps = copy(database, url)
        while (step := next(steps)).num_done < done * step.num_all:  # type: ignore[union-attr]
            pass
        own_server.stop()
        with pytest.raises(HpsearchError, match="nothing has been copied") as caught:
            list(steps)
        assert "\n" not in str(caught.value)
    own_server.start()
    assert rows(url) == {}
    copied(sandbox.url, url)


SQLITE_TRIGGER = "CREATE TRIGGER no BEFORE INSERT ON hpsearch_epochs BEGIN SELECT RAISE(ABORT, 'not today'); END"
POSTGRES_FUNCTION = """CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
CREATE TRIGGER no BEFORE INSERT ON hpsearch_epochs FOR EACH ROW EXECUTE FUNCTION no()"""


def with_trigger(url: str, *statements: str) -> None:
    """Make the tables, and let a row of an epoch be no ordinary one."""
    with create(url) as database, database.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_a_destination_that_refuses_a_row(sandbox: Sandbox, destination: str) -> None:
    trigger = POSTGRES_FUNCTION.format(body="RAISE 'not today';") if "postgresql" in destination else SQLITE_TRIGGER
    with_trigger(destination, trigger)
    before = rows(destination)
    with pytest.raises(HpsearchError, match=r"not today.*nothing has been copied"):
        copied(sandbox.url, destination)
    assert rows(destination) == before
    assert num_rows(destination) == 0


def test_a_destination_that_changes_a_row(sandbox: Sandbox, postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with_trigger(url, POSTGRES_FUNCTION.format(body="NEW.learning_rate = 0.6; RETURN NEW;"))
    with pytest.raises(HpsearchError, match=r"hpsearch_epochs came out as .*0.6.*nothing has been copied"):
        copied(sandbox.url, url)
    assert num_rows(url) == 0


def test_a_new_file_is_deleted_after_a_failure(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_continue_ids", lambda _new: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        copied(sandbox.url, f"sqlite:///{tmp_path / 'new' / 'copy.db'}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy.db.lock"]


def test_a_file_that_another_one_has_made_meanwhile_is_nobodys_to_delete(tmp_path: Path) -> None:
    file, waiting = tmp_path / "copy.db", threading.Event()

    def fail() -> None:
        waiting.set()
        with suppress(ZeroDivisionError), filling(f"sqlite:///{file}", [MetaData()]):
            _ = 1 / 0

    second = threading.Thread(target=fail)
    with FileLock(f"{file}.lock"):  # the first one is at work
        second.start()
        waiting.wait()
        time.sleep(0.2)
        with create_engine(f"sqlite:///{file}").begin() as connection:
            connection.exec_driver_sql("CREATE TABLE ours (number INTEGER)")
    second.join()
    with create_engine(f"sqlite:///{file}").connect() as connection:
        assert inspect(connection).has_table("ours")


def test_rows_that_belong_to_nothing(sandbox: Sandbox, destination: str) -> None:
    sandbox.sql("DELETE FROM trials WHERE trial_id = {0}")
    with pytest.raises(HpsearchError, match="fsck"):
        copied(sandbox.url, destination)
    if destination.startswith("postgresql"):
        assert rows(destination) == {}
    sandbox.fsck(mend=True)
    copied(sandbox.url, destination)


def test_other_tables_are_left_out_and_said_to_be(sandbox: Sandbox, destination: str) -> None:
    with sandbox.database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (a INTEGER)"))
    assert copied(sandbox.url, destination).left_out == ("mine",)
    sandbox.sql("UPDATE studies SET study_name = study_name")
    with sandbox.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE hpsearch_events ADD COLUMN colour INTEGER"))
    with pytest.raises(HpsearchError, match=r"colour.*copy with the version that wrote it"):
        copied(sandbox.url, destination)


def test_every_table_is_copied(database: Database) -> None:
    assert {table.name for table in TABLES} == set(inspect(database.engine).get_table_names())
