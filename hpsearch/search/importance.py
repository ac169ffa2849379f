"""Which hyperparameters mattered, by Optuna's PED-ANOVA, and whether there were trials enough to say so."""

import contextlib
import copy
import random
import warnings
from dataclasses import dataclass

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.view import ViewStorage

MIN_COMPLETE = 41  # of fewer the best tenth is less than five, which Optuna advises at least


@dataclass(frozen=True)
class Importances:
    """Shares that sum to 1, the largest first; empty if they cannot be computed."""

    evaluator: str
    num_complete: int
    shares: dict[str, float]

    @property
    def caution(self) -> str:
        """That the trials are too few for more than a guess; empty if they are not."""
        return caution(self.num_complete)

    def sentence(self) -> str:
        """One line for a person."""
        if not self.shares:
            return f"importances: too few completed trials ({self.num_complete}) to tell"
        listed = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        guess = f", {self.caution}" if self.caution else ""
        return f"importances for reaching the best tenth (PED-ANOVA{guess}): {listed}"


def caution(num_complete: int) -> str:
    """What `Importances.caution` says."""
    if num_complete >= MIN_COMPLETE:
        return ""
    return f"a rough guess from {num_complete} completed trials, fewer than {MIN_COMPLETE}"


def importances(study: optuna.Study) -> Importances:
    """PED-ANOVA importances over completed trials, of conditional parameters too.

    Sources: Watanabe et al., IJCAI 2023 (arXiv 2304.10255); conditional parameters: arXiv 2601.20800, KDD 2026.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shares: dict[str, float] = {}
    if len(complete) > 1 and len({trial.value for trial in complete}) > 1:
        with contextlib.suppress(ValueError, RuntimeError), warnings.catch_warnings():
            # Suppressed: no parameter, or none with a spread. Ignored: too few trials, which we say.
            warnings.simplefilter("ignore", UserWarning)
            shares = optuna.importance.get_param_importances(study)
    return Importances("PED-ANOVA", len(complete), dict(shares))


@dataclass(frozen=True)
class Share:
    """A hyperparameter's share with the interval that resampling the trials gives."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrapped:
    """As Importances, with intervals; empty if there were too few trials."""

    evaluator: str
    num_complete: int
    shares: dict[str, Share]


def bootstrap(study: optuna.Study, num_samples: int = 50, seed: int = 0) -> Bootstrapped:
    """Importances, and how far they move when trials are drawn again with replacement (Efron 1979).

    95 of 100 draws lie within the interval. It says how much the share depends on which trials there were: of few
    trials, shares of parameters without any effect are large as well.
    """
    found = importances(study)
    complete = [_inside(trial) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    generator = random.Random(seed)  # noqa: S311 -- no secret
    drawn: dict[str, list[float]] = {name: [] for name in found.shares}
    for _ in range(num_samples if found.shares else 0):
        chosen = enumerate(generator.choices(complete, k=len(complete)))
        storage = ViewStorage({number: _numbered(trial, number) for number, trial in chosen})
        again = importances(optuna.create_study(storage=storage, direction=study.direction)).shares
        for name, values in drawn.items():
            values.append(again.get(name, 0.0))
    shares = {name: Share(share, *_percentiles(drawn[name])) for name, share in found.shares.items()}
    return Bootstrapped(found.evaluator, found.num_complete, shares)


def _inside(trial: FrozenTrial) -> FrozenTrial:
    """The trial with values that lie in their ranges: grids once recorded 0.1 + 2 * 0.1, which is above 0.3."""
    moved = copy.copy(trial)
    moved.params = {
        name: min(max(value, kind.low), kind.high) if isinstance(kind, FloatDistribution) else value
        for name, value in trial.params.items()
        for kind in [trial.distributions[name]]
    }
    return moved


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    """The trial as another one: PED-ANOVA tells them apart by their ids."""
    other = copy.copy(trial)
    other.number = other._trial_id = number
    return other


def _percentiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(0.025 * last)], ordered[round(0.975 * last)]
