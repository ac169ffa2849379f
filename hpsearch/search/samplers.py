"""What to try: samplers, from the study file's [sampler] section.

Every function of the table SAMPLERS takes the study, a seed and the section's options. A sampler is made anew for each
trial, seeded from the study's seed and the trial's number: one worker alone repeats a study exactly.
"""

import math
import pkgutil
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import optuna
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from hpsearch.recipe import fold
from hpsearch.search import SAMPLERS
from hpsearch.search.tpe import BatchTPESampler
from hpsearch.space import Choice, Int, Parameter, active, num_values, value_at
from hpsearch.spec import StudySpec


def make_sampler(spec: StudySpec, number: int, attempt: int = 0) -> BaseSampler:
    """The study's sampler for trial `number`; each `attempt` to find a configuration for it has draws of its own."""
    make: Callable[..., BaseSampler] = pkgutil.resolve_name(SAMPLERS[spec.sampler.name])
    options = spec.sampler.options()
    options.pop("seed", None)
    base = _base_seed(spec)
    seed = fold(base, number, attempt) if attempt else fold(base, number)
    return make(spec, seed % 2**32, **options)


def corner(spec: StudySpec) -> dict[str, Any]:
    """The configuration with the first choice and the lowest value of everything."""
    point: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        if active(parameter, point):
            point[name] = at(parameter, 0.0)
    return point


def distribution(parameter: Parameter) -> BaseDistribution:
    """The parameter in Optuna's terms."""
    if isinstance(parameter, Choice):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, Int):
        return IntDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def tpe(spec: StudySpec, seed: int, *, startup_trials: int = 10) -> BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), multivariate, counting running trials in."""
    conditional = any(parameter.when for parameter in spec.space.values())
    return _tpe(startup_trials, conditional).seeded(seed, _RandomSampler(seed))


def random(spec: StudySpec, seed: int) -> BaseSampler:
    """Independent draws."""
    return _RandomSampler(seed)


def gp(spec: StudySpec, seed: int, *, startup_trials: int = 10) -> BaseSampler:
    """Gaussian process with expected improvement; slow beyond a thousand trials."""
    return optuna.samplers.GPSampler(n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False)


def cmaes(spec: StudySpec, seed: int, *, startup_trials: int = 10) -> BaseSampler:
    """CMA-ES (Hansen and Ostermeier 2001) on the numeric parameters; choices are drawn at random."""
    return _ReplayedCmaEsSampler(n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False)


def grid(spec: StudySpec, seed: int) -> BaseSampler:
    """Every combination once, in the order of the study file; needs choices, whole numbers or steps."""
    return _NumberedSampler(spec, lambda index: (points := spec.configurations or [])[index % len(points)])


def qmc(spec: StudySpec, seed: int) -> BaseSampler:
    """Scrambled Sobol points, spread evenly whatever was found (Sobol 1967; Owen 1998)."""
    from scipy.stats.qmc import Sobol  # slow to import

    parameters = spec.parameters

    def point(index: int) -> dict[str, Any]:
        engine = Sobol(len(parameters), scramble=True, rng=_base_seed(spec))  # all trials draw from one sequence
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "balance properties": every prefix is used here
            unit = engine.random(index + 1)[-1]
        return {name: at(parameter, float(u)) for (name, parameter), u in zip(parameters.items(), unit, strict=True)}

    return _NumberedSampler(spec, point)


def at(parameter: Parameter, u: float) -> Any:
    """The value at the fraction `u`, in [0, 1), of the parameter's range."""
    if isinstance(parameter, Choice) or (parameter.step and not parameter.log):
        return value_at(parameter, int(u * (num_values(parameter) or 0)))
    if u == 0:
        return parameter.low  # of which the exponential of the logarithm may be another number
    if not parameter.log:
        return min(parameter.low + u * (parameter.high - parameter.low), parameter.high)
    half = 0.5 if isinstance(parameter, Int) else 0.0  # every whole number owns the half on both its sides
    low, high = math.log(parameter.low - half), math.log(parameter.high + half)
    value = math.exp(low + u * (high - low))
    return min(max(round(value) if half else value, parameter.low), parameter.high)


def _base_seed(spec: StudySpec) -> int:
    return spec.seed if spec.sampler.seed is None else spec.sampler.seed


class _NumberedSampler(BaseSampler):
    """Takes the whole configuration from the trial's number, not counting the known good configurations."""

    def __init__(self, spec: StudySpec, point: Callable[[int], dict[str, Any]]) -> None:
        self._distributions = {name: distribution(parameter) for name, parameter in spec.parameters.items()}
        self._num_first = len(spec.first)
        self._point = point

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._point(max(trial.number - self._num_first, 0))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # Reached only by a known good configuration that leaves a condition open which its own point does not meet.
        sampler = optuna.samplers.RandomSampler(seed=trial.number)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class _RandomSampler(optuna.samplers.RandomSampler):
    """Optuna's, draw for draw, without making each parameter's transformation anew, and seeded when first asked."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    @cached_property
    def _numbers(self) -> np.random.RandomState:
        return np.random.RandomState(self._seed)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        transform = _transform(param_name, param_distribution)
        low, high = transform.bounds.T
        return transform.untransform(self._numbers.uniform(low, high))[param_name]


@lru_cache(maxsize=16)
def _tpe(startup_trials: int, group: bool) -> BatchTPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`, which conditions need
        return BatchTPESampler(startup_trials=startup_trials, group=group)


@lru_cache(maxsize=256)
def _transform(name: str, kind: BaseDistribution) -> _SearchSpaceTransform:
    return _SearchSpaceTransform({name: kind})


class _ReplayedCmaEsSampler(optuna.samplers.CmaEsSampler):
    """CMA-ES whose state is computed again from the trials.

    Optuna's own keeps the state in the database as a pickle, and unpickling runs what a database says.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> None:
        self._completed = completed_trials

    def _init_optimizer(self, trans: Any, direction: optuna.study.StudyDirection) -> Any:
        optimizer = super()._init_optimizer(trans, direction)
        sign = 1.0 if direction == optuna.study.StudyDirection.MINIMIZE else -1.0
        generations: dict[int, list[FrozenTrial]] = {}
        for trial in self._completed:
            generations.setdefault(trial.system_attrs.get(self._attr_key_generation, -1), []).append(trial)
        while len(trials := generations.get(optimizer.generation, [])) >= optimizer.population_size:
            optimizer.tell(
                [
                    (trans.transform(trial.params), sign * (trial.value or 0.0))
                    for trial in trials[: optimizer.population_size]
                ]
            )
        return optimizer
