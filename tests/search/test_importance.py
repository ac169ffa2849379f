"""Importances: what is recorded does not keep them from being told."""

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from hpsearch.search.importance import bootstrap

ABOVE = 0.1 + 2 * 0.1


def test_values_that_rounding_moved_beyond_their_range() -> None:
    """As grids recorded them: 0.1 + 2 * 0.1, where the range ends at 0.3."""
    kind, study = FloatDistribution(0.1, 0.3, step=0.1), optuna.create_study()
    for index in range(40):
        params = {"dropout": [0.1, 0.2, 0.3][index % 3]}
        study.add_trial(create_trial(params=params, distributions={"dropout": kind}, value=index % 7))
    recorded = study.get_trials(deepcopy=False)
    for trial in recorded[2::3]:
        trial.params = {"dropout": ABOVE}
    assert not kind._contains(ABOVE)
    assert bootstrap(study, num_samples=3).shares.keys() == {"dropout"}
    assert {trial.params["dropout"] for trial in recorded} == {0.1, 0.2, ABOVE}  # the record stays as it is
