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


def test_of_equal_values_no_more_go_on() -> None:
    assert len(lock_step([0.01] * 64)) == 22
    at_chance = lock_step([0.01] * 45 + [0.02 + index / 1000 for index in range(19)])
    assert len(at_chance) == 22
    assert at_chance[3:] == list(range(45, 64))


def test_equal_values_that_come_one_by_one_pass_as_often() -> None:
    study = optuna.create_study(direction="maximize")
    pruner = RungPruner(epochs=9, min_epochs=1, factor=3)
    passed = 0
    for _ in range(300):
        study.ask().report(0.01, 1)
        passed += not pruner.prune(study, study.trials[-1])
    assert 80 < passed < 120


def test_hyperband_has_brackets_of_its_own() -> None:
    """R = 81 and factor 3, as in table 1 of Li et al.; the last bracket trains to the end."""
    text = TINY.replace('name = "asha"', 'name = "hyperband"').replace("epochs = 3", "epochs = 81", 1)
    pruner = make_pruner(parse(text, "tiny.toml"))
    assert isinstance(pruner, RungPruner)
    study, rungs = optuna.create_study(direction="maximize"), [1, 3, 9, 27]
    trials = [study.ask() for _ in range(5 * 143)]
    brackets = [pruner.bracket(trial.number) for trial in trials]
    assert pruner._shares == [81, 34, 15, 8, 5]  # of 143
    for bracket, share in enumerate(pruner._shares):
        assert brackets.count(bracket) / len(trials) == pytest.approx(share / 143, abs=0.03)
    for trial, bracket in zip(trials, brackets, strict=True):
        for epoch in range(1, 82):
            trial.report(trial.number / 1000 + bracket, epoch)  # each bracket is better than all of the one before
    known = study.get_trials(deepcopy=False)
    for bracket in range(5):
        own = [trial for trial in known if pruner.bracket(trial.number) == bracket]
        stopped = {epoch: pruner.failing(study, [after(trial, epoch) for trial in own]) for epoch in range(1, 82)}
        assert [epoch for epoch, numbers in stopped.items() if numbers] == rungs[bracket:]
        for epoch in rungs[bracket:]:
            best = sorted(trial.number for trial in own)[-math.ceil(len(own) / 3) :]
            assert {trial.number for trial in own} - stopped[epoch] == set(best)


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
