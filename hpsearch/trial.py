"""One trial, from its lease to its end. With `worker.py` the place where the search and the training half meet."""

import contextlib
import hashlib
import json
import math
import time
import traceback
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field

import torch
from optuna.trial import TrialState
from torch import nn

from hpsearch.artifacts import Checkpoints
from hpsearch.confusion import MATRIX_FILE, confusion, pictures
from hpsearch.errors import HpsearchError, LeaseLost
from hpsearch.events import EpochDone, Event, TrialEnded, TrialResumed, TrialStarted, WorkerWarned
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.models.build import Constructor, build_model
from hpsearch.pictures import Pictures
from hpsearch.recipe import Recipe
from hpsearch.search.session import Assignment, Session
from hpsearch.settings import Settings
from hpsearch.storage import budget, ledger
from hpsearch.storage.events import DIVERGED, FAILED, INFEASIBLE, Happening
from hpsearch.storage.ledger import REASON_KEY, TRACEBACK_KEY, End, Report
from hpsearch.storage.open import FAULTS
from hpsearch.storage.studies import LoadedStudy, progress
from hpsearch.train.checkpoint import State, from_bytes, to_bytes
from hpsearch.train.program import DeviceData, Program

EPOCHS_PER_LEASE = 10  # a lease outlasts so many epochs as long as the last one, if the setting is shorter
MEMORY_CONSTRAINT = "constraints:memory"  # Optuna's own key for constraint "memory": above 0 is infeasible


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
    classes: tuple[str, ...]

    @property
    def study(self) -> LoadedStudy:
        return self.session.study

    def model(self, recipe: Recipe) -> nn.Module:
        """The recipe's model, freshly initialised."""
        return build_model(recipe, self.data.input_shape, self.data.num_classes, self.constructor)


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


def run_trial(bench: Bench, assignment: Assignment) -> Generator[Event, None, Outcome]:
    """Train one trial to its end, whatever that is, and record it."""
    try:
        outcome = yield from _train_or_fail(bench, assignment)
    except LeaseLost:
        outcome = Outcome(None, 0, reason="another worker has it now, or it was ended")
    now = progress(bench.session.database, bench.study)
    yield TrialEnded(
        trial=assignment.lease.number,
        state=outcome.state.name if outcome.state else "LOST",
        epoch=outcome.epoch,
        value=outcome.value,
        reason=outcome.reason,
        finished=now.finished,
        best_number=now.best_number,
        best_value=now.best_value,
    )
    return outcome


def _train_or_fail(bench: Bench, assignment: Assignment) -> Generator[Event, None, Outcome]:
    recipe = assignment.recipe
    try:
        return (yield from Training(bench, assignment).run())
    except (LeaseLost, *FAULTS):
        raise  # not the trial's fault
    except torch.AcceleratorError as error:
        # The process cannot use the device any more; the lease runs out, and the next owner counts a crash.
        raise HpsearchError(f"trial {assignment.lease.number}: the device failed: {_line(error)}") from error
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            outcome = _failed(error)
        else:
            reason = f"out of memory with batch_size {recipe.batch_size} and hidden_width {recipe.hidden_width}"
            outcome = Outcome(TrialState.PRUNED, 0, reason=reason, kind=INFEASIBLE, infeasible=True)
    except Exception as error:
        outcome = _failed(error)
    _finish(bench, assignment, outcome)
    return outcome


def _failed(error: Exception) -> Outcome:
    reason = f"{type(error).__name__}: {_line(error)}"
    return Outcome(TrialState.FAIL, 0, reason=reason, traceback=traceback.format_exc(), kind=FAILED)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _finish(bench: Bench, assignment: Assignment, outcome: Outcome) -> None:
    assert outcome.state is not None
    notes = {REASON_KEY: outcome.reason, TRACEBACK_KEY: outcome.traceback}
    given = {key: text for key, text in notes.items() if text}
    value = outcome.value if outcome.value is not None and math.isfinite(outcome.value) else None
    event = Happening(outcome.kind, outcome.reason) if outcome.kind else None
    constraints: dict[str, object] = {MEMORY_CONSTRAINT: 1.0} if outcome.infeasible else {}
    system = {**constraints, **outcome.pictures}
    if not bench.session.finish([End(assignment.lease, outcome.state, value, given, system, event)]):
        raise LeaseLost


class Training:
    """One trial being trained: its program, its checkpoints, and what is recorded of it."""

    def __init__(self, bench: Bench, assignment: Assignment) -> None:
        self.bench, self.lease, self.recipe = bench, assignment.lease, assignment.recipe
        self.assignment, self.number = assignment, assignment.lease.number
        self.program = Program(self.recipe, bench.model(self.recipe), bench.data)
        # Two trials share a checkpoint only if they train the same thing on the same data.
        identity = json.dumps([self.recipe.as_dict(), bench.fingerprint, bench.study.created], sort_keys=True)
        self.key = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
        self.saved_at = time.monotonic()
        self.boundary: State | None = None  # the program's state after the last whole epoch

    def run(self) -> Generator[Event, None, Outcome]:
        """Train to the last epoch, to a rung that the trial fails, or to a loss that is no number; record how it ended.

        Raises:
            LeaseLost: the trial belongs to somebody else now.
        """
        try:
            yield TrialStarted(self.number, self.recipe.epochs)
            self._resume()
            if self.program.epoch:
                yield TrialResumed(self.number, self.program.epoch, self.recipe.epochs)
            outcome = yield from self._train()
        except Interrupted:
            return self._give_back("the worker was asked to stop")
        except FAULTS:
            if self.boundary is not None:
                self._save(self.boundary)  # the trial goes on from here once the storage is back
            raise
        except GeneratorExit:  # nobody reads the events any more
            with contextlib.suppress(LeaseLost):
                self._give_back("nobody watched the worker any more")
            raise
        if outcome.state != TrialState.WAITING:
            _finish(self.bench, self.assignment, outcome)
            self.bench.checkpoints.forget(self.key)
        return outcome

    def _train(self) -> Generator[Event, None, Outcome]:
        metric = self.bench.study.spec.objective.metric
        value = self._last_value()
        self.boundary = self.program.state()
        while self.program.epoch < self.recipe.epochs:
            started = time.monotonic()
            with self.bench.interruption.allowed():
                result = self.program.run_epoch()
            seconds = time.monotonic() - started
            value = math.nan if result.diverged else getattr(result, metric)
            report = Report(self.lease, result.epoch, value, asdict(result), seconds)
            lease_seconds = max(self.bench.settings.lease_seconds, EPOCHS_PER_LEASE * seconds)
            verdict = self.bench.session.report([report], lease_seconds, result.images_per_second)
            if verdict.lost:
                raise LeaseLost
            yield EpochDone(self.number, result.epoch, self.recipe.epochs, value, result.images_per_second)
            if result.diverged:
                reason = f"diverged in epoch {result.epoch}: the training loss or a gradient is not a finite number"
                return Outcome(TrialState.PRUNED, result.epoch, reason=reason, kind=DIVERGED)
            if result.epoch < self.recipe.epochs and verdict.pruned:
                reason = f"pruned by {self.bench.study.spec.pruner.name}"
                return Outcome(TrialState.PRUNED, result.epoch, value, reason)
            self.boundary = self.program.state()
            if warning := self._save_when_due(result.epoch):
                yield warning
            if self.bench.session.wanted != budget.RUNNING and result.epoch < self.recipe.epochs:
                return self._give_back(f"the study is {self.bench.session.wanted}")
        return Outcome(TrialState.COMPLETE, self.program.epoch, value, pictures=self._pictures(value))

    def _pictures(self, value: float) -> dict[str, str]:
        """What the trial mistakes for what, if it is the best so far; recorded with its end."""
        best = progress(self.bench.session.database, self.bench.study).best_value
        maximize = self.bench.study.plan.maximize
        if best is not None and not (value > best if maximize else value < best):
            return {}
        predicted, data = self.program.predictions().cpu().numpy(), self.bench.data
        labels, images = data.validation_labels.cpu().numpy(), data.validation_images.cpu().numpy()
        found = confusion(self.bench.classes, labels, predicted)
        files = {MATRIX_FILE: found.to_json(), **pictures(found, labels, predicted, images)}
        place = Pictures(self.bench.settings.home / "artifacts")
        with contextlib.suppress(OSError):  # a full disk: the result counts without them
            return dict(place.save(name, content) for name, content in files.items())
        return {}

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is not ahead of the record, and cut the record back to it."""
        recorded = self.lease.epoch
        if recorded:
            for _, content in self.bench.checkpoints.load(self.key, recorded):
                with contextlib.suppress(ValueError):
                    self.program.restore(from_bytes(content))
                    break
        if recorded > self.program.epoch and not ledger.cut_back(
            self.bench.session.database, self.lease, self.program.epoch
        ):
            raise LeaseLost

    def _last_value(self) -> float:
        if not self.program.epoch:
            return math.nan
        rows = ledger.epochs(self.bench.session.database, self.lease.trial_id)
        found = rows[-1][self.bench.study.spec.objective.metric]
        return math.nan if found is None else float(found)

    def _save_when_due(self, epoch: int) -> Event | None:
        due = time.monotonic() - self.saved_at >= self.bench.settings.checkpoint_seconds
        if not due and not self.bench.session.is_rung(epoch):  # who passes a rung is worth keeping
            return None
        self.saved_at = time.monotonic()
        assert self.boundary is not None
        return self._save(self.boundary)

    def _save(self, state: State) -> Event | None:
        try:
            self.bench.checkpoints.save(self.key, int(state["epoch"]), to_bytes(state))
        except OSError as error:
            # Training does not depend on it: without a checkpoint a killed trial begins again.
            advice = f"make room in {self.bench.checkpoints.place}"
            return WorkerWarned(f"trial {self.number} goes on without a checkpoint: {error}; {advice}")
        return None

    def _give_back(self, reason: str) -> Outcome:
        """Put the trial back into the queue, to go on after the last whole epoch.

        Raises:
            LeaseLost: the trial belongs to somebody else now.
        """
        epoch = self.lease.epoch
        if self.boundary is not None:
            self._save(self.boundary)
            epoch = int(self.boundary["epoch"])
        if not ledger.release(self.bench.session.database, [(self.lease, epoch)], reason):
            raise LeaseLost
        return Outcome(TrialState.WAITING, epoch, reason=f"{reason}: it goes back to the queue")
