"""Rows that belong to nothing: of trials or studies that were deleted past the foreign keys, as SQLite allows.

SQLite gives the id of a deleted trial to the next one, which would then inherit them.
"""

from collections.abc import Iterator

from optuna.storages._rdb import models
from sqlalchemy import Connection, Table, delete, func, select

from hpsearch.storage.checks.findings import Finding
from hpsearch.storage.tables import (
    CONFIGURATIONS,
    CONTROL,
    EPOCHS,
    EVENTS,
    INTERMEDIATE_VALUES,
    LEASES,
    PARAMS,
    STUDIES,
    STUDY_USER_ATTRIBUTES,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    USER_ATTRIBUTES,
    VALUES,
    WORKERS,
)

OF_TRIALS = (EPOCHS, LEASES, CONFIGURATIONS, EVENTS)
OF_STUDIES = (CONTROL, CONFIGURATIONS, EVENTS, WORKERS)
OPTUNAS = (INTERMEDIATE_VALUES, VALUES, PARAMS, USER_ATTRIBUTES, SYSTEM_ATTRIBUTES)
OPTUNAS_OF_STUDIES = (
    STUDY_USER_ATTRIBUTES,
    models.StudySystemAttributeModel.__table__,
    models.StudyDirectionModel.__table__,
    TRIALS,
)


def check_orphans(connection: Connection) -> Iterator[Finding]:
    """In the whole database, whichever study they were of."""
    for table in (*OF_TRIALS, *OPTUNAS):
        yield from _orphans(connection, table, TRIALS, "trial_id", "trials")
    for table in (*OF_STUDIES, *OPTUNAS_OF_STUDIES):
        yield from _orphans(connection, table, STUDIES, "study_id", "studies")


def _orphans(connection: Connection, table: Table, parents: Table, key: str, what: str) -> Iterator[Finding]:
    known = select(parents.c[key]).where(parents.c[key] == table.c[key]).exists()
    lost = table.c[key].is_not(None) & ~known
    count = connection.scalars(select(func.count()).select_from(table).where(lost)).one()
    if count:
        text = f"{table.name} holds {count} row{'s' if count > 1 else ''} of {what} that do not exist"
        of_them = select(TRIALS.c.trial_id).where(lost)
        own = (*OF_TRIALS, *OPTUNAS) if table is TRIALS else ()  # PostgreSQL wants what is of them to go before them
        cure = (*(delete(one).where(one.c.trial_id.in_(of_them)) for one in own), delete(table).where(lost))
        yield Finding("orphan", text, cure=cure, does="deletes them")
