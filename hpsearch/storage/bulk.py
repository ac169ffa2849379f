"""Many rows by one statement, and one journey to the database.

SQLite runs a prepared statement once for each row, in this process. PostgreSQL gets all rows as one text of JSON, in
one journey. Statements are made once, because making one takes as long as running it.
"""

import enum
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Enum,
    String,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    column,
    delete,
    func,
    select,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

Row = Mapping[str, Any]
Given = Mapping[str, ColumnElement[Any]]  # the columns of the rows that a statement is about, by name

_DIALECTS: dict[str, Any] = {"sqlite": sqlite, "postgresql": postgresql}


def execute(connection: Connection, table: Table, rows: Sequence[Row], make: Callable[[str, Given], Any]) -> None:
    """Run a statement for each of the rows, which all have the same columns of `table`.

    `make` builds it from the name of the dialect and what stands for the row's columns; a function, never a closure,
    because what it built is kept.
    """
    if not rows:
        return
    dialect, names = connection.dialect.name, tuple(rows[0])
    statement = _made(dialect, table, names, make)
    if dialect == "sqlite":
        connection.execute(statement, [{f"given_{name}": row[name] for name in names} for row in rows])
    else:
        connection.execute(statement, {"given": json.dumps(rows, allow_nan=False, default=_name)})


def upsert(connection: Connection, table: Table, rows: Sequence[Row], key: tuple[str, ...]) -> None:
    """Insert the rows, no two with the same `key`; one whose key is there already replaces that."""
    execute(connection, table, rows, _upsertion(table, key))


def insert_missing(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert the rows, but for those that are there already."""
    execute(connection, table, rows, _insertion(table))


def delete_later(connection: Connection, table: Table, column: str, lasts: Sequence[tuple[int, int]]) -> None:
    """Of trials, given by id, delete the rows in which `column` is more than the number given with the trial."""
    rows = [{"trial_id": trial_id, column: last} for trial_id, last in lasts]
    execute(connection, table, rows, _deletion(table, column))


def among(connection: Connection, of: ColumnElement[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """Whether the column is one of these values: on PostgreSQL one parameter, whose statement is prepared once."""
    if connection.dialect.name == "sqlite":
        return of.in_(values)
    return of == any_(bindparam(None, list(values), type_=postgresql.ARRAY(_whole(of.type))))


@cache
def _upsertion(table: Table, key: tuple[str, ...]) -> Callable[[str, Given], Any]:
    def make(dialect: str, given: Given) -> Any:
        insertion = _insert(dialect, table, given)
        changed = {name: insertion.excluded[name] for name in given if name not in key}
        return insertion.on_conflict_do_update(index_elements=key, set_=changed)

    return make


@cache
def _insertion(table: Table) -> Callable[[str, Given], Any]:
    return lambda dialect, given: _insert(dialect, table, given).on_conflict_do_nothing()


@cache
def _deletion(table: Table, column: str) -> Callable[[str, Given], Any]:
    def make(_dialect: str, given: Given) -> Any:
        return delete(table).where(table.c.trial_id == given["trial_id"], table.c[column] > given[column])

    return make


def _insert(dialect: str, table: Table, given: Given) -> Any:
    rows = select(*given.values()).where(true())  # SQLite reads ON CONFLICT as a join's condition without a WHERE
    return _DIALECTS[dialect].insert(table).from_select(list(given), rows, include_defaults=False)


@cache
def _made(dialect: str, table: Table, names: tuple[str, ...], make: Callable[[str, Given], Any]) -> Any:
    kinds = {name: table.c[name].type for name in names}
    if dialect == "sqlite":
        return make(dialect, {name: bindparam(f"given_{name}", type_=kind) for name, kind in kinds.items()})
    columns = [column(name, _whole(kind)) for name, kind in kinds.items()]
    rows = func.json_to_recordset(cast(bindparam("given", type_=Text), postgresql.JSON)).table_valued(*columns)
    return make(dialect, dict(rows.render_derived(with_types=True).c.items()))


def _name(value: enum.Enum) -> str:
    return value.name


def _whole(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type without its length: PostgreSQL cuts off what is cast to a shorter one, and says nothing."""
    return Text() if isinstance(kind, String) and not isinstance(kind, Enum) else kind


def set_attributes(connection: Connection, table: Table, given: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Set attributes of trials, given by trial id, in one of Optuna's two tables for them."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, attributes in given
        for key, value in attributes.items()
    ]
    upsert(connection, table, rows, ("trial_id", "key"))


def now() -> datetime:
    """As Optuna's columns hold it: naive UTC."""
    return datetime.now(UTC).replace(tzinfo=None)
