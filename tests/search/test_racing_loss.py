"""The race of a study whose objective is a loss: the lowest leads."""

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.racing import standing, values
from hpsearch.spec import parse
from tests.studies import CANDIDATES

LOSSES = (0.5, 0.3, 2.0)  # of the three candidates
SPEC = parse(CANDIDATES.replace("[pruner]", '[objective]\nmetric = "validation_loss"\n[pruner]'), "three.toml")


@pytest.fixture
def trials() -> list[FrozenTrial]:
    """All of them; the seeds differ a little, and not for all candidates alike."""
    made = []
    for number in range(15):
        candidate, block = SPEC.place(number)
        value = LOSSES[candidate] + 0.01 * ((block * (candidate + 2)) % 5)
        trial = optuna.trial.create_trial(state=TrialState.COMPLETE, value=value)
        trial.number = number
        made.append(trial)
    return made


def test_of_losses_the_lower_is_the_better(trials: list[FrozenTrial]) -> None:
    assert SPEC.objective.direction == "minimize"
    table = values(SPEC, trials)
    assert [row[0] for row in table] == [-loss for loss in LOSSES]
    assert [value for row in table for value in row if value is None or value >= 0] == []
    found = standing(SPEC, trials)
    assert found.leader == 1
    assert set(found.out) == {0, 2}
