"""hpsearch's own tables, which stand beside Optuna's in the study database."""

from optuna.storages._rdb import models
from sqlalchemy import Column, Double, ForeignKey, Integer, MetaData, Table

STUDIES = models.StudyModel.__table__
TRIALS = models.TrialModel.__table__
INTERMEDIATE_VALUES = models.TrialIntermediateValueModel.__table__

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
