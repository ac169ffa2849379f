"""One trial in a lane: how it begins, what an epoch means for it, how it ends, and what is kept of it.

With `training.py` and `worker.py` the place where the search and the training half meet.
"""

import contextlib
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from optuna.trial import TrialState
from torch import nn

from hpsearch import weights
from hpsearch.artifacts import Checkpoints, key_of, study_prefix, trial_key
from hpsearch.confusion import MATRIX_FILE, confusion, pictures
from hpsearch.errors import HpsearchError
from hpsearch.events import EpochDone, WorkerWarned
from hpsearch.interrupt import Interruption
from hpsearch.models.build import Constructor, build_model
from hpsearch.models.takeover import Start, take_over
from hpsearch.pictures import Pictures
from hpsearch.recipe import Recipe
from hpsearch.search.session import Assignment, Session
from hpsearch.settings import Settings
from hpsearch.storage.events import DIVERGED, FAILED, INFEASIBLE, Happening
from hpsearch.storage.ledger import REASON_KEY, TRACEBACK_KEY, End, Report
from hpsearch.storage.studies import LoadedStudy
from hpsearch.train import freezing
from hpsearch.train.checkpoint import State, from_bytes, to_bytes
from hpsearch.train.device_data import DeviceData, let_go, out_of_memory
from hpsearch.train.metrics import predictions
from hpsearch.train.program import EpochResult

MEMORY_CONSTRAINT = "constraints:memory"  # Optuna's own key for constraint "memory": above 0 is infeasible
UNREPORTED = "unreported"  # the key of a checkpoint under which epochs stand that the storage could not take
MOST_UNREPORTED = 2  # one that was being recorded, and one that was trained meanwhile


@dataclass(frozen=True)
class Bench:
    """What the trials of one study share in this process."""

    session: Session
    data: DeviceData
    constructor: Constructor
    interruption: Interruption
    fingerprint: str  # of the data and its split
    settings: Settings
    checkpoints: Checkpoints
    weights: Checkpoints
    pictures: Pictures
    classes: tuple[str, ...]
    start: Start | None = None  # the weights of the study's export

    @property
    def study(self) -> LoadedStudy:
        return self.session.study

    def model(self, recipe: Recipe) -> nn.Module:
        """The recipe's model, freshly initialised, or with what it takes over from the study's export."""
        model = build_model(recipe, self.data.input_shape, self.data.num_classes, self.constructor)
        freezing.check(model, recipe)
        if recipe.start == "export" and self.start is not None:
            take_over(model, self.start)
        return model


@dataclass(frozen=True)
class Outcome:
    """How a trial ended here; `state` WAITING means that it was given back, None that somebody else has it now."""

    state: TrialState | None
    epoch: int
    value: float | None = None
    reason: str = ""
    traceback: str = ""
    kind: str = ""  # of the event that is noted, if any
    infeasible: bool = False
    pictures: Mapping[str, str] = field(default_factory=dict)  # system attributes that lead to them

    @property
    def beaten(self) -> bool:
        """Whether the trial ends because of what others reached."""
        return self.state == TrialState.PRUNED and not self.kind


LOST = Outcome(None, 0, reason="another worker has it now, or it was ended")


class Run:
    """One trial of this worker: its lease, what it trains, and its checkpoints."""

    def __init__(self, bench: Bench, assignment: Assignment) -> None:
        self.bench, self.lease, self.recipe = bench, assignment.lease, assignment.recipe
        self.number = assignment.lease.number
        self.weights_key = key_of(self.recipe.identity(), bench.fingerprint, bench.study.created)
        prefix = study_prefix(bench.study.name, bench.study.created)
        self.key = trial_key(prefix, self.number, [self.recipe.identity(), bench.fingerprint])
        self.epoch = assignment.lease.epoch  # the last one that is trained and recorded
        self.saved_at = time.monotonic()
        self._kept = False  # whether the weights that are kept are those of this run
        self._anew = assignment.lease.token > 1  # whether checkpoints that may be there are of no use

    def last_state(self, model: nn.Module) -> tuple[State | None, list[Report]]:
        """The newest checkpoint that goes with the record (None: there is none, begin anew), for the trial's model.

        One that is ahead, because the storage was away, comes with the reports of the epochs between, and with that of
        the last one recorded, if the storage went before it was decided on.

        Raises:
            OSError: the place of the checkpoints cannot be reached.
            HpsearchError: it holds those of another network, because the model's code has changed.
        """
        if self.lease.token == 1:  # nobody had it before
            return None, []
        recorded, strange = self.lease.epoch, ""
        for epoch, content in self.bench.checkpoints.load(self.key, recorded + MOST_UNREPORTED):
            with contextlib.suppress(ValueError):
                state: dict[str, Any] = {**from_bytes(content)}
                kept = [EpochResult(**fields) for fields in state.pop(UNREPORTED, [])]
                ahead = [result for result in kept if result.epoch > recorded]
                whole = [result.epoch for result in ahead] == list(range(recorded + 1, epoch + 1))
                if whole and not (strange := _strange(state, model)):
                    self._anew = False
                    return state, [self.report(result, 0.0) for result in kept if result.epoch >= recorded]
        if strange:
            raise HpsearchError(f"they are of another network than the code makes now ({strange})")
        return None, []

    def report(self, result: EpochResult, seconds: float) -> Report:
        """What the ledger records of an epoch."""
        value = math.nan if result.diverged else getattr(result, self.bench.study.spec.objective.metric)
        return Report(self.lease, result.epoch, value, asdict(result), seconds)

    def told(self, result: EpochResult) -> EpochDone:
        """What is said about an epoch that has been recorded."""
        value = self.report(result, 0.0).value
        return EpochDone(self.number, result.epoch, self.recipe.epochs, value, result.images_per_second)

    def decides(self, result: EpochResult) -> bool:
        """Whether the epoch may be the trial's last."""
        return result.diverged or result.epoch >= self.recipe.epochs or self.bench.session.decides(result.epoch)

    def may_end(self, epoch: int) -> bool:
        """Whether the trial is likely to end at this epoch: its last one, or a rung."""
        return epoch >= self.recipe.epochs or self.bench.session.is_rung(epoch)

    def outcome(self, result: EpochResult, pruned: bool) -> Outcome | None:
        """What the epoch means: how the trial ends, or None if it goes on."""
        value = getattr(result, self.bench.study.spec.objective.metric)
        if result.diverged or (result.epoch >= self.recipe.epochs and not math.isfinite(value)):
            reason = f"diverged in epoch {result.epoch}: a loss or a gradient is not a finite number"
            return Outcome(TrialState.PRUNED, result.epoch, reason=reason, kind=DIVERGED)
        if result.epoch >= self.recipe.epochs:
            return Outcome(TrialState.COMPLETE, result.epoch, value)
        return Outcome(TrialState.PRUNED, result.epoch, value, self._pruned) if pruned else None

    def beaten(self, rows: Sequence[Mapping[str, Any]]) -> Outcome:
        """How a trial ends that need not be trained any more, with the value of the last of its recorded epochs."""
        outcome = self.outcome(recorded(rows[-1]), pruned=True) if rows else None
        return outcome or Outcome(TrialState.PRUNED, 0, reason=self._pruned)

    @property
    def _pruned(self) -> str:
        return f"pruned by {self.bench.study.spec.pruner.name}"

    def end(self, outcome: Outcome) -> End:
        """What the ledger records of the end."""
        assert outcome.state is not None
        notes = {REASON_KEY: outcome.reason, TRACEBACK_KEY: outcome.traceback}
        given = {key: text for key, text in notes.items() if text}
        value = outcome.value if outcome.value is not None and math.isfinite(outcome.value) else None
        event = Happening(outcome.kind, outcome.reason) if outcome.kind else None
        constraints: dict[str, object] = {MEMORY_CONSTRAINT: 1.0} if outcome.infeasible else {}
        return End(self.lease, outcome.state, value, given, {**constraints, **outcome.pictures}, event)

    def broken(self, error: Exception) -> Outcome:
        """How a trial ends whose network, or whose training, raised an exception."""
        if not out_of_memory(error):
            reason = f"{type(error).__name__}: {one_line(error)}"
            trace = "".join(traceback.format_exception(error))
            return Outcome(TrialState.FAIL, self.epoch, reason=reason, traceback=trace, kind=FAILED)
        reason = f"out of memory with batch_size {self.recipe.batch_size} and hidden_width {self.recipe.hidden_width}"
        return Outcome(TrialState.PRUNED, self.epoch, reason=reason, kind=INFEASIBLE, infeasible=True)

    def pictures(self, state: State) -> dict[str, str]:
        """What the trained network mistakes for what, kept as files; the system attributes that lead to them.

        The result counts without them: on a full disk, or without the memory for one more network.
        """
        try:
            return self._pictures(state)
        except Exception as error:
            if not isinstance(error, OSError) and not out_of_memory(error):
                raise
            let_go(error, self.bench.data.device)
            return {}

    def _pictures(self, state: State) -> dict[str, str]:
        model = self.bench.model(self.recipe)
        own = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        model.load_state_dict({name: torch.as_tensor(value) for name, value in own.items()})
        predicted = predictions(model.to(self.bench.data.device), self.bench.data).cpu().numpy()
        labels = self.bench.data.validation_labels.cpu().numpy()
        found = confusion(self.bench.classes, labels, predicted)
        images = self.bench.data.validation_images.cpu().numpy()
        files = {MATRIX_FILE: found.to_json(), **pictures(found, labels, predicted, images)}
        return dict(self.bench.pictures.save(name, content) for name, content in files.items())

    def due(self, share: float = 1.0) -> bool:
        """Whether it is time for a checkpoint; with a `share`, whether so much of that time has passed."""
        return time.monotonic() - self.saved_at >= share * self.bench.settings.checkpoint_seconds

    def save(self, state: State, unreported: Sequence[EpochResult] = ()) -> WorkerWarned | None:
        """Keep a checkpoint; a warning if that was not possible.

        It must be of the last epoch recorded, or of the last one `unreported`: with others it would leave a gap.
        """
        if int(state["epoch"]) != self.epoch + len(unreported):
            return None
        self.saved_at = time.monotonic()
        ahead: dict[str, Any] = {UNREPORTED: [asdict(result) for result in unreported]} if unreported else {}
        if self._anew:
            self.forget()
            self._anew = False
        try:
            self.bench.checkpoints.save(self.key, int(state["epoch"]), to_bytes({**state, **ahead}))
        except OSError as error:
            # Training does not depend on it: without a checkpoint a killed trial begins again.
            advice = f"see to {self.bench.checkpoints.place}"
            return WorkerWarned(f"trial {self.number} goes on without a checkpoint: {error}; {advice}")
        return None

    def keep_weights(self, outcome: Outcome, state: State | None, *, mine: bool = False) -> None:
        """Keep the weights of what was trained over seeds: final tests and exports start from them.

        Before the end is recorded, as nobody trains the trial after that; then others may have it and have kept theirs,
        which count until it is known that the end is `mine`.
        """
        if state is None or outcome.state != TrialState.COMPLETE or self.bench.study.spec.space:
            return
        place, key = self.bench.weights, self.weights_key
        with contextlib.suppress(OSError, HpsearchError):  # without them the network trains again
            if not self._kept and (mine or weights.kept(place, key) is None):
                place.forget(key)
                weights.keep(place, key, state)
                self._kept = True

    def forget(self) -> None:
        """Delete the checkpoints of a trial that has ended."""
        self.bench.checkpoints.forget(self.key)


def recorded(row: Mapping[str, Any]) -> EpochResult:
    """An epoch as the storage has it, where None is what was no finite number, or is lost."""
    numbers: dict[str, Any] = {name: math.nan if value is None else value for name, value in row.items()}
    # What diverged was not validated; of an epoch that `fsck --repair` restored the objective alone is known.
    diverged = math.isnan(numbers["validation_loss"]) and math.isnan(numbers["validation_accuracy"])
    return EpochResult(**numbers, diverged=diverged)


def one_line(error: Exception) -> str:
    """An exception's message in one line of limited length."""
    return " ".join(str(error).split())[:500]


def _strange(state: State, model: nn.Module) -> str:
    """Parameters in which the state's network differs from the model, three at most."""
    ours = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
    theirs = {name: torch.as_tensor(value).shape for name, value in state.items() if name.startswith("model.")}
    return ", ".join(sorted({name.removeprefix("model.") for name, _ in ours.items() ^ theirs.items()})[:3])
