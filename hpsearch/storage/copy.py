"""Copies every study of one storage into another one, and compares both row by row before the copy is kept.

    source: one snapshot ─▶ rows in portions ─▶ destination: one transaction ─▶ both are read again ─▶ commit

Every row of Optuna's tables and of hpsearch's own is copied as it is, with its primary key. Leases too: trials that
are being trained stay RUNNING, and the workers of the new storage take them over when their leases run out, as they do
after a crash. The old workers cannot disturb them, for they know the old storage alone; what they report there after
the snapshot is not in the copy, and those trials go on from a checkpoint instead.

The comparison comes before the commit because afterwards workers may write to the new storage at once, and because
nothing could be taken back then.
"""

import enum
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Column, Connection, Enum, MetaData, String, Table, delete, func, insert, inspect, select, text

from hpsearch.errors import HpsearchError, StorageError
from hpsearch.settings import redact
from hpsearch.storage.leases import now
from hpsearch.storage.open import FAULTS, Database, filling, reason, same
from hpsearch.storage.tables import LEASES, METADATA, STUDIES, TRIALS

PORTION = 5_000  # rows that are in memory at once, of each side

# Alembic's own table: which version of Optuna's tables this is.
ALEMBIC = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
OPTUNAS = models.BaseModel.metadata
TABLES = (ALEMBIC, *OPTUNAS.sorted_tables, *METADATA.sorted_tables)  # those that others refer to come first


@dataclass(frozen=True)
class Step:
    """How far a copy is: rows written and rows compared, of twice the rows that there are."""

    num_done: int
    num_all: int


@dataclass(frozen=True)
class Copied:
    """What is in the new storage now."""

    num_studies: int
    num_trials: int
    num_rows: int
    num_running: int  # trials that were being trained at the moment of the snapshot
    lease_seconds: float  # until the last of their leases runs out
    left_out: tuple[str, ...]  # tables that are neither Optuna's nor hpsearch's


def copy(source: Database, url: str) -> Iterator[Step | Copied]:
    """Copy all that `source` holds to the storage at `url`; how far it is, and at last what has been copied.

    Raises:
        StorageError: the source holds no studies, or other tables than this version's; the destination holds studies,
            is the source itself, or cannot be opened.
        HpsearchError: reading, writing or the comparison failed; the destination is as it was.
    """
    if same(source, url):
        raise StorageError(f"{redact(url)} is given as source and as destination: name another storage to copy to")
    with _snapshot(source) as old:
        left_out = _check_tables(old)
        num_rows = {table: _count(old, table) for table in TABLES}
        if not num_rows[STUDIES]:
            raise StorageError(f"{_place(old)} holds no studies: there is nothing to copy")
        num_running, lease_seconds = _running(old)
        num_done, num_all = 0, 2 * sum(num_rows.values())
        with filling(url, [ALEMBIC.metadata, OPTUNAS, METADATA]) as new:
            _make_room(old, new)
            for table in TABLES:
                with closing(_read(old, table)) as portions:
                    for rows in portions:
                        _write(new, table, rows)
                        num_done += len(rows)
                        yield Step(num_done, num_all)
            _continue_ids(new)
            for table in TABLES:
                with closing(_compare(old, new, table)) as portions:
                    for num_equal in portions:
                        num_done += num_equal
                        yield Step(num_done, num_all)
    yield Copied(num_rows[STUDIES], num_rows[TRIALS], num_all // 2, num_running, lease_seconds, left_out)


@contextmanager
def _snapshot(database: Database) -> Iterator[Connection]:
    """A connection that sees one moment, however long it reads, and that cannot write."""
    with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")
        else:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection
        connection.rollback()


def _check_tables(old: Connection) -> tuple[str, ...]:
    """The tables of the source that are not copied.

    Raises:
        StorageError: one that is copied is missing, or has other columns.
    """
    inspector = inspect(old)
    found = inspector.get_table_names()
    for table in TABLES:
        columns = {column["name"] for column in inspector.get_columns(table.name)} if table.name in found else set()
        if columns != set(table.columns.keys()):
            what = f"has {', '.join(sorted(columns))}" if columns else "is missing"
            raise StorageError(
                f"{_place(old)}: table {table.name} {what}, where this version of hpsearch has "
                f"{', '.join(sorted(table.columns.keys()))}: copy with the version that wrote it"
            )
    return tuple(sorted(set(found) - {table.name for table in TABLES}))


def _make_room(old: Connection, new: Connection) -> None:
    """Make sure that the destination is as good as new, and clear it of what belongs to no study.

    Raises:
        StorageError: it holds studies, or its tables are of another version of Optuna.
    """
    with _told(new):
        if new.dialect.name == "postgresql":
            new.execute(text(f"LOCK TABLE {STUDIES.name} IN EXCLUSIVE MODE"))  # nobody creates a study meanwhile
        if num_studies := _count(new, STUDIES):
            raise StorageError(
                f"{_place(new)} holds studies already, {num_studies} of them: copy into a storage without any"
            )
        versions = [set(connection.scalars(select(ALEMBIC.c.version_num))) for connection in (old, new)]
        if versions[1] and versions[0] != versions[1]:
            raise StorageError(f"{_place(new)} has tables of another version of Optuna: copy into an empty database")
        for table in reversed(TABLES):
            new.execute(delete(table))


def _read(connection: Connection, table: Table) -> Generator[Sequence[Any]]:
    """The rows of a table by their primary key, in portions."""
    in_c = connection.dialect.name == "postgresql"  # SQLite orders texts by their bytes anyway
    key = [column.collate("C") if in_c and _is_text(column) else column for column in table.primary_key]
    with _told(connection):
        statement = select(table).order_by(*key)
        with connection.execute(statement, execution_options={"yield_per": PORTION}) as found:
            yield from found.partitions()


def _write(new: Connection, table: Table, rows: Sequence[Any]) -> None:
    with _told(new):
        if new.dialect.name == "sqlite":
            new.execute(insert(table), [row._asdict() for row in rows])
            return
        quote = new.dialect.identifier_preparer.quote
        columns = ", ".join(map(quote, table.columns.keys()))
        # COPY writes several times as many rows a second as INSERT does.
        cursor: Any = new.connection.cursor()  # psycopg's own
        with cursor, cursor.copy(f"COPY {quote(table.name)} ({columns}) FROM STDIN") as into:
            for row in rows:
                into.write_row([value.name if isinstance(value, enum.Enum) else value for value in row])


def _continue_ids(new: Connection) -> None:
    """Let PostgreSQL number new rows after the highest id; SQLite does so by itself."""
    if new.dialect.name != "postgresql":
        return
    with _told(new):
        for table in TABLES:
            column = table.autoincrement_column
            if column is not None:
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                highest = select(func.max(column)).scalar_subquery()
                new.execute(select(func.setval(sequence, highest)).where(highest.is_not(None)))


def _compare(old: Connection, new: Connection, table: Table) -> Generator[int]:
    """Read the table on both sides; how many rows of each portion are the same, which is all of them.

    Raises:
        HpsearchError: a row is not.
    """
    with closing(_read(old, table)) as here, closing(_read(new, table)) as there:
        for ours, theirs in zip_longest(here, there, fillvalue=()):
            for row, other in zip_longest(ours, theirs) if list(ours) != list(theirs) else ():
                if row is None or other is None or not all(map(_equal, row, other)):
                    raise HpsearchError(
                        f"{_place(new)}: a row of table {table.name} came out as {other}, and is {row} in "
                        f"{_place(old)}: nothing has been copied"
                    )
            yield len(ours)


def _running(old: Connection) -> tuple[int, float]:
    """How many trials are being trained, and for how many seconds the last of their leases is valid."""
    joined = select(func.count(), func.max(LEASES.c.expires)).select_from(TRIALS)
    joined = joined.outerjoin(LEASES, LEASES.c.trial_id == TRIALS.c.trial_id)
    num, expires = old.execute(joined.where(TRIALS.c.state == TrialState.RUNNING)).one()
    return num, 0.0 if expires is None else max(0.0, expires - now(old))


def _count(connection: Connection, table: Table) -> int:
    return int(connection.scalars(select(func.count()).select_from(table)).one())


def _equal(value: Any, other: Any) -> bool:
    both = isinstance(value, float) and isinstance(other, float)
    return bool(value == other) or (both and math.isnan(value) and math.isnan(other))


def _is_text(column: Column[Any]) -> bool:
    return isinstance(column.type, String) and not isinstance(column.type, Enum)


def _place(connection: Connection) -> str:
    return redact(connection.engine.url.render_as_string(hide_password=False))


@contextmanager
def _told(connection: Connection) -> Iterator[None]:
    """A fault of this side of the copy becomes one sentence."""
    known = connection.dialect.loaded_dbapi
    try:
        yield
    except LookupError as error:  # a state that Optuna does not know
        raise HpsearchError(
            f"{_place(connection)}: {error}; nothing has been copied: restore a backup of it"
        ) from error
    except (*FAULTS, known.Error) as error:
        connection.invalidate()  # it may be in the middle of a COPY, or gone
        cause, advice = getattr(error, "orig", None) or error, ""
        if isinstance(cause, known.IntegrityError):
            advice = "; `hpsearch fsck STUDY --repair` deletes rows that belong to nothing"
        elif isinstance(cause, known.OperationalError):
            advice = "; try again"
        raise HpsearchError(
            f"{_place(connection)} failed: {reason(connection.engine.url, error)}; nothing has been copied{advice}"
        ) from error
