"""Openings of a test split: each is a row that is written before the images are read, and can be written once only."""

import json
from typing import Any

from optuna.storages._rdb import models
from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from hpsearch.errors import StorageError
from hpsearch.storage import locks
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy

OPENING_KEY = "hpsearch:final-test:"  # study attribute, with a number: what was tested when, and what came out
ATTRIBUTES = models.StudyUserAttributeModel.__table__


def openings(database: Database, study: LoadedStudy) -> list[dict[str, Any]]:
    """All openings recorded with the study, the first one first."""
    return list(numbered(database, study).values())


def numbered(database: Database, study: LoadedStudy) -> dict[int, dict[str, Any]]:
    """All openings by their numbers, of which one that was withdrawn is missing; the first one first."""
    mine = (ATTRIBUTES.c.study_id == study.study_id) & ATTRIBUTES.c.key.startswith(OPENING_KEY, autoescape=True)
    with database.engine.connect() as connection:
        rows = connection.execute(select(ATTRIBUTES.c.key, ATTRIBUTES.c.value_json).where(mine)).all()
    found = {int(key.removeprefix(OPENING_KEY)): json.loads(text) for key, text in rows}
    return dict(sorted(found.items()))


def begin(database: Database, study: LoadedStudy, number: int, record: dict[str, Any]) -> None:
    """Record opening `number` (0 for the first) before the images are read.

    Raises:
        StorageError: somebody else recorded it a moment ago, or the study has been deleted.
    """
    row = {"study_id": study.study_id, "key": f"{OPENING_KEY}{number}", "value_json": json.dumps(record)}
    try:
        with database.engine.begin() as connection:
            _check_there(connection, study)
            connection.execute(insert(ATTRIBUTES).values(row))
    except IntegrityError as error:
        raise StorageError(
            f"study {study.name}: its test split was opened by somebody else at this moment; "
            f"see the result with `hpsearch final-test {study.name} --show`"
        ) from error


def complete(database: Database, study: LoadedStudy, number: int, record: dict[str, Any]) -> None:
    """Add the result to an opening. Raises StorageError if the study has been deleted."""
    with database.engine.begin() as connection:
        _check_there(connection, study)
        connection.execute(update(ATTRIBUTES).where(_is(study, number)).values(value_json=json.dumps(record)))


def withdraw(database: Database, study: LoadedStudy, number: int) -> None:
    """Forget an opening that came to nothing: the images could not be read."""
    with database.engine.begin() as connection:
        connection.execute(delete(ATTRIBUTES).where(_is(study, number)))


def _check_there(connection: Connection, study: LoadedStudy) -> None:
    """Hold the study, which may have been deleted since it was loaded, and another one have its id."""
    try:
        locks.lock_study(connection, study.study_id, study.created)
    except StorageError as error:
        raise StorageError(f"study {study.name}: has been deleted meanwhile, or created anew; begin again") from error


def _is(study: LoadedStudy, number: int) -> Any:
    return (ATTRIBUTES.c.study_id == study.study_id) & (ATTRIBUTES.c.key == f"{OPENING_KEY}{number}")
