"""The lock of a study: whoever holds it is the only one to start trials, or to change what the study may use."""

import json

from sqlalchemy import ColumnElement, Connection, and_, exists, select, update

from hpsearch.errors import StorageError
from hpsearch.storage.studies import CREATED_KEY
from hpsearch.storage.tables import STUDIES, STUDY_USER_ATTRIBUTES


def lock_study(connection: Connection, study_id: int, created: str = "") -> None:
    """Let nobody else start trials of the study until the transaction ends.

    Raises:
        StorageError: the study has been deleted, and perhaps another one has its id: one that was not `created` then.
    """
    # An UPDATE, because SQLite has no SELECT FOR UPDATE: it takes the write lock before the trials are counted.
    row = {"study_name": STUDIES.c.study_name}
    if connection.execute(update(STUDIES).where(_this(study_id, created)).values(row)).rowcount == 0:
        raise StorageError("the study has been deleted while this worker ran: create it, or start the worker, again")


def try_lock_study(connection: Connection, study_id: int, created: str) -> bool:
    """As `lock_study`, but on PostgreSQL without waiting: False if somebody else has the lock."""
    if connection.dialect.name == "postgresql":
        this = select(STUDIES.c.study_id).where(_this(study_id, created))
        if connection.scalar(this.with_for_update(of=STUDIES, key_share=True, skip_locked=True)) is not None:
            return True
        if connection.scalar(this) is not None:
            return False
    lock_study(connection, study_id, created)
    return True


def _this(study_id: int, created: str) -> ColumnElement[bool]:
    """The row of the study, if it was created then; SQLite gives the id of a study that was deleted to the next one."""
    this: ColumnElement[bool] = STUDIES.c.study_id == study_id
    table = STUDY_USER_ATTRIBUTES
    attribute = (table.c.study_id == study_id) & (table.c.key == CREATED_KEY)
    return and_(this, exists().where(attribute, table.c.value_json == json.dumps(created))) if created else this
