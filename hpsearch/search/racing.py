"""The race between the candidates of a study: losers end as soon as what is recorded says so."""

import math
from collections.abc import Iterable, Sequence

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hpsearch.spec import StudySpec
from hpsearch.statistics import Race
from hpsearch.statistics import race as run_race


class RacePruner(BasePruner):
    """Ends trials of candidates that the race has put out: while they train, or before they begin."""

    def __init__(self, spec: StudySpec) -> None:
        self.spec = spec

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial's candidate is out."""
        return bool(self.failing(study, [trial]))

    def failing(self, study: Study, trials: Sequence[FrozenTrial]) -> set[int]:
        """The numbers of those of the study's `trials` whose candidates are out, by one race."""
        out = standing(self.spec, study.get_trials(deepcopy=False)).out
        return {trial.number for trial in trials if self.spec.place(trial.number)[0] in out}


def race(spec: StudySpec) -> BasePruner:
    """Paired t-tests between candidates over the seeds that all of them have (see `hpsearch.statistics.race`)."""
    return RacePruner(spec)


def standing(spec: StudySpec, trials: Iterable[FrozenTrial]) -> Race:
    """The race as of what these trials record."""
    return run_race(values(spec, trials), len(spec.seeds))


def values(spec: StudySpec, trials: Iterable[FrozenTrial]) -> list[list[float | None]]:
    """The objective of every candidate and seed, the higher the better; see `hpsearch.statistics.race`."""
    table: list[list[float | None]] = [[None] * len(spec.seeds) for _ in range(len(spec.candidates) or 1)]
    sign = 1.0 if spec.objective.maximize else -1.0
    for trial in trials:
        candidate, block = spec.place(trial.number)
        if block >= len(spec.seeds):
            continue
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            table[candidate][block] = sign * trial.value
        elif trial.state.is_finished():
            # Diverged, failed, or ended by the race: then it comes after the seeds that put its candidate out.
            table[candidate][block] = math.nan
    return table
