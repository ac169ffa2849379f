"""Samplers: each of the table fills a conditional space, grids and Sobol points are exact, nothing is unpickled."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpsearch.errors import StudyFileError
from hpsearch.recipe import fold
from hpsearch.search import SAMPLERS
from hpsearch.search.asking import suggest
from hpsearch.search.samplers import at, corner, distribution, make_sampler
from hpsearch.sections import SAMPLER_OPTIONS, Sampler
from hpsearch.space import Choice, Float, Int, configurations
from hpsearch.spec import StudySpec, parse
from tests.studies import TINY

CONTINUOUS = """
learning_rate = { low = 1e-3, high = 1e-1, log = true }
weight_decay = { low = 1e-6, high = 1e-2, log = true }
"""
CONDITIONAL = """
optimizer = ["sgd", "adam"]
momentum = { low = 0.5, high = 0.9, step = 0.2, when = { optimizer = "sgd" } }
batch_size = { low = 16, high = 64, step = 16 }
scheduler = ["constant", "onecycle"]
peak_learning_rate = { times = "learning_rate", low = 1.0, high = 4.0, step = 1.0 }
"""


def study_of(sampler: str, space: str, trials: int = 20) -> StudySpec:
    """A study that searches `space`."""
    head = TINY.split("[space]")[0]
    tail = f'[sampler]\nname = "{sampler}"\n[budget]\ntrials = {trials}\n'
    return parse(f"{head}[space]\n{space}\n{tail}", "test.toml")


def search(spec: StudySpec, num_trials: int) -> list[dict[str, Any]]:
    """What one worker alone would try, if it minimized the orders of magnitude of all numbers."""
    study = optuna.create_study()
    tried = []
    for number in range(num_trials):
        study.sampler = make_sampler(spec, number)
        trial = study.ask()
        tried.append(suggest(trial, spec))
        study.tell(trial, magnitude(tried[-1]))
    return tried


def magnitude(params: dict[str, Any]) -> float:
    """The decimal orders of magnitude of all numbers, summed."""
    return sum(math.log10(value or 1) for value in params.values() if isinstance(value, int | float))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"grid"}))
def test_every_sampler_fills_a_conditional_space(name: str) -> None:
    spec = study_of(name, CONTINUOUS + CONDITIONAL)
    tried = search(spec, 14)  # past the ten random trials of those that learn
    for params in tried:
        assert ("momentum" in params) == (params["optimizer"] == "sgd")
        assert ("peak_learning_rate_factor" in params) == (params["scheduler"] == "onecycle")
        for key, value in params.items():
            assert spec.parameters[key].contains(value), (key, value)
        recipe = spec.recipe(params, 0, 0)
        assert recipe.peak_learning_rate is None or recipe.peak_learning_rate >= recipe.learning_rate
    assert len({str(params) for params in tried}) > 10


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"grid"}))
def test_one_worker_alone_repeats_a_study(name: str) -> None:
    spec = study_of(name, CONTINUOUS)
    assert search(spec, 13) == search(spec, 13)


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_samplers_that_learn_come_nearer_than_their_first_guesses(name: str) -> None:
    costs = [magnitude(params) for params in search(study_of(name, CONTINUOUS), 60)]
    # The space spans 2 + 4 orders of magnitude; random draws stay at its middle, 3 above the best.
    assert sum(costs[-10:]) / 10 < sum(costs[:10]) / 10 - 1.0


def test_grid_tries_every_combination_once() -> None:
    space = "learning_rate = [0.01]\n" + CONDITIONAL
    spec = study_of("grid", space, trials=1000)
    spec_points = spec.configurations
    assert spec_points is not None
    assert len(spec_points) == (3 + 1) * 4 * (1 + 4)  # momenta of sgd and adam; batch sizes; constant and four factors
    assert spec.max_trials == len(spec_points)
    tried = Counter(tuple(sorted(params.items())) for params in search(spec, len(spec_points)))
    assert set(tried.values()) == {1}
    assert study_of("grid", space, trials=7).max_trials == 7


CHAIN = ("learning_rate", "weight_decay", "dropout", "clip_norm", "momentum")


def chain(length: int) -> str:
    """A space with `length` configurations for each hyperparameter of the chain, of which each needs the one before."""
    values = ", ".join(str(index / 100) for index in range(1, length + 1))
    lines = [f"{name} = {{ choices = [{values}], when = {{ {of} = 0.01 }} }}" for of, name in pairwise(CHAIN)]
    return "\n".join([f"{CHAIN[0]} = [{values}]", *lines])


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_conditions_leave_fewer_configurations_than_choices_multiply_to(name: str) -> None:
    spec = study_of(name, chain(11), trials=1000)
    assert spec.max_trials == 11 + 4 * 10  # of 161,051 combinations
    assert study_of("random", chain(3), trials=1000).max_trials == 3 + 4 * 2


def test_a_grid_is_refused_for_the_configurations_that_it_has() -> None:
    wide = "".join(f"\nbatch_size = {{ low = 1, high = 100_001, when = {{ {CHAIN[-1]} = 0.01 }} }}")
    with pytest.raises(StudyFileError, match="has 16105261051 combinations, conditions aside, the most is 100000"):
        study_of("grid", chain(11) + wide)


def test_a_grid_is_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[object] = []
    monkeypatch.setattr("hpsearch.spec.configurations", lambda *given: listed.append(given) or configurations(*given))
    spec = study_of("grid", CONDITIONAL + "learning_rate = [0.01]")
    search(spec, 20)
    assert len(listed) == 1


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"grid", "gp"}))
def test_a_long_range_of_whole_numbers_is_never_listed(name: str) -> None:
    spec = study_of(name, f"seed = {{ low = 0, high = {2**40} }}\noptimizer = ['sgd', 'adam']")
    assert spec.max_trials == 20
    seeds = [params["seed"] for params in search(spec, 12)]
    assert len(set(seeds)) == 12
    assert all(spec.parameters["seed"].contains(seed) for seed in seeds)


@pytest.mark.parametrize("name", ["grid", "gp"])  # Optuna's gp lists the values of each parameter
def test_what_is_too_long_to_be_listed_is_refused(name: str) -> None:
    with pytest.raises(StudyFileError, match=r"has 1099511627777 .* 100000"):
        study_of(name, f"seed = {{ low = 0, high = {2**40} }}")


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_condition_on_a_step_holds_at_that_step(name: str) -> None:
    size = "batch_size = { choices = [8, 16], when = { dropout = 0.3 } }"
    space = f"dropout = {{ low = 0.0, high = 0.5, step = 0.1 }}\n{size}"
    tried = search(study_of(name, space), 7 if name == "grid" else 20)
    third = [params for params in tried if math.isclose(params["dropout"], 0.3)]
    assert third
    assert [params for params in tried if "batch_size" in params] == third


@pytest.mark.parametrize("name", sorted(name for name in SAMPLERS if "seed" in SAMPLER_OPTIONS[name]))
def test_a_sampler_draws_from_a_seed_of_its_own(name: str) -> None:
    spec = study_of(name, CONTINUOUS)
    same, other = (replace(spec, sampler=Sampler(name=name, seed=seed)) for seed in (spec.seed, spec.seed + 1))
    first, again, another = (search(one, 3) for one in (spec, same, other))
    assert first == again
    assert all(mine != theirs for mine, theirs in zip(first, another, strict=True))


def test_a_grid_has_nothing_to_seed() -> None:
    with pytest.raises(StudyFileError, match=r"sampler\.seed: grid does not take it; it takes no options"):
        study_of('grid"\nseed = 3\n# "', "optimizer = ['sgd', 'adam']")


def test_a_grid_records_what_optuna_takes_for_a_value_of_the_range() -> None:
    spec = study_of(
        "grid", "learning_rate = { low = 0.1, high = 0.3, step = 0.1 }\nweight_decay = { low = 0.1, high = 0.1 }"
    )
    study = optuna.create_study()
    for number in range(3):
        study.sampler = make_sampler(spec, number)
        suggest(study.ask(), spec)
    optuna.create_study().add_trials(study.get_trials())  # which refuses what is outside
    assert [trial.params["learning_rate"] for trial in study.trials] == [0.1, 0.2, 0.3]
    assert spec.max_trials == 3


def test_sobol_points_fill_the_range_evenly() -> None:
    params = search(study_of("qmc", CONTINUOUS), 16)
    cells = Counter(int((math.log10(p["learning_rate"]) + 3) / 2 * 16) for p in params)
    assert set(cells.values()) == {1}  # sixteen scrambled Sobol points: one in each sixteenth


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Choice(("a", "b", "c")), ["a", "b", "c"]),
        (Int(2, 8, step=2), [2, 4, 6, 8]),
        (Int(1, 100, log=True), [1, 10, 100]),
        (Float(0.1, 0.5, step=0.2), [0.1, 0.3, 0.5]),
        (Float(0.1, 0.3, step=0.1), [0.1, 0.2, 0.3]),
        (Float(0.1, 0.1), [0.1]),
        (Float(1e-4, 1.0, log=True), []),
        (Float(-1.0, 1.0), []),
    ],
)
def test_at_covers_the_range_and_stays_inside(parameter: Any, values: list[Any]) -> None:
    found = [at(parameter, u / 1000) for u in range(1000)]
    assert all(parameter.contains(value) for value in found)
    kind = distribution(parameter)
    assert all(kind._contains(kind.to_internal_repr(value)) for value in found)
    for value in values:
        assert any(value == pytest.approx(other) if not isinstance(value, str) else value == other for other in found)
    assert at(parameter, 0.0) == (
        parameter.choices[0] if isinstance(parameter, Choice) else pytest.approx(parameter.low)
    )


def test_distributions() -> None:
    assert distribution(Choice(("a", "b"))) == CategoricalDistribution(("a", "b"))
    assert distribution(Int(1, 9, step=2)) == IntDistribution(1, 9, step=2)
    assert distribution(Float(0.1, 1.0, log=True)) == FloatDistribution(0.1, 1.0, log=True)


def test_corner_is_a_configuration_of_the_space() -> None:
    point = corner(study_of("tpe", CONTINUOUS + CONDITIONAL))
    assert point["optimizer"] == "sgd"
    assert point["momentum"] == 0.5
    assert "peak_learning_rate_factor" not in point


def test_cmaes_leaves_no_pickle_in_the_study() -> None:
    spec = study_of("cmaes", CONTINUOUS)
    study = optuna.create_study()
    for number in range(30):
        study.sampler = make_sampler(spec, number)
        trial = study.ask()
        params = suggest(trial, spec)
        study.tell(trial, params["learning_rate"])
    keys = {key for trial in study.trials for key in trial.system_attrs}
    assert keys == {"cma:generation"}
    assert max(trial.system_attrs.get("cma:generation", 0) for trial in study.trials) >= 2  # it did move on


def test_cmaes_looks_through_the_trials_a_few_times_however_many_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, looks = study_of("cmaes", CONTINUOUS), []
    find = optuna.samplers.CmaEsSampler._get_solution_trials
    monkeypatch.setattr(
        optuna.samplers.CmaEsSampler, "_get_solution_trials", lambda *given: looks.append(1) or find(*given)
    )
    search(spec, 12)
    few = len(looks)
    looks.clear()
    search(spec, 72)  # ten generations
    assert len(looks) / 62 <= few / 2  # suggestions by CMA-ES
    assert len(looks) / 62 < 3


def test_random_draws_are_optunas() -> None:
    spec = study_of("random", CONTINUOUS + CONDITIONAL)
    ours, theirs = optuna.create_study(sampler=make_sampler(spec, 3)), optuna.create_study()
    seed = fold(spec.seed, 3) % 2**32
    theirs.sampler = optuna.samplers.RandomSampler(seed=seed)
    for _ in range(5):
        assert suggest(ours.ask(), spec) == suggest(theirs.ask(), spec)
