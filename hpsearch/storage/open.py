"""From a storage URL to a database: Optuna's storage and the engine beneath it, set up to be shared."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psycopg
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.engine import URL, make_url

from hpsearch.errors import StorageEmpty, StorageError
from hpsearch.settings import redact
from hpsearch.storage import tables
from hpsearch.storage.trials import BulkStorage

# What a call raises while the database is away; transactions have been rolled back.
FAULTS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)

MAGIC = b"SQLite format 3\0"  # the first bytes of a database, https://sqlite.org/fileformat.html
BUSY_TIMEOUT_SECONDS = 60  # how long a SQLite writer waits for another one
CONNECT_TIMEOUT_SECONDS = 10
# A server that has gone without a word is given up after a minute; the system's own defaults are hours.
SILENCE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
PING_SECONDS = 1.5  # a connection that lay idle for longer is tried before it is used
PREPARE_THRESHOLD = 5  # a statement is prepared by PostgreSQL when it is executed so many times; psycopg's default
SCHEMA_LOCK = 0x68707365  # the PostgreSQL advisory lock under which the schema is made ("hpse")


@dataclass(frozen=True)
class Database:
    """One open study database: `storage` for Optuna's public API, `engine` for whole transactions.

    A context manager: at its end, connections are closed.
    """

    storage: BaseStorage
    engine: Engine

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answers(self) -> bool:
        """Whether the database can be reached now."""
        try:
            self.close()  # what is left of a broken connection
            with self.engine.connect() as connection:
                connection.execute(sqlalchemy.select(1))
        except FAULTS:
            return False
        return True

    @contextmanager
    def statements(self) -> Iterator[Connection]:
        """A connection for statements that need no transaction; on PostgreSQL its begin and its end are two journeys.

        There each statement of a transaction sees what was committed before it as well, so that reading needs none.
        """
        with self.engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    def explain(self, error: Exception) -> str:
        """What a call of this database that failed means, in half a sentence."""
        return reason(self.engine.url, error)

    def close(self) -> None:
        """Close every connection; the database can still be used and opens new ones."""
        self.storage.remove_session()
        self.engine.dispose()


def create(url: str) -> Database:
    """Open the database at `url`, making its tables first where they are missing.

    Only `create-study` calls this: workers that race to make a schema fail on SQLite.

    Raises:
        StorageError: the URL has no known form, or the database cannot be reached or written.
    """
    parsed = _parse(url)
    with _readable_errors(parsed):
        with _schema_connection(parsed) as connection:
            _make_tables(connection)
            _has_tables(connection)
        return _open(parsed)


def connect(url: str) -> Database:
    """Open the database at `url`, which must hold hpsearch's tables already.

    Raises:
        StorageError: the URL has no known form, the database cannot be reached, or no study was ever created in it.
    """
    parsed = _parse(url)
    with _readable_errors(parsed):
        there = parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").is_file()
        if there:
            with _passing_engine(parsed) as engine:
                there = _has_tables(engine)
        if not there:
            raise StorageEmpty(
                f"{redact(url)} holds no studies yet: create one with `hpsearch create-study NAME`, "
                "or name another storage with --storage or HPSEARCH_STORAGE"
            )
        return _open(parsed)


@contextmanager
def reach(url: str) -> Iterator[Engine]:
    """The database at `url` whatever it holds, for `hpsearch doctor`; a SQLite file must exist.

    Raises:
        StorageError: the URL has no known form, or the database cannot be reached.
    """
    parsed = _parse(url)
    with _passing_engine(parsed) as engine:
        with _readable_errors(parsed):
            engine.connect().close()
        yield engine


@contextmanager
def filling(url: str, metadata: Sequence[MetaData]) -> Iterator[Connection]:
    """One transaction on the database at `url`, with tables made where they are missing: all of it stays, or nothing.

    Nobody else makes tables there meanwhile. A SQLite file that was not there before is deleted after a failure.

    Raises:
        StorageError: the URL has no known form, or the database cannot be reached or written.
    """
    parsed, file, new = _parse(url), file_of(url), False
    with ExitStack() as stack:
        engine = stack.enter_context(_passing_engine(parsed))
        with _readable_errors(parsed):
            if file is not None:  # else the lock is that of the transaction itself
                stack.enter_context(_file_lock(file))
                new = not file.exists()  # now that nobody else makes it
            connection = stack.enter_context(engine.connect())
            if file is not None:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            for tables_ in metadata:
                tables_.create_all(connection)
        try:
            yield connection
            connection.commit()
        except BaseException:
            if file is not None and new:
                connection.invalidate()
                for end in ("", "-wal", "-shm"):
                    Path(f"{file}{end}").unlink(missing_ok=True)
            raise


def same(database: Database, url: str) -> bool:
    """Whether the URL is that of the open database; two names of one PostgreSQL server are not seen through.

    Raises:
        StorageError: the URL has no known form.
    """
    ours, theirs = database.engine.url, _parse(url)
    if ours.get_backend_name() == theirs.get_backend_name() == "sqlite":
        return Path(ours.database or "").resolve() == Path(theirs.database or "").resolve()
    places = [(url.drivername, url.host, url.port or 5432, url.database, *url.query.items()) for url in (ours, theirs)]
    return places[0] == places[1]


def file_of(url: str) -> Path | None:
    """The file of a SQLite URL; None for another database.

    Raises:
        StorageError: the URL has no known form.
    """
    parsed = _parse(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        parsed = None
    if parsed is not None and parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed is None or parsed.drivername not in ("sqlite", "postgresql+psycopg") or not parsed.database:
        raise StorageError(
            f"storage URL {redact(url)}: must be sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
        )
    if parsed.drivername == "sqlite" and parsed.query:
        raise StorageError(f"storage URL {redact(url)}: a SQLite file takes no options; leave out all from the ? on")
    if parsed.database == ":memory:":
        raise StorageError(f"storage URL {redact(url)}: workers cannot share a database in memory; name a file")
    if parsed.drivername == "sqlite" and parsed.database.startswith("~"):
        try:
            parsed = parsed.set(database=str(Path(parsed.database).expanduser()))
        except RuntimeError as error:
            raise StorageError(
                f"storage URL {redact(url)}: no home folder is known for what follows the ~; write the whole path"
            ) from error
    return parsed


def _open(url: URL) -> Database:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = BulkStorage(
        url.render_as_string(hide_password=False),
        engine_kwargs=_engine_options(url),
        skip_compatibility_check=True,
        skip_table_creation=True,
    )
    if storage.get_current_version() != storage.get_head_version():
        storage._version_manager.check_table_schema_compatibility()  # it raises; needs two connections at once
    return Database(_CachedStorage(storage), storage.engine)


def _make_tables(connection: Connection) -> None:
    """Optuna's tables and hpsearch's, and Optuna's note of its schema's version, all by one connection."""
    models.BaseModel.metadata.create_all(connection)
    tables.METADATA.create_all(connection)
    migrations = MigrationContext.configure(connection)
    if migrations.get_current_revision() is None:  # else Optuna would write it, by a second connection within a third
        migrations.stamp(ScriptDirectory(str(Path(models.__file__).parent / "alembic")), "head")


@contextmanager
def _passing_engine(url: URL) -> Iterator[Engine]:
    """An engine for one errand; its pool ends with it.

    `Engine.dispose` would make a second pool, which inherits the events under the address of the first. The next pool
    may lie at that address; if the garbage collector then comes between two lines of SQLAlchemy's register of events,
    the register is wrong, and a `KeyError` appears among the messages of a command.
    """
    engine = sqlalchemy.create_engine(url, **_engine_options(url))
    try:
        yield engine
    finally:
        engine.pool.dispose()


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}, "pool_events": [(_set_pragmas, "connect")]}
    # Statements are prepared only where that is known to work; see `_set_up_session`.
    connecting = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "prepare_threshold": None, **SILENCE}
    events = [(_set_up_session, "connect"), (_note_use, "checkin"), (_ping, "checkout")]
    return {"connect_args": connecting, "pool_events": events}


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers do not block the writer
    cursor.execute("PRAGMA foreign_keys=ON")  # a deleted study takes hpsearch's rows with it
    cursor.close()


def _set_up_session(connection: Any, _record: Any) -> None:
    """One journey for every new connection to PostgreSQL, directly or through a pooler.

    The time zone is one of the few settings that PgBouncer keeps for each client in transaction mode; as an option of
    the connection (`-c timezone=UTC`) it would be refused there. A pooler is known by the process id that it has given,
    which is not that of the server behind it. What is prepared on one server is unknown to that of the next
    transaction, so there nothing is.
    """
    try:
        connection.autocommit = True
        # Of hpsearch's statements none depends on the time zone; Optuna's heartbeats do.
        row = connection.execute("SELECT pg_backend_pid(), set_config('timezone', 'UTC', false)").fetchone()
        connection.autocommit = False
    except psycopg.Error:
        connection.close()  # the pool does not know it yet
        raise
    if row[0] == connection.info.backend_pid:
        connection.prepare_threshold = PREPARE_THRESHOLD


def _note_use(_connection: Any, record: Any) -> None:
    record.info["used"] = time.monotonic()


def _ping(connection: Any, record: Any, _proxy: Any) -> None:
    """Replace a connection that was cut while it lay idle; what was used a moment ago is not asked."""
    if time.monotonic() - record.info.get("used", time.monotonic()) < PING_SECONDS:
        return
    try:
        connection.autocommit = True
        connection.execute("SELECT 1")
        connection.autocommit = False
    except psycopg.Error as error:
        raise sqlalchemy.exc.DisconnectionError from error  # the pool tries again with a new connection


def _has_tables(place: Engine | Connection) -> bool:
    """Whether hpsearch's tables are there.

    Raises:
        StorageError: they are, and lack what this version needs.
    """
    wanted = tables.METADATA.tables
    found = sqlalchemy.inspect(place).get_multi_columns(filter_names=list(wanted))
    there = {name: {column["name"] for column in columns} for (_, name), columns in found.items()}
    if tables.CONTROL.name not in there:
        return False
    for name, table in wanted.items():
        if lacking := [column.name for column in table.columns if column.name not in there.get(name, ())]:
            what = f"lacks {', '.join(lacking)}" if name in there else "is missing"
            raise StorageError(
                f"storage {redact(place.engine.url.render_as_string(hide_password=False))}: table {name} {what}, which "
                "this version of hpsearch needs; use the version that made it"
            )
    return True


def _file_lock(path: Path) -> FileLock:
    _check_magic(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_SECONDS)


def _check_magic(path: Path) -> None:
    """Raise OSError if something else than a SQLite database lies there, before a lock lies beside it."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        if file.read(len(MAGIC)) not in (b"", MAGIC):
            raise OSError("file is not a database")


@contextmanager
def _schema_connection(url: URL) -> Iterator[Connection]:
    """A transaction that makes tables while nobody else does."""
    with ExitStack() as stack:
        if url.get_backend_name() == "sqlite":
            stack.enter_context(_file_lock(Path(url.database or "")))
        engine = stack.enter_context(_passing_engine(url))
        connection = stack.enter_context(engine.begin())
        if url.get_backend_name() == "postgresql":
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
        yield connection


@contextmanager
def _readable_errors(url: URL) -> Iterator[None]:
    try:
        yield
    except (*FAULTS, OSError, RuntimeError) as error:
        place = url.render_as_string(hide_password=True)
        raise StorageError(f"storage {place} cannot be opened: {reason(url, error)}") from error


def reason(url: URL, error: BaseException) -> str:
    """One line about a fault, without the password; SQLite's own words about a read-only database vary."""
    if read_only := is_read_only(url):
        return read_only
    return explain(error).replace(str(url.password), "***") if url.password else explain(error)


def explain(error: BaseException) -> str:
    """What the database itself said, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error.__cause__ or error).split())


def is_read_only(url: URL) -> str:
    """Says so if a SQLite database can be read but not written by this user; else empty."""
    file = Path(url.database or "")
    if url.get_backend_name() != "sqlite" or not os.path.isfile(file):  # Path's own raises where a folder is locked
        return ""
    beside = [path for end in ("-wal", "-shm") if (path := Path(f"{file}{end}")).exists()]  # left by a reader, perhaps
    closed = [path for path in (file, file.parent, *beside) if not os.access(path, os.W_OK)]
    what = " and ".join(map(str, closed))
    return f"{what} cannot be written by this user, which SQLite needs even to read: make it writable" if closed else ""
