"""From a storage URL to a database: Optuna's storage and the engine beneath it, set up to be shared."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from sqlalchemy import Connection, Engine, MetaData, event
from sqlalchemy.engine import URL, make_url

from hpsearch.errors import StorageEmpty, StorageError
from hpsearch.settings import redact
from hpsearch.storage import tables

# What a call raises while the database is away; transactions have been rolled back.
FAULTS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)

BUSY_TIMEOUT_SECONDS = 60  # how long a SQLite writer waits for another one
CONNECT_TIMEOUT_SECONDS = 10
# A server that has gone without a word is given up after a minute; the system's own defaults are hours.
SILENCE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
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
    with _readable_errors(parsed), _schema_lock(parsed):
        return _open(parsed, make_tables=True)


def connect(url: str) -> Database:
    """Open the database at `url`, which must hold hpsearch's tables already.

    Raises:
        StorageError: the URL has no known form, the database cannot be reached, or no study was ever created in it.
    """
    parsed = _parse(url)
    with _readable_errors(parsed):
        missing = parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file()
        if missing or not _has_tables(parsed):
            raise StorageEmpty(
                f"{redact(url)} holds no studies yet: create one with `hpsearch create-study NAME`, "
                "or name another storage with --storage or HPSEARCH_STORAGE"
            )
        return _open(parsed, make_tables=False)


@contextmanager
def reach(url: str) -> Iterator[Engine]:
    """The database at `url` whatever it holds, for `hpsearch doctor`; a SQLite file must exist.

    Raises:
        StorageError: the URL has no known form, or the database cannot be reached.
    """
    parsed = _parse(url)
    engine = _engine(parsed)
    try:
        with _readable_errors(parsed):
            engine.connect().close()
        yield engine
    finally:
        engine.dispose()


@contextmanager
def filling(url: str, metadata: Sequence[MetaData]) -> Iterator[Connection]:
    """One transaction on the database at `url`, with tables made where they are missing: all of it stays, or nothing.

    Nobody else makes tables there meanwhile. A SQLite file that was not there before is deleted after a failure.

    Raises:
        StorageError: the URL has no known form, or the database cannot be reached or written.
    """
    parsed, file = _parse(url), file_of(url)
    new = file is not None and not file.exists()
    engine = _engine(parsed)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        with _readable_errors(parsed):
            if file is not None:  # else the lock is that of the transaction itself
                stack.enter_context(_schema_lock(parsed))
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
    if parsed.database == ":memory:":
        raise StorageError(f"storage URL {redact(url)}: workers cannot share a database in memory; name a file")
    return parsed


def _open(url: URL, *, make_tables: bool) -> Database:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if make_tables:
        if url.get_backend_name() == "sqlite":
            Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        engine = _engine(url)
        models.BaseModel.metadata.create_all(engine)
        tables.METADATA.create_all(engine)
        engine.dispose()
    storage = RDBStorage(
        url.render_as_string(hide_password=False), engine_kwargs=_engine_options(url), skip_table_creation=True
    )
    storage.engine.dispose()  # the constructor has connected already, without what follows
    _prepare_connections(storage.engine)
    return Database(_CachedStorage(storage), storage.engine)


def _engine(url: URL) -> Engine:
    engine = sqlalchemy.create_engine(url, **_engine_options(url))
    _prepare_connections(engine)
    return engine


def _engine_options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}}
    # Optuna keeps naive UTC times: a session in another time zone would shift them.
    options = {"options": "-c timezone=UTC", "connect_timeout": CONNECT_TIMEOUT_SECONDS, **SILENCE}
    return {"connect_args": options, "pool_pre_ping": True}


def _prepare_connections(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")  # readers do not block the writer
        cursor.execute("PRAGMA foreign_keys=ON")  # a deleted study takes hpsearch's rows with it
        cursor.close()


def _has_tables(url: URL) -> bool:
    engine = _engine(url)
    try:
        return sqlalchemy.inspect(engine).has_table(tables.CONTROL.name)
    finally:
        engine.dispose()


@contextmanager
def _schema_lock(url: URL) -> Iterator[None]:
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            yield
        return
    engine = _engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
            yield
    finally:
        engine.dispose()


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
    if url.get_backend_name() != "sqlite" or not file.is_file():
        return ""
    closed = [path for path in (file, file.parent) if not os.access(path, os.W_OK)]
    what = " and ".join(map(str, closed))
    return f"{what} cannot be written by this user, which SQLite needs even to read: make it writable" if closed else ""
