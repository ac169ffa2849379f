"""The arms of a transfer: what training with an export's weights gave, against training from scratch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from hpsearch.search.racing import values
from hpsearch.statistics import Estimate, estimate
from hpsearch.storage.studies import LoadedStudy

KIND = "transfer"  # of a study that is linked to an export
SCRATCH = "scratch"  # the label of the arm without its weights


@dataclass(frozen=True)
class Arm:
    """One way to train on the target: its values over the seeds, and its lead over training from scratch.

    Of the `planned` seeds `lost` diverged or failed.
    """

    study: str
    image_size: int
    label: str
    values: tuple[float, ...]
    planned: int
    lost: int
    over_seeds: Estimate
    over_scratch: Estimate | None
    metric: str


def compare(studies: Sequence[LoadedStudy]) -> list[Arm]:
    """Every arm of these comparisons as far as its trials go, each against scratch in its own study."""
    arms = []
    for study in studies:
        objective = study.spec.objective
        sign = 1.0 if objective.maximize else -1.0
        rows = values(study.spec, study.optuna_study.get_trials(deepcopy=False))
        labels = [label for label, _ in study.spec.candidates]
        scratch = rows[labels.index(SCRATCH)] if SCRATCH in labels else []
        for label, row in zip(labels, rows, strict=True):
            own = [sign * value for value in row if _there(value)]
            pairs = [one - other for one, other in zip(row, scratch, strict=False) if _there(one) and _there(other)]
            lead = estimate(pairs) if pairs and label != SCRATCH else None
            size = study.spec.data.image_size
            lost = sum(value is not None and math.isnan(value) for value in row)
            found = (tuple(own), len(row), lost, estimate(own), lead, objective.metric)
            arms.append(Arm(study.name, size, label, *found))
    return arms


def _there(value: float | None) -> TypeGuard[float]:
    """Whether a seed has given a value; some trials diverge or fail, others have not ended."""
    return value is not None and not math.isnan(value)
