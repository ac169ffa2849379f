"""URLs, schema creation, and Optuna's own contract for storages on what `open.py` returns."""

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from filelock import FileLock
from sqlalchemy.engine import make_url
from sqlalchemy.event import registry

from hpsearch.errors import StorageError
from hpsearch.storage.open import connect, create, filling, is_read_only, reach
from tests.postgres import PostgresServer


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite:///x.db"]
)
def test_unknown_urls_are_refused_in_one_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for opener in (create, connect):
        with pytest.raises(StorageError) as caught:
            opener(url)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    create("sqlite:///~/studies.db").close()
    assert (tmp_path / "home" / "studies.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    with pytest.raises(StorageError, match="no home folder is known for what follows the ~; write the whole path"):
        connect("sqlite:///~nobody-has-this-name/studies.db")


def test_connect_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no studies yet"):
        connect(f"sqlite:///{tmp_path / 'absent.db'}")
    assert list(tmp_path.iterdir()) == []


def test_connect_to_an_empty_postgresql_database(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with pytest.raises(StorageError, match="holds no studies yet"):
        connect(url)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("ALTER TABLE hpsearch_epochs DROP COLUMN gradient_norm", "table hpsearch_epochs lacks gradient_norm, which"),
        ("DROP TABLE hpsearch_workers", "table hpsearch_workers is missing, which"),
    ],
)
def test_tables_of_another_version_are_refused_before_a_trial_is_taken(
    storage_url: str, statement: str, what: str
) -> None:
    with create(storage_url) as database, database.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    with pytest.raises(StorageError, match=f"{what} this version of hpsearch needs"):
        connect(storage_url)


def test_password_is_never_in_a_message() -> None:
    with pytest.raises(StorageError) as caught:
        connect("postgresql+psycopg://user:s3cret@127.0.0.1:1/db")
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_what_is_no_database_is_left_as_it_was(tmp_path: Path) -> None:
    file, folder = tmp_path / "text.db", tmp_path / "folder"
    file.write_text("this is no database, " * 100)
    folder.mkdir()
    for path, reason in ((file, "not a database"), (folder, "directory")):
        with pytest.raises(StorageError, match=reason):
            create(f"sqlite:///{path}")
        with pytest.raises(StorageError, match=reason), filling(f"sqlite:///{path}", []):
            pytest.fail("it was opened")
    assert sorted(tmp_path.iterdir()) == [folder, file]


def test_sqlite_is_set_up_to_be_shared(tmp_path: Path) -> None:
    with create(f"sqlite:///{tmp_path / 'a' / 'study.db'}") as database, database.engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(sqlalchemy.text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(sqlalchemy.text("PRAGMA busy_timeout")) == 60_000


def test_postgresql_sessions_are_in_utc(postgres: PostgresServer) -> None:
    with create(postgres.new_database()) as database, database.engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SHOW timezone")) == "UTC"


def test_eight_processes_create_the_schema_at_once(storage_url: str) -> None:
    program = "import sys; from hpsearch.storage.open import create; create(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, storage_url], stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    with connect(storage_url) as database:
        assert database.storage.get_all_studies() == []


def test_a_connection_that_was_cut_while_idle_is_replaced(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, one = sqlalchemy.text("SELECT pg_backend_pid()"), sqlalchemy.select(1)
    with create(postgres.new_database()) as database, create(postgres.new_database()) as other:

        def cut() -> None:
            with database.engine.connect() as connection:
                process = connection.scalar(me)
            with other.engine.connect() as connection:
                assert connection.scalar(sqlalchemy.text(f"SELECT pg_terminate_backend({process}, 5000)"))

        monkeypatch.setattr("hpsearch.storage.open.PING_SECONDS", 0.0)
        cut()
        with database.engine.connect() as connection:
            assert connection.scalar(one) == 1
        monkeypatch.setattr("hpsearch.storage.open.PING_SECONDS", 60.0)
        cut()  # just used: it is not asked, and fails, as one does that is cut while it is used
        with pytest.raises(sqlalchemy.exc.OperationalError), database.engine.connect() as connection:
            connection.scalar(one)
        assert database.answers()


def test_no_event_is_registered_under_the_address_of_a_pool_that_is_gone(storage_url: str) -> None:
    create(storage_url).close()
    with reach(storage_url) as engine:
        pass
    engine.connect().close()  # still an engine, as SQLAlchemy says of a pool that was disposed of
    ours = engine.pool.dispatch.connect.ref  # type: ignore[attr-defined]
    targets = [key[0] for key, collections in registry._key_to_collection.items() if ours in collections]
    assert set(targets) == {id(engine.pool)}
    engine.pool.dispose()


def test_tables_that_somebody_else_makes_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.storage.open.BUSY_TIMEOUT_SECONDS", 0.2)
    with FileLock(tmp_path / "study.db.lock"), pytest.raises(StorageError, match=r"cannot be opened.*study\.db\.lock"):
        create(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_a_file_beside_the_database_that_cannot_be_written(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that could only read may have left it; SQLite needs it to write. Root may write everything."""
    file = tmp_path / "study.db"
    for path in (file, Path(f"{file}{end}")):
        path.touch()
    monkeypatch.setattr("os.access", lambda path, _mode: not str(path).endswith(end))
    assert f"study.db{end} cannot be written" in is_read_only(make_url(f"sqlite:///{file}"))
