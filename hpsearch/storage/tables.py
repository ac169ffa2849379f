"""hpsearch's own tables, which stand beside Optuna's in the study database."""

from optuna.storages._rdb import models
from sqlalchemy import Column, Double, ForeignKey, Integer, MetaData, String, Table

STUDIES = models.StudyModel.__table__
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

EPOCHS = Table(
    "hpsearch_epochs",
    METADATA,
    Column("trial_id", Integer, ForeignKey(TRIALS.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),  # 1-based
    *(Column(name, Double) for name in METRICS),  # NULL: the value was not finite, or was not measured
)

LEASES = Table(
    "hpsearch_leases",
    METADATA,
    Column("trial_id", Integer, ForeignKey(TRIALS.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("owner", String(200), nullable=False),  # who trains it: host, process and a random part
    Column("token", Integer, nullable=False),  # fencing token: grows by one with every new owner
    Column("expires", Double, nullable=False),  # seconds since 1970 on the database's own clock
    Column("crashes", Integer, nullable=False),  # owners in a row that vanished without recording an epoch
)
