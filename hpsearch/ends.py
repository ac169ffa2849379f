"""Ends: trials of a worker that have ended, from the decision until that is recorded and told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from optuna.trial import TrialState

from hpsearch.events import LOST_STATE, TrialEnded
from hpsearch.storage.budget import Plan
from hpsearch.storage.ledger import End
from hpsearch.storage.studies import Standing
from hpsearch.train.checkpoint import State
from hpsearch.trial import LOST, Outcome, Run


@dataclass(frozen=True)
class Leaving:
    """A trial that has no lane any more: how it ended, and its last state on the CPU.

    There is none of a trial that others have beaten: if its end is never recorded, whoever takes it decides again.
    """

    run: Run
    outcome: Outcome
    state: State | None


class Ends:
    """`leaving` are trials, by id, whose ends are not known to be recorded; `done` counts the others.

    `failures_in_a_row` are those that ended by an exception, the last one with `last_failure`; `standing` is how far
    the study was when the last ends were recorded.
    """

    def __init__(self) -> None:
        self.leaving: dict[int, Leaving] = {}
        self.done = self.failures_in_a_row = 0
        self.last_failure = ""
        self.standing: Standing | None = None

    def add(self, run: Run, outcome: Outcome, state: State | None) -> None:
        """A trial leaves its lane."""
        copies = {name: one.cpu() if isinstance(one, torch.Tensor) else one for name, one in (state or {}).items()}
        run.keep_weights(outcome, copies or None)
        self.leaving[run.lease.trial_id] = Leaving(run, outcome, copies or None)

    @property
    def fails(self) -> bool:
        """Whether one of those that leave ended by an exception."""
        return any(one.outcome.traceback for one in self.leaving.values())

    def to_record(self) -> list[End]:
        """What the ledger is to record."""
        return [one.run.end(one.outcome) for one in self.leaving.values()]

    def recorded(self, ends: Sequence[End], held: set[int], now: Standing | None) -> list[TrialEnded]:
        """Take note that these ends are recorded, those of the trials `held`; what is said about them."""
        self.standing = now or self.standing
        left = [one for end in ends if (one := self.leaving.pop(end.lease.trial_id, None)) is not None]
        for one in left:
            if one.run.lease.trial_id in held:
                one.run.keep_weights(one.outcome, one.state, mine=True)
                one.run.forget()
        return [self.told(one.run, one.outcome if one.run.lease.trial_id in held else LOST, now) for one in left]

    def told(self, run: Run, outcome: Outcome, now: Standing | None) -> TrialEnded:
        """Count a trial, and say how it ended."""
        self.done += outcome.state not in (TrialState.WAITING, None)
        self.failures_in_a_row = self.failures_in_a_row + 1 if outcome.traceback else 0
        self.last_failure = outcome.reason if outcome.traceback else self.last_failure
        return TrialEnded(
            trial=run.number,
            state=outcome.state.name if outcome.state else LOST_STATE,
            epoch=outcome.epoch,
            value=outcome.value,
            reason=outcome.reason,
            finished=now.finished if now else 0,
            max_trials=now.max_trials if now else 0,
            best_number=now.best_number if now else None,
            best_value=now.best_value if now else None,
        )


def leading(ended: Mapping[int, Outcome], plan: Plan, now: Standing) -> int | None:
    """The best of the completed trials, if it is better than what was known."""
    sign = 1.0 if plan.maximize else -1.0
    complete = {key: one.value for key, one in ended.items() if one.state == TrialState.COMPLETE}
    values = {key: sign * value for key, value in complete.items() if value is not None}
    best = max(values, key=lambda key: values[key], default=None)
    return best if best is None or now.best_value is None or values[best] > sign * now.best_value else None
