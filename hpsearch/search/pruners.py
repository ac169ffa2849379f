"""What to stop: pruners, from the study file's [pruner] section.

Every function of the table PRUNERS takes the study and the section's options.
"""

import math
import pkgutil
from collections.abc import Callable, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from hpsearch.recipe import fold
from hpsearch.search import PRUNERS
from hpsearch.search.racing import RacePruner
from hpsearch.spec import StudySpec


def make_pruner(spec: StudySpec) -> BasePruner:
    """The study's pruner."""
    make: Callable[..., BasePruner] = pkgutil.resolve_name(PRUNERS[spec.pruner.name])
    return make(spec, **spec.pruner.options())


class RungPruner(BasePruner):
    """Asynchronous successive halving over everything known at a rung, in one or several brackets.

    The rungs of bracket b are the epochs `min_epochs * factor**(b + k)` up to half of `epochs`: later ones would save
    little, and leave few trials to learn from and to confirm. A trial that reports at a rung goes on if its value is
    among the best `1 / factor` (rounded up) of all values ever reported there by trials of its bracket, running and
    ended ones alike; between equal values a lot decides that follows from the trials' numbers. Where a study searches
    its number of epochs, only trials with the same are compared, up to half of it: a shorter schedule has cooled down
    further at the same epoch. Optuna's pruners keep the rungs that a trial has passed as attributes and so depend on
    the order of calls; this one is a function of the reported values and the trials' numbers alone.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, arXiv 1810.05934.
    """

    def __init__(self, epochs: int, min_epochs: int, factor: int, num_brackets: int = 1) -> None:
        self.factor = factor
        self._brackets = [_rungs(epochs, min_epochs * factor**bracket, factor) for bracket in range(num_brackets)]
        self._shares = _shares(num_brackets, factor)
        self.rungs = frozenset[int]().union(*self._brackets)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial`, whose last report may stand at a rung, ends here."""
        return bool(self.failing(study, [trial]))

    def failing(self, study: Study, trials: Sequence[FrozenTrial]) -> set[int]:
        """The numbers of those of the study's `trials` that end at the rung of their last report, all by one look."""
        at_rung: dict[tuple[int, int, int | None], list[FrozenTrial]] = {}
        for trial in trials:
            epoch, bracket, length = trial.last_step, self.bracket(trial.number), _length(trial)
            if epoch in self._brackets[bracket] and (length is None or 2 * epoch <= length):
                at_rung.setdefault((epoch, bracket, length), []).append(trial)
        found: set[int] = set()
        for (epoch, bracket, length), group in at_rung.items():
            passing = self._passing(study, epoch, bracket, length)
            found |= {trial.number for trial in group} - passing
        return found

    def _passing(self, study: Study, epoch: int, bracket: int, length: int | None) -> set[int]:
        """The numbers of those that pass a rung, given all that are known there."""
        known = [
            (trial.intermediate_values[epoch], trial.number)
            for trial in study.get_trials(deepcopy=False)
            if epoch in trial.intermediate_values and self.bracket(trial.number) == bracket and _length(trial) == length
        ]
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        ranked = sorted((sign * value, number) for value, number in known if not math.isnan(value))
        best = ranked[: math.ceil(len(known) / self.factor)]
        better = {number for value, number in best if value < best[-1][0]}
        tied = [number for value, number in ranked if value == best[-1][0]]
        # By lot, the same wherever it is drawn; by number, a tie would be lost by all that come later.
        tied.sort(key=lambda number: fold(number, epoch))
        return better | set(tied[: len(best) - len(better)])

    def bracket(self, number: int) -> int:
        """The bracket of a trial, by its number alone."""
        if len(self._shares) == 1:
            return 0
        place = fold(number) % sum(self._shares)
        return next(b for b in range(len(self._shares)) if place < sum(self._shares[: b + 1]))


def failing(pruner: BasePruner, study: Study, trials: Sequence[FrozenTrial]) -> set[int]:
    """The numbers of those of the study's `trials` that the pruner stops."""
    if isinstance(pruner, RungPruner | RacePruner):
        return pruner.failing(study, trials)
    return {trial.number for trial in trials if pruner.prune(study, trial)}


def rungs(pruner: BasePruner) -> frozenset[int] | None:
    """The epochs at which the pruner decides; None if that is every epoch."""
    if isinstance(pruner, optuna.pruners.NopPruner):
        return frozenset()
    return pruner.rungs if isinstance(pruner, RungPruner) else None


def asha(spec: StudySpec, *, min_epochs: int = 1, factor: int = 3) -> BasePruner:
    """Stop all but the best 1/`factor` at epochs `min_epochs`, `min_epochs * factor`, ... (see RungPruner)."""
    return RungPruner(spec.max_epochs, min_epochs, factor)


def hyperband(spec: StudySpec, *, min_epochs: int = 1, factor: int = 3) -> BasePruner:
    """Several successive halvings with different first rungs (Li et al., JMLR 2018, arXiv 1603.06560)."""
    num_brackets = 1
    while min_epochs * factor**num_brackets <= spec.max_epochs:
        num_brackets += 1
    return RungPruner(spec.max_epochs, min_epochs, factor, num_brackets)


def median(spec: StudySpec, *, startup_trials: int = 5, min_epochs: int = 1) -> BasePruner:
    """Stop a trial whose best value so far is worse than the median of the completed trials at the same epoch."""
    return optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=min_epochs)


def none(spec: StudySpec) -> BasePruner:
    """Train every trial to its last epoch."""
    return optuna.pruners.NopPruner()


def _length(trial: FrozenTrial) -> int | None:
    """The epochs of a trial, where the study searches them."""
    return trial.params.get("epochs")


def _rungs(epochs: int, min_epochs: int, factor: int) -> frozenset[int]:
    rungs = []
    rung = min_epochs
    while 2 * rung <= epochs:
        rungs.append(rung)
        rung *= factor
    return frozenset(rungs)


def _shares(num_brackets: int, factor: int) -> list[int]:
    """How many trials of a round begin in each bracket, as in Hyperband's algorithm 1: many where rungs come early."""
    halvings = [num_brackets - 1 - bracket for bracket in range(num_brackets)]
    return [math.ceil(num_brackets * factor**left / (left + 1)) for left in halvings]
