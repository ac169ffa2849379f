"""The trials that a worker has in its lanes: filled, trained epoch by epoch, decided on, replaced.

With `trial.py` and `worker.py` the place where the search and the training half meet.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from optuna.trial import TrialState

from hpsearch.errors import HpsearchError
from hpsearch.events import EpochDone, Event, TrialEnded, TrialResumed, TrialStarted, WorkerWarned
from hpsearch.patience import Patience
from hpsearch.recipe import Recipe
from hpsearch.search.session import Assignment
from hpsearch.storage import budget, ledger
from hpsearch.storage.open import FAULTS
from hpsearch.storage.studies import progress
from hpsearch.train.lanes import Lanes, Result
from hpsearch.train.plan import LaneCount
from hpsearch.train.program import EpochResult
from hpsearch.trial import LOST, Bench, Outcome, Run, one_line

EPOCHS_PER_LEASE = 10  # a lease outlasts so many epochs as long as the last one, if the setting is shorter
ASK_AGAIN_SECONDS = 2.0  # after there was nothing more to take, while some lanes train and others are free

Value = TypeVar("Value")


class Training:
    """All trials of one worker in one study.

    `done` counts those that ended here.
    """

    def __init__(self, bench: Bench, lanes: Lanes, count: LaneCount, patience: Patience) -> None:
        self.bench, self.lanes, self.count, self._patience = bench, lanes, count, patience
        self.running: dict[int, Run] = {}  # by trial id
        self.done = self.failures_in_a_row = 0
        self.last_failure = ""
        self._asked_in_vain = -ASK_AGAIN_SECONDS
        self._num_groups = 1  # of the last round
        self._unreported: dict[int, EpochResult] = {}  # trained, and not recorded yet
        self._refused: set[str] = set()

    def fill(self, at_most: int | None) -> Generator[Event, None, bool]:
        """Take trials for the free lanes, `at_most` so many; whether there were any. Some may end at once."""
        free = self.count.number - len(self.running)
        free = free if at_most is None else min(free, at_most - len(self.running))
        patient = not self.running or time.monotonic() - self._asked_in_vain >= ASK_AGAIN_SECONDS
        if free <= 0 or not patient or self.bench.interruption.requested:
            return False
        hand = yield from self._patiently(lambda: self.bench.session.take(free, self._placed))
        if len(hand.assignments) < free:
            self._asked_in_vain = time.monotonic()
        for assignment in hand.assignments:
            yield from self._start(assignment)
        return bool(hand.assignments)

    def round(self) -> Generator[Event, None, None]:
        """One epoch of every trial; those that end make room.

        Raises:
            StorageAway: the storage stayed away; see `keep`.
            HpsearchError: the device cannot be used any more.
            Interrupted: while an epoch was trained; nothing has been given back yet.
        """
        try:
            groups = list(self.lanes.groups())
        except torch.OutOfMemoryError as error:
            yield from self._make_room(list(self.running), error)
            return
        yield from self._say_refusals()
        self._num_groups = len(groups)
        for group in groups:
            started = time.monotonic()
            try:
                with self.bench.interruption.allowed():
                    results = group.run_epoch()
            except torch.AcceleratorError as error:
                # The process cannot use the device any more; the leases run out, and the next owners count a crash.
                raise HpsearchError(f"the device failed: {one_line(error)}") from error
            except torch.OutOfMemoryError as error:
                yield from self._make_room(list(group.keys), error)
                continue
            yield from self._record(results, time.monotonic() - started)
            if self.bench.session.wanted != budget.RUNNING:
                yield from self.give_back(f"the study is {self.bench.session.wanted}")
                return

    def give_back(self, reason: str, ids: Sequence[int] | None = None) -> Generator[Event, None, None]:
        """Put trials (all, if none are named) back into the queue, to go on after their last whole epoch."""
        runs = [self.running[trial_id] for trial_id in (list(self.running) if ids is None else ids)]
        for run in runs:
            state = self.lanes.state(run.lease.trial_id)
            if run.epoch and state and (warning := run.save(state)):
                yield warning
        given = [(run.lease, run.epoch) for run in runs]
        held: set[int] = set()
        with contextlib.suppress(*FAULTS):  # then the leases run out
            held = ledger.release(self.bench.session.database, given, reason) if given else set()
        sentence = f"{reason}: it goes back to the queue"
        ended = {
            run.lease.trial_id: Outcome(TrialState.WAITING, run.epoch, reason=sentence)
            if run.lease.trial_id in held
            else LOST
            for run in runs
        }
        yield from self._leave(ended)

    def keep(self) -> None:
        """Write checkpoints of all trials, with the epochs that the storage could not take."""
        for key, run in self.running.items():
            if (state := self.lanes.state(key)) is not None:
                run.save(state, self._unreported.get(key))

    def _start(self, assignment: Assignment) -> Generator[Event, None, None]:
        """Put one trial into a lane, at its beginning or at its last checkpoint."""
        run, trial_id = Run(self.bench, assignment), assignment.lease.trial_id
        self.running[trial_id] = run
        yield TrialStarted(run.number, run.recipe.epochs)
        if (yield from self._patiently(lambda: self.bench.session.is_out(run.lease))):
            reason = f"pruned by {self.bench.study.spec.pruner.name}"
            yield from self._finish({trial_id: Outcome(TrialState.PRUNED, run.lease.epoch, reason=reason)})
            return
        state, unreported = None, None
        try:
            state, unreported = run.last_state()
        except OSError as error:
            yield WorkerWarned(f"trial {run.number} begins again, without its checkpoints: {error}")
        try:
            model = self.bench.model(run.recipe)
        except Exception as error:
            yield from self._finish({trial_id: run.broken(error)})
            return
        run.epoch = int(state["epoch"]) if state is not None else 0
        database, kept = self.bench.session.database, True
        if unreported is not None:
            written = yield from self._patiently(
                lambda: ledger.report(database, [unreported], self.bench.settings.lease_seconds)
            )
            kept = bool(written)
        elif run.lease.epoch > run.epoch:
            kept = yield from self._patiently(lambda: ledger.cut_back(database, run.lease, run.epoch))
        if not kept:
            yield from self._leave({trial_id: LOST})
            return
        self.lanes.add(trial_id, run.recipe, model, state)
        if run.epoch:
            yield TrialResumed(run.number, run.epoch, run.recipe.epochs)
        if run.epoch >= run.recipe.epochs:  # it had only not been told
            rows = ledger.epochs(database, trial_id)
            value = rows[-1][self.bench.study.spec.objective.metric]
            yield from self._finish({trial_id: Outcome(TrialState.COMPLETE, run.epoch, value)})

    def _record(self, results: Mapping[int, Result], seconds: float) -> Generator[Event, None, None]:
        """Record an epoch of a group, then decide what it means for each trial."""
        trained = {key: result for key, result in results.items() if isinstance(result, EpochResult)}
        share = seconds / max(1, len(results))
        reports = [self.running[key].report(result, share) for key, result in trained.items()]
        lease_seconds = max(self.bench.settings.lease_seconds, EPOCHS_PER_LEASE * seconds * self._num_groups)
        speed = sum(result.images_per_second for result in trained.values())
        for key, result in trained.items():
            self.running[key].epoch = result.epoch
        self._unreported = trained
        verdict = yield from self._patiently(lambda: self.bench.session.report(reports, lease_seconds, speed))
        self._unreported = {}
        self.count.seen(len(self.running), speed, self._has_room())
        ended: dict[int, Outcome] = {
            key: self.running[key].broken(result) for key, result in results.items() if isinstance(result, Exception)
        }
        for key, result in trained.items():
            run = self.running[key]
            if key in verdict.lost:
                ended[key] = LOST
                continue
            value = next(report.value for report in reports if report.lease is run.lease)
            yield EpochDone(run.number, result.epoch, run.recipe.epochs, value, result.images_per_second)
            outcome = run.outcome(result, key in verdict.pruned)
            if outcome is not None:
                ended[key] = outcome
            elif run.due() and (state := self.lanes.state(key)) and (warning := run.save(state)):
                yield warning
        yield from self._finish(ended)

    def _finish(self, ended: Mapping[int, Outcome]) -> Generator[Event, None, None]:
        """Record how trials ended, all of them in one transaction."""
        ended = yield from self._illustrated(ended)
        ends = [self.running[key].end(outcome) for key, outcome in ended.items() if outcome.state is not None]
        held: set[int] = set()
        if ends:
            held = yield from self._patiently(lambda: self.bench.session.finish(ends))
        known = {key: outcome if key in held else LOST for key, outcome in ended.items()}
        for key, outcome in known.items():
            if outcome.state is not None:
                self.running[key].forget(outcome, self.lanes.state(key))
        yield from self._leave(known)

    def _illustrated(self, ended: Mapping[int, Outcome]) -> Generator[Event, None, dict[int, Outcome]]:
        """The outcomes; a completed one that is the best so far comes with its confusion matrix."""
        complete = {
            key: one for key, one in ended.items() if one.state == TrialState.COMPLETE and one.value is not None
        }
        if not complete:
            return dict(ended)
        now = yield from self._patiently(lambda: progress(self.bench.session.database, self.bench.study))
        sign = 1.0 if self.bench.study.plan.maximize else -1.0
        best = max(complete, key=lambda key: sign * (complete[key].value or 0.0))
        value, state = complete[best].value or 0.0, self.lanes.state(best)
        if state is None or (now.best_value is not None and sign * value <= sign * now.best_value):
            return dict(ended)
        return {**ended, best: replace(complete[best], pictures=self.running[best].pictures(state))}

    def _leave(self, ended: Mapping[int, Outcome]) -> Generator[Event, None, None]:
        """Free the lanes of trials that have ended here, and say how."""
        if not ended:
            return
        try:
            now = progress(self.bench.session.database, self.bench.study)
        except FAULTS:
            now = None  # the worker is leaving because of that
        for key, outcome in ended.items():
            run = self.running.pop(key)
            self.lanes.drop(key)
            self.done += outcome.state not in (TrialState.WAITING, None)
            self.failures_in_a_row = self.failures_in_a_row + 1 if outcome.traceback else 0
            self.last_failure = outcome.reason if outcome.traceback else self.last_failure
            yield TrialEnded(
                trial=run.number,
                state=outcome.state.name if outcome.state else "LOST",
                epoch=outcome.epoch,
                value=outcome.value,
                reason=outcome.reason,
                finished=now.finished if now else 0,
                max_trials=now.max_trials if now else 0,
                best_number=now.best_number if now else None,
                best_value=now.best_value if now else None,
            )

    def _make_room(self, keys: Sequence[int], error: Exception) -> Generator[Event, None, None]:
        """A program did not fit into memory: half of the lanes go on, the other trials go back to the queue."""
        if len(keys) == 1:
            yield from self._finish({keys[0]: self.running[keys[0]].broken(error)})
        else:
            number = self.count.halve()
            yield WorkerWarned(f"out of memory with {len(self.running)} lanes; going on with {number}")
            keep = max(1, min(number, len(keys) // 2))
            yield from self.give_back("there was no memory for it", keys[keep:])
            self.lanes.restart(keys[:keep], lambda key: self.bench.model(self.running[key].recipe))
        if self.bench.data.device.type == "cuda":
            torch.cuda.empty_cache()

    def _patiently(self, call: Callable[[], Value]) -> Generator[Event, None, Value]:
        """The call's value; while the storage is away, wait for it and call again."""
        while True:
            try:
                return call()
            except FAULTS as error:
                if warning := self._patience.begins(error):
                    yield warning
                self._patience.wait()

    def _placed(self, recipe: Recipe) -> Recipe:
        """The recipe with the place in its stream at which it can join trials that are on their way."""
        return replace(recipe, stream_offset=self.lanes.placed(recipe)) if self.count.number > 1 else recipe

    def _say_refusals(self) -> Generator[Event, None, None]:
        for model, reason in self.lanes.refusals.items():
            if model not in self._refused:
                self._refused.add(model)
                yield WorkerWarned(f"model {model} cannot be fused, its trials train one after another: {reason}")

    def _has_room(self) -> bool:
        """Whether the device has memory for twice as many lanes."""
        if self.bench.data.device.type != "cuda":
            return True
        free, total = torch.cuda.mem_get_info(self.bench.data.device)
        return free > total / 2
