"""TPE's estimators with their arithmetic in compiled code.

Optuna computes the normal distribution one number at a time in Python, and what belongs to a kernel anew for every
look at it. The values are Optuna's to rounding, from the same random numbers; tests/search/test_tpe.py compares them.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions
from scipy.special import log_ndtr, ndtr, ndtri_exp

Array = np.ndarray[Any, Any]
LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)


class ParzenEstimator(_ParzenEstimator):
    """A mixture of one kernel for each observation and one for the prior (Bergstra et al., NeurIPS 2011)."""

    def __init__(
        self,
        observations: dict[str, Array],
        search_space: dict[str, BaseDistribution],
        parameters: _ParzenEstimatorParameters,
    ) -> None:
        super().__init__(observations, search_space, parameters)
        mixture = self._mixture_distribution
        self._mixture = _Mixture(mixture.weights, mixture.distributions)

    def sample(self, rng: np.random.RandomState, size: int) -> dict[str, Array]:
        return self._untransform(self._mixture.sample(rng, size))

    def log_pdf(self, samples_dict: Mapping[str, Array]) -> Array:
        return self._mixture.log_pdf(np.array([samples_dict[name] for name in self._search_space]).T)


class _Mixture:
    """K kernels over D parameters, each a product of truncated normal and of categorical distributions."""

    def __init__(self, weights: Array, kinds: Sequence[Any]) -> None:
        self.weights, self.kinds = weights, kinds
        self.numeric = [index for index, kind in enumerate(kinds) if not _categorical(kind)]
        numeric = [kinds[index] for index in self.numeric]
        self.mu = np.array([kind.mu for kind in numeric]).reshape(-1, len(weights))
        self.sigma = np.array([kind.sigma for kind in numeric]).reshape(-1, len(weights))
        low = np.array([kind.adapted_low for kind in numeric])[:, None]
        high = np.array([kind.adapted_high for kind in numeric])[:, None]
        self.low, self.high = (low - self.mu) / self.sigma, (high - self.mu) / self.sigma
        self.log_mass = log_gauss_mass(self.low, self.high)

    def sample(self, rng: np.random.RandomState, size: int) -> Array:
        """Points (size, D), from the random numbers that Optuna would take, in its order."""
        kernels = rng.choice(len(self.weights), p=self.weights, size=size)
        points = np.empty((size, len(self.kinds)))
        for index, kind in enumerate(self.kinds):
            if _categorical(kind):
                until = np.cumsum(kind.weights[kernels, :-1], axis=1)
                points[:, index] = np.sum(until < rng.rand(size)[:, None], axis=1)
        if not self.numeric:
            return points
        low, high, mass = self.low[:, kernels], self.high[:, kernels], self.log_mass[:, kernels]
        quantiles = rng.uniform(size=low.shape)
        normal = ndtri_exp(np.logaddexp(log_ndtr(low), np.log(quantiles) + mass))
        normal = np.clip(normal, low, high) * self.sigma[:, kernels] + self.mu[:, kernels]
        for index, column in zip(self.numeric, normal, strict=True):
            kind = self.kinds[index]
            values = np.exp(column) if kind.is_log else column
            if kind.step:
                values = np.clip(kind.low + np.round((values - kind.low) / kind.step) * kind.step, kind.low, kind.high)
            points[:, index] = values
        return points

    def log_pdf(self, points: Array) -> Array:
        """The logarithm of the density, or of the probability of a step, at `points` (N, D): (N,)."""
        total = np.repeat(self._of_kernels[None], len(points), axis=0)
        row = 0
        for index, kind in enumerate(self.kinds):
            if _categorical(kind):
                total += np.log(kind.weights.T[points[:, index].astype(int)])
                continue
            mu, sigma = self.mu[row], self.sigma[row]
            row += 1
            if kind.step:
                total += _log_probability(points[:, index], mu, sigma, kind)
            else:
                at = np.log(points[:, index]) if kind.is_log else points[:, index]
                distance = (at[:, None] - mu) / sigma
                distance *= distance
                distance *= 0.5
                total -= distance
        most = total.max(axis=1)
        most[np.isneginf(most)] = 0.0  # no kernel reaches there
        total -= most[:, None]
        with np.errstate(divide="ignore"):
            density: Array = np.log(np.exp(total, out=total).sum(axis=1)) + most
        return density

    @cached_property
    def _of_kernels(self) -> Array:
        """What each kernel has at every point: its weight, and what makes its densities sum to one."""
        steady = [row for row, index in enumerate(self.numeric) if not self.kinds[index].step]
        scale: Array = np.log(self.sigma[steady]).sum(axis=0) + len(steady) * LOG_SQRT_2PI
        with np.errstate(divide="ignore"):
            return cast(Array, np.log(self.weights) - self.log_mass.sum(axis=0) - scale)


def _categorical(kind: Any) -> bool:
    return isinstance(kind, _BatchedCategoricalDistributions)


def _log_probability(values: Array, mu: Array, sigma: Array, kind: Any) -> Array:
    """The logarithm of the normal mass of the step around each value (N,), for each kernel: (N, K).

    Few values and few kernels of a parameter in steps are different ones.
    """
    values, value_of = np.unique(values, return_inverse=True)
    kernels, kernel_of = np.unique(mu + 1j * sigma, return_inverse=True)
    ends = values[:, None] + np.array([-kind.step / 2, kind.step / 2])
    low, high = ((np.log(ends) if kind.is_log else ends)[:, :, None] - kernels.real).swapaxes(0, 1) / kernels.imag
    mass: Array = log_gauss_mass(low, high)[np.ix_(value_of, kernel_of)]
    return mass


def log_gauss_mass(low: Array, high: Array) -> Array:
    """The logarithm of the standard normal's mass between `low` and `high`, exact in both tails."""
    right = low > 0  # the same mass lies on the left, where logarithms lose nothing
    low, high = np.where(right, -high, low), np.where(right, -low, high)
    mass = np.empty(low.shape)
    around = high > 0
    mass[around] = np.log1p(-ndtr(low[around]) - ndtr(-high[around]))
    tail = ~around
    above = log_ndtr(high[tail])
    mass[tail] = above + np.log1p(-np.exp(log_ndtr(low[tail]) - above))
    return mass
