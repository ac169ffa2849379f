"""One trial, from its lease to its end. With `worker.py` the place where the search and the training half meet."""

import contextlib
import hashlib
import json
import math
import time
import traceback
from collections.abc import Generator
from dataclasses import asdict, dataclass

from optuna.trial import TrialState
from torch import nn

from hpsearch.artifacts import Checkpoints
from hpsearch.errors import LeaseLost
from hpsearch.events import EpochDone, Event, TrialEnded, TrialResumed, TrialStarted, WorkerWarned
from hpsearch.interrupt import Interrupted, Interruption
from hpsearch.models.build import Constructor, build_model
from hpsearch.recipe import Recipe, fold
from hpsearch.search.draft import draft
from hpsearch.search.samplers import make_sampler, suggest
from hpsearch.settings import Settings
from hpsearch.storage import ledger
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import REASON_KEY
from hpsearch.storage.open import FAULTS, Database
from hpsearch.storage.studies import RECIPE_KEY, TRACEBACK_KEY, LoadedStudy, progress
from hpsearch.train.checkpoint import State, from_bytes, to_bytes
from hpsearch.train.program import DeviceData, Program

EPOCHS_PER_LEASE = 10  # a lease outlasts so many epochs as long as the last one, if the setting is shorter


@dataclass(frozen=True)
class Bench:
    """What the trials of one study share in this process."""

    database: Database
    study: LoadedStudy
    data: DeviceData
    constructor: Constructor
    interruption: Interruption
    fingerprint: str  # of the data and its split
    settings: Settings
    checkpoints: Checkpoints

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


def run_trial(bench: Bench, lease: Lease) -> Generator[Event, None, Outcome]:
    """Train one trial to its end, whatever that is, and record it."""
    number = bench.database.storage.get_trial_number_from_id(lease.trial_id)
    try:
        outcome = yield from _train_or_fail(bench, lease, number)
    except LeaseLost:
        outcome = Outcome(None, 0, reason="another worker has it now, or it was ended")
    now = progress(bench.database, bench.study)
    yield TrialEnded(
        trial=number,
        state=outcome.state.name if outcome.state else "LOST",
        epoch=outcome.epoch,
        value=outcome.value,
        reason=outcome.reason,
        finished=now.finished,
        best_number=now.best_number,
        best_value=now.best_value,
    )
    return outcome


def _train_or_fail(bench: Bench, lease: Lease, number: int) -> Generator[Event, None, Outcome]:
    try:
        recipe = _choose_recipe(bench, lease, number)
        return (yield from Training(bench, lease, number, recipe).run())
    except (LeaseLost, *FAULTS):
        raise  # not the trial's fault
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        outcome = Outcome(TrialState.FAIL, 0, reason=reason, traceback=traceback.format_exc())
        _finish(bench, lease, outcome)
        return outcome


def _finish(bench: Bench, lease: Lease, outcome: Outcome) -> None:
    assert outcome.state is not None
    notes = {REASON_KEY: outcome.reason, TRACEBACK_KEY: outcome.traceback}
    given = {key: text for key, text in notes.items() if text}
    value = outcome.value if outcome.value is not None and math.isfinite(outcome.value) else None
    ledger.finish(bench.database, lease, outcome.state, value, given)


def _choose_recipe(bench: Bench, lease: Lease, number: int) -> Recipe:
    """What the trial trains: what is recorded already, or what the sampler says, recorded now."""
    study = bench.study
    study.optuna_study.sampler = make_sampler(study.spec, number)
    trial, drafted = draft(study.optuna_study, lease.trial_id)
    params = suggest(trial, study.spec)
    seeds = study.spec.seeds
    seed = seeds[number % len(seeds)] if seeds else fold(study.spec.seed, number)
    recipe = study.spec.recipe(params, seed, stream_seed=fold(study.spec.seed, seed, 1))
    attributes = {RECIPE_KEY: recipe.as_dict()}
    ledger.set_up(bench.database, lease, drafted.params, attributes, drafted.system_attrs)
    return recipe


class Training:
    """One trial being trained: its program, its checkpoints, and what is recorded of it."""

    def __init__(self, bench: Bench, lease: Lease, number: int, recipe: Recipe) -> None:
        self.bench, self.lease, self.number, self.recipe = bench, lease, number, recipe
        self.program = Program(recipe, bench.model(recipe), bench.data)
        # Two trials share a checkpoint only if they train the same thing on the same data.
        identity = json.dumps([recipe.as_dict(), bench.fingerprint, bench.study.created], sort_keys=True)
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
            return self._give_back()
        except FAULTS:
            if self.boundary is not None:
                self._save(self.boundary)  # the trial goes on from here once the storage is back
            raise
        except GeneratorExit:  # nobody reads the events any more
            with contextlib.suppress(LeaseLost):
                self._give_back()
            raise
        _finish(self.bench, self.lease, outcome)
        self.bench.checkpoints.forget(self.key)
        return outcome

    def _train(self) -> Generator[Event, None, Outcome]:
        metric = self.bench.study.spec.objective.metric
        value = self._last_value()
        while self.program.epoch < self.recipe.epochs:
            self.boundary = self.program.state()
            started = time.monotonic()
            with self.bench.interruption.allowed():
                result = self.program.run_epoch()
            value = math.nan if result.diverged else getattr(result, metric)
            lease_seconds = max(self.bench.settings.lease_seconds, EPOCHS_PER_LEASE * (time.monotonic() - started))
            ledger.report(self.bench.database, self.lease, result.epoch, value, asdict(result), lease_seconds)
            yield EpochDone(self.number, result.epoch, self.recipe.epochs, value, result.images_per_second)
            if result.diverged:
                reason = f"diverged in epoch {result.epoch}: the training loss or a gradient is not a finite number"
                return Outcome(TrialState.PRUNED, result.epoch, reason=reason)
            if result.epoch < self.recipe.epochs and self._fails_rung():
                reason = f"pruned by {self.bench.study.spec.pruner.name}"
                return Outcome(TrialState.PRUNED, result.epoch, value, reason)
            if warning := self._save_when_due():
                yield warning
        return Outcome(TrialState.COMPLETE, self.program.epoch, value)

    def _resume(self) -> None:
        """Go on from the newest checkpoint that is not ahead of the record, and cut the record back to it."""
        recorded = self._recorded_epochs()
        for _, content in self.bench.checkpoints.load(self.key, recorded):
            with contextlib.suppress(ValueError):
                self.program.restore(from_bytes(content))
                break
        if recorded > self.program.epoch:
            ledger.cut_back(self.bench.database, self.lease, self.program.epoch)

    def _recorded_epochs(self) -> int:
        return len(ledger.epochs(self.bench.database, self.lease.trial_id))

    def _last_value(self) -> float:
        values = self.bench.database.storage.get_trial(self.lease.trial_id).intermediate_values
        return values.get(self.program.epoch, math.nan)

    def _fails_rung(self) -> bool:
        study = self.bench.study.optuna_study
        return study.pruner.prune(study, self.bench.database.storage.get_trial(self.lease.trial_id))

    def _save_when_due(self) -> Event | None:
        if time.monotonic() - self.saved_at < self.bench.settings.checkpoint_seconds:
            return None
        self.saved_at = time.monotonic()
        return self._save(self.program.state())

    def _save(self, state: State) -> Event | None:
        try:
            self.bench.checkpoints.save(self.key, int(state["epoch"]), to_bytes(state))
        except OSError as error:
            # Training does not depend on it: without a checkpoint a killed trial begins again.
            advice = f"make room in {self.bench.checkpoints.folder}"
            return WorkerWarned(f"trial {self.number} goes on without a checkpoint: {error}; {advice}")
        return None

    def _give_back(self) -> Outcome:
        """Put the trial back into the queue, to go on after the last whole epoch."""
        epoch = 0
        if self.boundary is not None:
            self._save(self.boundary)
            epoch = int(self.boundary["epoch"])
            ledger.release(self.bench.database, self.lease, epoch)
        else:
            ledger.release(self.bench.database, self.lease, self.recipe.epochs)
        return Outcome(TrialState.WAITING, epoch, reason="interrupted: it goes back to the queue")
