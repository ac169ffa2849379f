"""What fsck finds: one sentence, and how it is cured or why it is not."""

from dataclasses import dataclass, field
from typing import Any

from optuna.trial import TrialState

from hpsearch.storage.checks.facts import Trial


@dataclass(frozen=True)
class Finding:
    """Something that is not as hpsearch promises, or (`damage` False) merely remarkable.

    `does` says what `cure`, SQL statements, does about it; without a cure, `why_not` says why there is none.
    """

    kind: str
    text: str
    trial: int | None = None  # its number; None: the study, or the database
    trial_id: int | None = None
    state: TrialState | None = None  # of the trial
    cure: tuple[Any, ...] | None = field(default=None, compare=False, repr=False)
    does: str = ""
    why_not: str = ""
    damage: bool = True

    @property
    def sentence(self) -> str:
        """What is wrong, and where."""
        return self.text if self.trial is None else f"trial {self.trial}: {self.text}"


def about(
    trial: Trial,
    kind: str,
    text: str,
    cure: tuple[Any, ...] | None = None,
    does: str = "",
    why_not: str = "",
    damage: bool = True,
) -> Finding:
    """A finding about one trial."""
    return Finding(kind, text, trial.number, trial.trial_id, trial.state, cure, does, why_not, damage)
