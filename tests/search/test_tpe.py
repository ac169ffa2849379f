"""TPE in batches suggests what Optuna's own sampler suggests, numbers to rounding."""

import random
import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.trial import TrialState

from hpsearch.recipe import fold
from hpsearch.search.asking import suggest
from hpsearch.search.parzen import ParzenEstimator, log_gauss_mass
from hpsearch.search.samplers import make_sampler
from hpsearch.spec import StudySpec, parse
from tests.studies import TINY

CONDITIONAL = """
optimizer = ["sgd", "adam"]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
momentum = { low = 0.5, high = 0.95, step = 0.05, when = { optimizer = "sgd" } }
weight_decay = { low = 1e-6, high = 1e-2, log = true, when = { optimizer = "adam" } }
batch_size = { low = 16, high = 64, step = 16 }
clip_norm = [1.0]
scheduler = ["constant", "onecycle"]
peak_learning_rate = { times = "learning_rate", low = 1.0, high = 4.0 }
"""
FLAT = """
optimizer = ["sgd", "adam"]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
weight_decay = { low = 0.0, high = 1e-2 }
batch_size = { low = 16, high = 64, log = true }
"""


def study_of(space: str) -> StudySpec:
    """A study that searches `space` with TPE."""
    return parse(f"{TINY.split('[space]')[0]}[space]\n{space}\n[budget]\ntrials = 100\n", "test.toml")


def optunas(spec: StudySpec, number: int) -> TPESampler:
    """Optuna's own sampler with the seed and the options of ours."""
    conditional = any(parameter.when for parameter in spec.space.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(n_startup_trials=10, group=conditional, seed=fold(spec.seed, number) % 2**32)


def ends(study: optuna.Study, trial: optuna.Trial, draw: random.Random, make: Any) -> None:
    """End a trial in one of the ways in which trials end.

    One that diverged is to Optuna's own sampler one without values, which ranks last.
    """
    kind = draw.choice(["complete", "complete", "pruned", "silent", "infinite", "fail", "infeasible"])
    if kind == "fail":
        study.tell(trial, state=TrialState.FAIL)
    elif kind == "silent":
        study.tell(trial, state=TrialState.PRUNED)
    elif kind == "complete":
        study.tell(trial, draw.random())
    else:
        if kind == "infeasible":
            trial.set_constraint("memory", 1.0)
        for epoch in range(1, draw.randint(2, 4)):
            if kind != "infinite":
                trial.report(draw.random(), epoch)
            elif make is not optunas:
                trial.report(float("nan"), epoch)
        study.tell(trial, state=TrialState.PRUNED)


def search(spec: StudySpec, make: Any, direction: str) -> list[dict[str, Any]]:
    """Batches of seven suggestions; between batches some of the running trials end, in an order of their own."""
    study = optuna.create_study(direction=direction)
    draw, running, tried = random.Random(5), [], []
    for number in range(63):
        study.sampler = sampler = make(spec, number)
        assert isinstance(sampler, BaseSampler)
        running.append(study.ask())
        tried.append(suggest(running[-1], spec))
        if number % 7 == 6:
            draw.shuffle(running)
            while len(running) > 3:
                ends(study, running.pop(), draw, make)
    return tried


def close(params: dict[str, Any]) -> dict[str, Any]:
    """Equal to the same parameters, numbers to the accuracy of Optuna's inverse of the normal distribution."""
    return {
        name: pytest.approx(value, rel=1e-8) if isinstance(value, float) else value for name, value in params.items()
    }


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("space", [CONDITIONAL, FLAT], ids=["conditional", "flat"])
def test_suggestions_are_optunas_own(space: str, direction: str) -> None:
    spec = study_of(space)
    ours, theirs = search(spec, make_sampler, direction), search(spec, optunas, direction)
    others = search(spec, lambda spec, number: make_sampler(spec, number, 1), direction)
    assert [close(one) for one in theirs] == ours
    assert [close(one) for one in theirs] != others


KINDS: dict[str, BaseDistribution] = {
    "float": FloatDistribution(-3.0, 5.0),
    "log": FloatDistribution(1e-5, 1e2, log=True),
    "steps": FloatDistribution(0.0, 2.0, step=0.25),
    "int": IntDistribution(1, 300),
    "log-int": IntDistribution(1, 4096, log=True),
    "choice": CategoricalDistribution(("a", "b", "c")),
}
SPACES = [*([name] for name in KINDS), list(KINDS), ["choice", "log-int", "choice"]]


@pytest.mark.parametrize("num", [0, 1, 2, 60])
@pytest.mark.parametrize("names", SPACES, ids="+".join)
def test_estimators_are_optunas(names: list[str], num: int) -> None:
    space = {f"{index}-{name}": KINDS[name] for index, name in enumerate(names)}
    draw = np.random.RandomState(len(names))
    past = {name: np.array([_drawn(kind, draw) for _ in range(num)], dtype=float) for name, kind in space.items()}
    options = TPESampler()._parzen_estimator_parameters
    ours, theirs = ParzenEstimator(past, space, options), _ParzenEstimator(past, space, options)
    samples = theirs.sample(np.random.RandomState(7), 500)
    own = ours.sample(np.random.RandomState(7), 500)
    assert {name: pytest.approx(values, rel=1e-8) for name, values in samples.items()} == own
    assert ours.log_pdf(samples) == pytest.approx(theirs.log_pdf(samples), rel=1e-9, abs=1e-9)


def _drawn(kind: BaseDistribution, draw: np.random.RandomState) -> Any:
    if isinstance(kind, CategoricalDistribution):
        return draw.randint(len(kind.choices))
    assert isinstance(kind, FloatDistribution | IntDistribution)
    if kind.log:
        value = np.exp(draw.uniform(np.log(kind.low), np.log(kind.high)))
        return int(value) if isinstance(kind, IntDistribution) else value
    return kind.low + (draw.randint(9) if kind.step else draw.uniform(0.0, 8.0)) * (kind.step or 1)


def test_mass_of_a_tail_is_exact() -> None:
    # References: mpmath, log(erfc(30 / sqrt(2)) / 2 - erfc(31 / sqrt(2)) / 2), and ncdf(1) - ncdf(-1).
    low, high = np.array([30.0, -31.0, -1.0, -np.inf]), np.array([31.0, -30.0, 1.0, np.inf])
    assert log_gauss_mass(low, high) == pytest.approx(
        [-454.32124395634325, -454.32124395634325, -0.38171514630212607, 0.0]
    )
