"""TPE in batches suggests what Optuna's own sampler suggests, bit for bit."""

import random
import warnings
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from hpsearch.recipe import fold
from hpsearch.search.asking import suggest
from hpsearch.search.samplers import make_sampler
from hpsearch.spec import StudySpec, parse
from tests.studies import TINY

CONDITIONAL = """
optimizer = ["sgd", "adam"]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
momentum = { low = 0.5, high = 0.9, step = 0.1, when = { optimizer = "sgd" } }
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


def ends(study: optuna.Study, trial: optuna.Trial, draw: random.Random) -> None:
    """End a trial in one of the ways in which trials end."""
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
            trial.report(float("nan") if kind == "infinite" else draw.random(), epoch)
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
                ends(study, running.pop(), draw)
    return tried


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("space", [CONDITIONAL, FLAT], ids=["conditional", "flat"])
def test_suggestions_are_optunas_own(space: str, direction: str) -> None:
    spec = study_of(space)
    ours, theirs = search(spec, make_sampler, direction), search(spec, optunas, direction)
    assert ours == theirs
    assert ours != search(spec, lambda spec, number: make_sampler(spec, number, 1), direction)
