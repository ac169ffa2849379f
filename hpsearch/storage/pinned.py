"""Which images a study's trials train on: recorded by the first worker, the same for all that follows.

Values that were reached on other images cannot be compared, and a final test of other images answers another question.
"""

import json
from typing import Any

from sqlalchemy import Connection, exists, select, update

from hpsearch.errors import DataError, StorageError
from hpsearch.spec import RESTORE
from hpsearch.storage import bulk, locks
from hpsearch.storage.open import Database
from hpsearch.storage.studies import DATA_KEY, LoadedStudy
from hpsearch.storage.tables import LEASES, STUDY_USER_ATTRIBUTES, TRIALS


def pin_data(database: Database, study: LoadedStudy, fingerprint: str) -> None:
    """Record the fingerprint of the study's data set, if no trial has begun on another one; workers may race.

    Until a trial has begun, another worker may record other images: whoever has taken the first one asks again.

    Raises:
        DataError: one has, or the study confirms another one that was trained on other images.
        StorageError: the study has been deleted, or the record is damaged.
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
        if text != row["value_json"] and _pin(study, json.loads(text))["of"] == study.name:
            locks.lock_study(connection, study.study_id)  # nobody takes the first trial meanwhile
            if not _begun(connection, study):
                text = row["value_json"]
                connection.execute(update(STUDY_USER_ATTRIBUTES).where(mine).values(value_json=text))
    _compare(study, json.loads(text), fingerprint)


def check_data(study: LoadedStudy, fingerprint: str) -> None:
    """Whether it is that of the data set on which the study's trials have trained, as far as that is recorded.

    Raises:
        DataError: it is not.
        StorageError: the record is damaged.
    """
    if DATA_KEY in study.optuna_study.user_attrs:
        _compare(study, study.optuna_study.user_attrs[DATA_KEY], fingerprint)


def recorded_images(study: LoadedStudy) -> str | None:
    """The fingerprint of the data set on which the study's trials have trained, if that is recorded."""
    recorded = study.optuna_study.user_attrs.get(DATA_KEY)
    return None if recorded is None else _pin(study, recorded)["fingerprint"]


def _begun(connection: Connection, study: LoadedStudy) -> bool:
    leased = (TRIALS.c.study_id == study.study_id) & (TRIALS.c.trial_id == LEASES.c.trial_id)
    return bool(connection.scalar(select(exists().where(leased))))


def _pin(study: LoadedStudy, recorded: Any) -> dict[str, str]:
    """What is recorded. Raises StorageError if it is damaged."""
    if not isinstance(recorded, dict) or not all(isinstance(recorded.get(key), str) for key in ("fingerprint", "of")):
        raise StorageError(f"study {study.name}: the record of the images it trains on is damaged; {RESTORE}")
    return recorded


def _compare(study: LoadedStudy, recorded: Any, here: str) -> None:
    pin = _pin(study, recorded)
    if pin["fingerprint"] != here:
        raise DataError(
            f"study {study.name}: {study.spec.data.name} here has other images (fingerprint {here[:12]}…) than those "
            f"that the trials of {pin['of']} train on ({pin['fingerprint'][:12]}…); use the same files, or create "
            "another study"
        )
