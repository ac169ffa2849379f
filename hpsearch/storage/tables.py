"""hpsearch's own tables, which stand beside Optuna's in the study database."""

from optuna.storages._rdb import models
from sqlalchemy import DDL, Column, Double, ForeignKey, Integer, MetaData, String, Table, Text, event

STUDIES = models.StudyModel.__table__
STUDY_USER_ATTRIBUTES = models.StudyUserAttributeModel.__table__
TRIALS = models.TrialModel.__table__
INTERMEDIATE_VALUES = models.TrialIntermediateValueModel.__table__
VALUES = models.TrialValueModel.__table__
PARAMS = models.TrialParamModel.__table__
USER_ATTRIBUTES = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRIBUTES = models.TrialSystemAttributeModel.__table__

METADATA = MetaData()

# The columns of one epoch of one trial; rates per step, losses in nats, accuracies as fractions.
METRICS = (
    "training_loss",
    "training_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "gradient_norm",
    "images_per_second",
)


def _of_trial() -> ForeignKey:
    return ForeignKey(TRIALS.c.trial_id, ondelete="CASCADE")


def _of_study() -> ForeignKey:
    return ForeignKey(STUDIES.c.study_id, ondelete="CASCADE")


EPOCHS = Table(
    "hpsearch_epochs",
    METADATA,
    Column("trial_id", Integer, _of_trial(), primary_key=True),
    Column("epoch", Integer, primary_key=True),  # 1-based
    *(Column(name, Double) for name in METRICS),  # NULL: the value was not finite, or was not measured
)

LEASES = Table(  # one row for each trial that was ever started
    "hpsearch_leases",
    METADATA,
    Column("trial_id", Integer, _of_trial(), primary_key=True),
    Column("owner", String(200), nullable=False),  # who trains it: host, process and a random part
    Column("token", Integer, nullable=False),  # fencing token: grows by one with every new owner
    Column("expires", Double, nullable=False),  # seconds since 1970 on the database's own clock
    Column("crashes", Integer, nullable=False),  # owners in a row that vanished without recording an epoch
    Column("epoch", Integer, nullable=False),  # the last one that is recorded; 0 before the first
    Column("seconds", Double, nullable=False),  # device time spent on it so far, repeated epochs included
)

CONTROL = Table(  # one row for each study: what people may change while it runs
    "hpsearch_control",
    METADATA,
    Column("study_id", Integer, _of_study(), primary_key=True),
    Column("state", String(20), nullable=False),  # fleet.RUNNING, PAUSED or STOPPED
    Column("max_trials", Integer, nullable=False),  # `extend` raises it
    Column("started", Double),  # when the first trial was, on the database's clock
)

CONFIGURATIONS = Table(  # what has been taken up, so that no two trials train the same by accident
    "hpsearch_configurations",
    METADATA,
    Column("study_id", Integer, _of_study(), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("trial_id", Integer, _of_trial(), nullable=False, index=True),
)

WORKERS = Table(  # one row for each worker process that has not taken its leave
    "hpsearch_workers",
    METADATA,
    Column("owner", String(200), primary_key=True),  # as in the leases
    Column("host", String(200), nullable=False),
    Column("process", Integer, nullable=False),
    Column("device", String(50), nullable=False),
    Column("study_id", Integer, _of_study(), index=True),  # NULL: none at the moment
    Column("state", String(20), nullable=False),  # training, waiting, paused
    Column("images_per_second", Double, nullable=False),
    Column("storage_share", Double, nullable=False),  # of its time in this study, spent waiting for the database
    Column("started", Double, nullable=False),
    Column("seen", Double, nullable=False),  # its last sign of life, on the database's clock
)

EVENTS = Table(  # what happened to trials beside being trained
    "hpsearch_events",
    METADATA,
    Column("event_id", Integer, primary_key=True),
    Column("study_id", Integer, _of_study(), nullable=False, index=True),
    Column("trial_id", Integer, _of_trial(), index=True),
    Column("at", Double, nullable=False),  # seconds since 1970 on the database's clock
    Column("kind", String(30), nullable=False),  # adopted, released, crashed, failed, infeasible, diverged, control
    Column("text", Text, nullable=False),
)


def _clear_up_after(key: ForeignKey) -> DDL:
    """Rows of ours go with the trial or study that they are of, whoever deletes it.

    SQLite obeys foreign keys only in connections that ask for it, which Optuna's do not, and gives the id of a deleted
    trial or study to the next one, which would inherit the rows.
    """
    child, parent = key.parent, key.column
    return DDL(  # type: ignore[no-untyped-call]
        f"CREATE TRIGGER IF NOT EXISTS {child.table.name}_{child.name} AFTER DELETE ON {parent.table.name} "  # noqa: S608
        f"BEGIN DELETE FROM {child.table.name} WHERE {child.name} = OLD.{parent.name}; END"
    )


for _table in METADATA.tables.values():
    for _key in _table.foreign_keys:
        event.listen(METADATA, "after_create", _clear_up_after(_key).execute_if(dialect="sqlite"))
