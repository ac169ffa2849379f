"""Pruners: rungs are a function of the values reported there, in whatever order."""

import copy
import math
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search import PRUNERS
from hpsearch.search.pruners import RungPruner, make_pruner
from hpsearch.spec import parse
from tests.studies import TINY


def lock_step(values: list[float], direction: str = "maximize") -> list[int]:
    """All trials report epoch 1 first and are decided afterwards; the numbers of those that go on."""
    study = optuna.create_study(direction=direction)
    pruner = RungPruner(epochs=9, min_epochs=1, factor=3)
    trials = [study.ask() for _ in values]
    for trial, value in zip(trials, values, strict=True):
        trial.report(value, 1)
    return [trial.number for trial in study.trials if not pruner.prune(study, trial)]


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_of_64_in_lock_step_a_third_goes_on(order: str) -> None:
    values = [index / 64 for index in range(64)]
    if order == "descending":
        values.reverse()
    elif order == "shuffled":
        random.Random(0).shuffle(values)
    survivors = lock_step(values)
    assert len(survivors) == 22  # ceil(64 / 3)
    assert {values[number] for number in survivors} == set(sorted(values)[-22:])


def test_direction_and_values_that_are_no_numbers() -> None:
    assert lock_step([0.1, 0.2, 0.3], "minimize") == [0]
    assert lock_step([0.1, math.nan, 0.3]) == [2]
    assert lock_step([math.nan]) == []


def test_the_first_to_arrive_goes_on() -> None:
    assert lock_step([0.1]) == [0]


def test_rungs_and_only_rungs_decide() -> None:
    study = optuna.create_study(direction="maximize")
    pruner = RungPruner(epochs=20, min_epochs=2, factor=3)
    assert sorted(pruner.rungs) == [2, 6]  # not 18: who has come so far trains to the end
    good, bad = study.ask(), study.ask()
    for epoch in range(1, 21):
        good.report(1.0, epoch)
        bad.report(0.0, epoch)
        assert pruner.prune(study, study.trials[1]) == (epoch in (2, 6))
        assert not pruner.prune(study, study.trials[0])


def test_trials_of_other_lengths_are_no_measure() -> None:
    """A short schedule has cooled down at an epoch at which a long one has hardly begun."""
    study = optuna.create_study(direction="maximize")
    pruner = RungPruner(epochs=24, min_epochs=1, factor=3)
    for number in range(12):
        length = 3 if number % 2 else 24
        study.enqueue_trial({"epochs": length})
        trial = study.ask({"epochs": CategoricalDistribution([3, 24])})
        for epoch in (1, 2, 3):
            trial.report(number / 100 + (0.5 if length == 3 else 0.0), epoch)
    at_first = [after(trial, 1) for trial in study.trials]
    assert pruner.failing(study, at_first) == {0, 2, 4, 6, 1, 3, 5, 7}  # a third of each goes on
    at_second = [after(trial, 3) for trial in study.trials]
    assert pruner.failing(study, at_second) == {0, 2, 4, 6}  # whoever has three epochs has ended there


def after(trial: FrozenTrial, last: int) -> FrozenTrial:
    """As it was after that epoch."""
    earlier = copy.copy(trial)
    earlier.intermediate_values = {epoch: v for epoch, v in trial.intermediate_values.items() if epoch <= last}
    return earlier


def test_ended_trials_count() -> None:
    study = optuna.create_study(direction="maximize")
    for value in (0.9, 0.8, 0.7):
        trial = study.ask()
        trial.report(value, 1)
        study.tell(trial, state=TrialState.PRUNED)
    late = study.ask()
    late.report(0.75, 1)
    assert RungPruner(9, 1, 3).prune(study, study.trials[-1])  # third of four; two go on
    late.report(0.85, 2)
    assert not RungPruner(9, 2, 3).prune(study, study.trials[-1])  # the only one at epoch 2


@pytest.mark.parametrize("name", sorted(PRUNERS.keys() - {"race"}))  # between candidates: see test_racing.py
def test_every_pruner_of_the_table(name: str) -> None:
    spec = parse(TINY.replace('name = "asha"', f'name = "{name}"'), "tiny.toml")
    pruner = make_pruner(spec)
    study = optuna.create_study(study_name="s", direction="maximize", pruner=pruner)
    ends = []
    for index in range(12):
        trial = study.ask()
        for epoch in range(1, spec.max_epochs + 1):
            trial.report(1.0 - index / 12, epoch)
            if pruner.prune(study, study.trials[-1]):
                ends.append(epoch)
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, 1.0 - index / 12)
    assert bool(ends) == (name != "none")  # ever worse trials: something must be stopped
    assert study.best_trial.number == 0


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
@pytest.mark.parametrize("min_epochs", [1, 2, 3])
def test_no_trial_ends_before_the_epochs_that_every_one_may_train(name: str, min_epochs: int) -> None:
    text = TINY.replace('name = "asha"', f'name = "{name}"\nmin_epochs = {min_epochs}')
    pruner = make_pruner(parse(text.replace("epochs = 3", "epochs = 8", 1), "tiny.toml"))
    study = optuna.create_study(study_name="s", direction="maximize")
    for _ in range(8):
        good = study.ask()
        for epoch in range(1, 9):
            good.report(1.0, epoch)
        study.tell(good, 1.0)
    bad, ended = study.ask(), None
    for epoch in range(1, 9):
        bad.report(0.0, epoch)
        if ended is None and pruner.prune(study, study.trials[-1]):
            ended = epoch
    assert ended == min_epochs if name != "hyperband" else ended is None or ended >= min_epochs
