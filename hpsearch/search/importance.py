"""Which hyperparameters mattered, by Optuna's PED-ANOVA, and whether there were trials enough to say so."""

import contextlib
import warnings
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

MIN_COMPLETE = 10  # below it the top tenth is a single trial


@dataclass(frozen=True)
class Importances:
    """Shares that sum to 1, the largest first; empty if they cannot be computed."""

    evaluator: str
    num_complete: int
    shares: dict[str, float]

    def sentence(self) -> str:
        """One line for a person."""
        if not self.shares:
            return f"importances: too few completed trials ({self.num_complete}) to tell"
        listed = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        caution = (
            f", a rough guess from {self.num_complete} completed trials" if self.num_complete < MIN_COMPLETE else ""
        )
        return f"importances for reaching the best tenth (PED-ANOVA{caution}): {listed}"


def importances(study: optuna.Study) -> Importances:
    """PED-ANOVA importances of the parameters that all completed trials share (Watanabe et al., IJCAI 2023)."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    shares: dict[str, float] = {}
    if len(complete) > 1 and len({trial.value for trial in complete}) > 1:
        with contextlib.suppress(ValueError, RuntimeError), warnings.catch_warnings():
            # Suppressed: no parameter that all of them share, or no spread. Ignored: too few trials, which we say.
            warnings.simplefilter("ignore", UserWarning)
            shares = optuna.importance.get_param_importances(study)
    return Importances("PED-ANOVA", len(complete), dict(shares))
