"""Asking: what a trial trains, so that no two trials of a study train the same by accident."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from hpsearch.errors import UsageError
from hpsearch.first import read_configuration
from hpsearch.recipe import Recipe, fold
from hpsearch.relations import Draft
from hpsearch.search.samplers import distribution, make_sampler, random
from hpsearch.search.view import View
from hpsearch.space import Float, Int, active, is_same
from hpsearch.spec import StudySpec
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Drawn
from hpsearch.storage.studies import RECIPE_KEY

ATTEMPTS = 8  # times that the sampler is asked for a configuration that is new; then one is drawn without it
MAX_ATTEMPTS = 80  # then a double is accepted: the space has an end that nobody saw
BY_NUMBER = ("grid", "qmc")  # samplers that say the same at each attempt

Points = list[dict[str, Any]] | None  # all configurations of a finite space


def ask(
    view: View,
    spec: StudySpec,
    lease: Lease,
    attempt: int,
    points: Points,
    placed: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> tuple[Drawn, Recipe]:
    """Draw up the trial in the view, and say what it trains.

    `attempt` counts how often its configuration was another trial's; `placed` says with which recipe it begins.
    Raises UsageError if it was enqueued with what the study does not have.
    """
    seed = fold(spec.seed, lease.number, attempt)
    asks = attempt < (1 if spec.sampler.name in BY_NUMBER else ATTEMPTS)
    view.study.sampler = make_sampler(spec, lease.number, attempt) if asks else random(spec, seed % 2**32)
    given = ordered(view.trial(lease.trial_id).system_attrs.get("fixed_params", {}), spec)
    trial, drafts = view.draft(lease.trial_id)
    trial._fixed_params = given
    used_up = False
    if not asks and points is not None:
        unused = _unused(view, lease, points, given)
        used_up = not unused
        trial._fixed_params = {**unused[seed % len(unused)], **given} if unused else given
    params = suggest(trial, spec)
    chosen = placed(recipe(spec, params, lease.number))
    digest = trial_digest(spec, lease.number, params, chosen.seed)
    attributes = {RECIPE_KEY: chosen.as_dict()}
    # Nothing is left to change.
    final = used_up or attempt >= MAX_ATTEMPTS or (bool(given) and params.keys() <= given.keys())
    return Drawn(lease, drafts.params, attributes, drafts.system_attrs, digest, final), chosen


def ordered(given: Mapping[str, Any], spec: StudySpec) -> dict[str, Any]:
    """What a trial was enqueued with, as trials record it; the rules are those of [[first]].

    Whole numbers may be floats, as tables of other programs hold them.
    Raises UsageError for values outside the space, and for names that the study does not have.
    """
    if not given:
        return {}
    whole = {
        name: int(value)
        for name, value in given.items()
        if isinstance(spec.space.get(name), Int) and isinstance(value, float) and value.is_integer()
    }
    when = {name: parameter.when for name, parameter in spec.space.items()}
    times = {name: one.times for name, one in spec.space.items() if isinstance(one, Float) and one.times}
    draft = Draft(spec.training, spec.space, frozenset(spec.training), frozenset(spec.space), when, times)
    configuration, mistakes = read_configuration({**given, **whole}, draft)
    if mistakes:
        raise UsageError("; ".join(mistakes))
    return configuration


def suggest(trial: optuna.Trial, spec: StudySpec) -> dict[str, Any]:
    """Ask for every parameter that the trial has, in an order that meets the conditions; by recorded name."""
    chosen: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        if active(parameter, chosen):
            kind: BaseDistribution = distribution(parameter)
            chosen[name] = trial._suggest(name, kind)
    return chosen


def recipe(spec: StudySpec, params: Mapping[str, Any], number: int) -> Recipe:
    """What trial `number` trains, with the seeds that follow from the study's."""
    candidate, block = spec.place(number)
    seed = spec.seeds[block] if block < len(spec.seeds) else fold(spec.seed, number)
    # Trials of a search see the same images in the same order, which lanes can share; seeds have orders of their own.
    stream_seed = fold(spec.seed, 1) if spec.space else fold(spec.seed, seed, 1)
    return spec.recipe(params, seed, stream_seed, candidate)


def trial_digest(spec: StudySpec, number: int, params: Mapping[str, Any], seed: int) -> str:
    """The digest by which trial `number` is told from others: by its candidate and `seed` where nothing is searched."""
    candidate = {"candidate": spec.place(number)[0]} if spec.candidates else {}
    return digest_of({**params, **candidate}, seed if not spec.space else None)


def digest_of(params: Mapping[str, Any], seed: int | None) -> str:
    """A configuration in 32 hexadecimal digits; `seed` belongs to it where nothing else differs."""
    text = json.dumps([{name: _rounded(value) for name, value in params.items()}, seed], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _rounded(value: Any) -> Any:
    """Numbers that differ by rounding alone become equal: 0.1 * 3 and 0.3, 5.0 and 5."""
    if not isinstance(value, float):
        return value
    short = float(f"{value:.12g}")
    return int(short) if short.is_integer() else short


def _unused(view: View, lease: Lease, points: list[dict[str, Any]], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configurations with the `given` values that no trial of the view has, in the order of the study file."""
    used = {digest_of(trial.params, None) for trial in view.trials() if trial._trial_id != lease.trial_id}
    return [
        point
        for point in points
        if all(name not in point or is_same(point[name], value) for name, value in given.items())
        and digest_of(point, None) not in used
    ]
