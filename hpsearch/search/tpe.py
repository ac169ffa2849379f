"""Optuna's TPE for many suggestions in a row: what they have in common is computed once.

Optuna sorts, splits and converts all finished trials anew for every suggestion, and again for every group of a
conditional space. Between the suggestions of a batch only the running trials change, and those are few. The suggestions
are Optuna's own, numbers to rounding, but that trials that diverged rank last; tests/search/test_tpe.py compares them.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.search_space import IntersectionSearchSpace
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace, _SearchSpaceGroup
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.parzen import ParzenEstimator

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # the trials that TPE learns from

Space = dict[str, BaseDistribution]
Observations = dict[str, np.ndarray[Any, Any]]
Row = list[float] | None  # the values of a search space's parameters; None if one of them is missing


class _Running:
    """What TPE takes a running trial to have: also what was drawn for parameters that it then did not need."""

    def __init__(self, number: int, own: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        self.number, self.own, self.size, self.params = number, own, len(own), params
        self.rows: dict[int, Row] = {}  # by the number of the search space

    def row(self, space: int, search_space: Space) -> Row:
        """Its values for the parameters of a search space, which gets that number here."""
        has_all, kinds = search_space.keys() <= self.params.keys(), search_space.items()
        row = [kind.to_internal_repr(self.params[name]) for name, kind in kinds] if has_all else None
        self.rows[space] = row
        return row


class BatchTPESampler(TPESampler):
    """TPE for one objective, with running trials counted in (Optuna's `constant_liar`)."""

    def __init__(self, *, startup_trials: int, group: bool) -> None:
        super().__init__(n_startup_trials=startup_trials, group=group)
        self._asked: tuple[int, list[_Running]] = (-1, [])

    def seeded(self, seed: int, independent: RandomSampler) -> "BatchTPESampler":
        """The same sampler with random numbers of its own, and with what draws its first trials."""
        made = copy.copy(self)
        made._rng, made._random_sampler = LazyRandomState(seed), independent
        return made

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:
        """As Optuna's, from what is known of the study already."""
        self._search_space = _memory(study).intersection
        if self._group:
            self._group_decomposed_search_space = _Groups()
        return super().infer_relative_search_space(study, trial)

    def _sample(self, study: Study, trial: FrozenTrial, search_space: Space) -> dict[str, Any]:
        memory = _memory(study)
        past, space = memory.past(study), memory.number_of(search_space)
        below = past.below(self, study, space, search_space)
        numbers, others = past.above(self, study, space, search_space)
        running = self._running(study, trial)
        rows = [
            (one.number, row)
            for one in running
            if (row := one.rows[space] if space in one.rows else one.row(space, search_space)) is not None
        ]
        above = self._estimator(_with(numbers, others, rows, search_space), search_space)
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        chosen = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: kind.to_external_repr(chosen[name]) for name, kind in search_space.items()}

    def _running(self, study: Study, trial: FrozenTrial) -> list[_Running]:
        """The other running trials; they stay as they are while one trial is drawn up."""
        if self._asked[0] != trial.number:
            memory = _memory(study)
            found: dict[int, _Running] = {}
            for one in study._get_trials(deepcopy=False, states=(TrialState.RUNNING,), use_cache=False):
                number, own = one.number, one.params
                entry = memory.running.get(number)
                if entry is None or entry.own is not own or entry.size != len(own):
                    entry = _Running(number, own, self._get_params(one, study))
                found[number] = entry
            memory.running = found
            self._asked = (trial.number, [entry for number, entry in found.items() if number != trial.number])
        return self._asked[1]

    def _estimator(self, observations: Observations, search_space: Space) -> ParzenEstimator:
        return ParzenEstimator(observations, search_space, self._parzen_estimator_parameters)


def _scored(trial: FrozenTrial) -> FrozenTrial:
    """Without values if it diverged: Optuna ranks it by its last epoch, above all that were pruned before that one."""
    values = trial.intermediate_values
    if trial.state != TrialState.PRUNED or not values or not math.isnan(values[max(values)]):
        return trial
    diverged = copy.copy(trial)
    diverged.intermediate_values = {}
    return diverged


class _Past:
    """The finished trials of a study, split into the good ones (below) and the others (above)."""

    def __init__(self, study: Study, finished: Sequence[FrozenTrial]) -> None:
        self.finished = finished
        self._below, self._above = _split_trials(study, [*map(_scored, finished)], default_gamma(len(finished)))
        self._estimators: dict[int, ParzenEstimator] = {}  # by the number of the search space
        self._observations: dict[int, tuple[np.ndarray[Any, Any], Observations]] = {}

    @cached_property
    def groups(self) -> _SearchSpaceGroup:
        """The groups of a conditional space: parameters that the same trials have."""
        groups = _SearchSpaceGroup()
        kinds: dict[frozenset[str], Space] = {}
        for trial in self.finished:  # a second trial with the same parameters changes nothing
            kinds.setdefault(frozenset(trial.distributions), trial.distributions)
        for distributions in kinds.values():
            groups.add_distributions(distributions)
        return groups

    def below(self, sampler: BatchTPESampler, study: Study, space: int, search_space: Space) -> ParzenEstimator:
        """The estimator of the good trials."""
        if space not in self._estimators:
            self._estimators[space] = sampler._estimator(
                sampler._get_internal_repr(self._below, search_space, study), search_space
            )
        return self._estimators[space]

    def above(
        self, sampler: BatchTPESampler, study: Study, space: int, search_space: Space
    ) -> tuple[np.ndarray[Any, Any], Observations]:
        """Number and parameters of the other trials, those that have all parameters of `search_space`."""
        if space not in self._observations:
            having = [trial for trial in self._above if search_space.keys() <= trial.params.keys()]
            numbers = np.asarray([trial.number for trial in having], dtype=int)
            self._observations[space] = numbers, sampler._get_internal_repr(having, search_space, study)
        return self._observations[space]


class _Memory:
    """What suggestions of one study share."""

    def __init__(self) -> None:
        self.intersection = IntersectionSearchSpace(include_pruned=True)
        self.running: dict[int, _Running] = {}  # by number
        self._spaces: dict[tuple[tuple[str, BaseDistribution], ...], int] = {}  # the number of each search space
        self._past: _Past | None = None

    def past(self, study: Study) -> _Past:
        finished = study._get_trials(deepcopy=False, states=FINISHED, use_cache=True)
        if self._past is None or len(self._past.finished) != len(finished):  # they never change, and never go
            self._past = _Past(study, finished)
        return self._past

    def number_of(self, search_space: Space) -> int:
        """A search space as a small number, which is quick to look up."""
        return self._spaces.setdefault(tuple(search_space.items()), len(self._spaces))


_MEMORIES: WeakKeyDictionary[Study, _Memory] = WeakKeyDictionary()


def _memory(study: Study) -> _Memory:
    return _MEMORIES.setdefault(study, _Memory())


class _Groups(_GroupDecomposedSearchSpace):
    def calculate(self, study: Study, use_cache: bool = False) -> _SearchSpaceGroup:
        return _memory(study).past(study).groups


def _with(
    numbers: np.ndarray[Any, Any], others: Observations, running: Sequence[tuple[int, list[float]]], search_space: Space
) -> Observations:
    """The observations with those of running trials between them, by number: old trials weigh less."""
    if not running:
        return others
    order = np.argsort(np.concatenate([numbers, [number for number, _ in running]]), kind="stable")
    columns = np.asarray([row for _, row in running], dtype=float).T  # (parameters, running trials)
    return {
        name: np.concatenate([others[name], column])[order] for name, column in zip(search_space, columns, strict=True)
    }
