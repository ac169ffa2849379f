"""Which images a study's trials train on: recorded by the first worker, the same for all that follows.

Values that were reached on other images cannot be compared, and a final test of other images answers another question.
"""

import json

from sqlalchemy import Connection, exists, select, update

from hpsearch.errors import DataError
from hpsearch.storage import bulk, locks
from hpsearch.storage.open import Database
from hpsearch.storage.studies import DATA_KEY, LoadedStudy
from hpsearch.storage.tables import LEASES, STUDY_USER_ATTRIBUTES, TRIALS


def pin_data(database: Database, study: LoadedStudy, fingerprint: str) -> None:
    """Record the fingerprint of the study's data set, if no trial has begun on another one; workers may race.

    Until a trial has begun, another worker may record other images: whoever has taken the first one asks again.

    Raises:
        DataError: one has, or the study confirms another one that was trained on other images.
        StorageError: the study has been deleted.
    """
    row = {
        "study_id": study.study_id,
        "key": DATA_KEY,
        "value_json": json.dumps({"fingerprint": fingerprint, "of": study.name}),
    }
    mine = (STUDY_USER_ATTRIBUTES.c.study_id == study.study_id) & (STUDY_USER_ATTRIBUTES.c.key == DATA_KEY)
    with database.engine.begin() as connection:
        bulk.insert_missing(connection, STUDY_USER_ATTRIBUTES, [row])
        text = connection.scalars(select(STUDY_USER_ATTRIBUTES.c.value_json).where(mine)).one()
        if text != row["value_json"] and json.loads(text)["of"] == study.name:
            locks.lock_study(connection, study.study_id)  # nobody takes the first trial meanwhile
            if not _begun(connection, study):
                text = row["value_json"]
                connection.execute(update(STUDY_USER_ATTRIBUTES).where(mine).values(value_json=text))
    _compare(study, json.loads(text), fingerprint)


def check_data(study: LoadedStudy, fingerprint: str) -> None:
    """Whether it is that of the data set on which the study's trials have trained, as far as that is recorded.

    Raises:
        DataError: it is not.
    """
    if DATA_KEY in study.optuna_study.user_attrs:
        _compare(study, study.optuna_study.user_attrs[DATA_KEY], fingerprint)


def _begun(connection: Connection, study: LoadedStudy) -> bool:
    leased = (TRIALS.c.study_id == study.study_id) & (TRIALS.c.trial_id == LEASES.c.trial_id)
    return bool(connection.scalar(select(exists().where(leased))))


def _compare(study: LoadedStudy, pin: dict[str, str], here: str) -> None:
    if pin["fingerprint"] != here:
        raise DataError(
            f"study {study.name}: {study.spec.data.name} here has other images (fingerprint {here[:12]}…) than those "
            f"that the trials of {pin['of']} train on ({pin['fingerprint'][:12]}…); use the same files, or create "
            "another study"
        )
