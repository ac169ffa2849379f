"""What to stop: pruners, from the study file's [pruner] section.

Every function of the table PRUNERS takes the epochs of a full trial and the section's options.
"""

import importlib
import math
from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from hpsearch.search import PRUNERS
from hpsearch.spec import StudySpec


def make_pruner(spec: StudySpec) -> BasePruner:
    """The study's pruner."""
    module, function = PRUNERS[spec.pruner.name].split(":")
    make: Callable[..., BasePruner] = getattr(importlib.import_module(module), function)
    return make(spec.max_epochs, **spec.pruner.options())


class RungPruner(BasePruner):
    """Asynchronous successive halving over everything known at a rung.

    Rungs are the epochs `min_epochs * factor**k` below `epochs`. A trial that reports at a rung goes on if its value is
    among the best `1 / factor` (rounded up) of all values ever reported there, by running and ended trials alike.
    Optuna's SuccessiveHalvingPruner keeps the rungs that a trial has passed as attributes and so depends on the order
    of calls; this one is a function of the reported values alone.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, arXiv 1810.05934.
    """

    def __init__(self, epochs: int, min_epochs: int, factor: int) -> None:
        self.rungs = _rungs(epochs, min_epochs, factor)
        self.factor = factor

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial`, whose last report may stand at a rung, ends here."""
        epoch = trial.last_step
        if epoch not in self.rungs:
            return False
        value = trial.intermediate_values[epoch]
        if math.isnan(value):
            return True
        known = [
            other.intermediate_values[epoch]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and epoch in other.intermediate_values
        ]
        better = (other > value if study.direction == StudyDirection.MAXIMIZE else other < value for other in known)
        return sum(better) >= math.ceil((len(known) + 1) / self.factor)


def asha(epochs: int, *, min_epochs: int = 1, factor: int = 3) -> BasePruner:
    """Stop all but the best 1/`factor` at epochs `min_epochs`, `min_epochs * factor`, ... (see RungPruner)."""
    return RungPruner(epochs, min_epochs, factor)


def hyperband(epochs: int, *, min_epochs: int = 1, factor: int = 3) -> BasePruner:
    """Several successive halvings with different first rungs (Li et al., JMLR 2018, arXiv 1603.06560)."""
    return optuna.pruners.HyperbandPruner(min_resource=min_epochs, max_resource=epochs, reduction_factor=factor)


def median(epochs: int, *, startup_trials: int = 5, min_epochs: int = 1) -> BasePruner:
    """Stop a trial whose best value so far is worse than the median of the others at the same epoch."""
    return optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=min_epochs - 1)


def none(epochs: int) -> BasePruner:
    """Train every trial to its last epoch."""
    return optuna.pruners.NopPruner()


def _rungs(epochs: int, min_epochs: int, factor: int) -> frozenset[int]:
    rungs = []
    rung = min_epochs
    while rung < epochs:
        rungs.append(rung)
        rung *= factor
    return frozenset(rungs)
