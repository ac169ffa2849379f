"""The trials that a worker has in its lanes: filled, trained epoch by epoch, decided on, replaced.

With `trial.py` and `worker.py` the place where the search and the training half meet. While an epoch trains, the one
before is recorded (`reporting.py`), unless something depends on what comes of it: so what is trained is at most two
epochs ahead of what is known to be recorded.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from optuna.trial import TrialState

from hpsearch.errors import HpsearchError
from hpsearch.events import LOST_STATE, Event, TrialEnded, TrialResumed, TrialStarted, WorkerWarned
from hpsearch.patience import Patience
from hpsearch.recipe import Recipe
from hpsearch.reporting import Batch, Reporter
from hpsearch.search.session import Assignment, Verdict
from hpsearch.storage import budget, ledger
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Report, Taken
from hpsearch.storage.open import FAULTS
from hpsearch.storage.studies import progress
from hpsearch.train.checkpoint import State
from hpsearch.train.device_data import has_room, let_go
from hpsearch.train.lanes import Group, Lanes
from hpsearch.train.plan import LaneCount
from hpsearch.trial import LOST, Bench, Outcome, Run, one_line, recorded

EPOCHS_PER_LEASE = 10  # a lease outlasts so many epochs as long as the last one, if the setting is shorter
ALMOST_DUE = 0.5  # of the time between two checkpoints: then a trial gets one along with another that is due
ASK_AGAIN_SECONDS = 2.0  # after there was nothing more to take, while some lanes train and others are free

Value = TypeVar("Value")


class Training:
    """All trials of one worker in one study, of which it does `most`, until `close`.

    `done` counts those that ended here.
    """

    def __init__(
        self, bench: Bench, lanes: Lanes, count: LaneCount, patience: Patience, most: int | None = None
    ) -> None:
        self.bench, self.lanes, self.count, self._patience, self._most = bench, lanes, count, patience, most
        self.running: dict[int, Run] = {}  # by trial id
        self._taken: dict[int, Lease] = {}  # by trial id; they begin with the next `fill`
        self._reporter = Reporter(bench.session)
        self.done = self.failures_in_a_row = 0
        self.last_failure = ""
        self._asked_in_vain = -ASK_AGAIN_SECONDS
        self._num_groups = 1  # of the last round
        self._lease_seconds = bench.settings.lease_seconds  # or longer, if epochs are long
        self._refused: set[str] = set()

    def fill(self) -> Generator[Event, None, bool]:
        """Begin the trials that were taken when others ended, and more in lanes that are free; whether there were any.

        Some may end at once.
        """
        if self.bench.interruption.requested or not (self._taken or self._asks()):
            return False
        yield from self._settle()
        if self._asks():
            free = self._num_free()
            lease = partial(self.bench.session.lease, free, self._lease_seconds)
            self._hold(free, (yield from self._patiently(lease)))
        yield from self._leave_retaken()
        leases = list(self._taken.values())
        assigned = yield from self._patiently(lambda: self.bench.session.assign(leases, self._placed))
        self._taken = {one.lease.trial_id: one.lease for one in assigned}  # others are not this worker's any more
        for assignment in assigned:
            yield from self._start(assignment)
        return bool(assigned)

    def round(self) -> Generator[Event, None, None]:
        """One epoch of every trial; those that end make room.

        Raises:
            StorageAway: the storage stayed away; see `keep`.
            HpsearchError: the device cannot be used any more.
            Interrupted: while an epoch was trained; nothing has been given back yet.
        """
        try:
            groups = list(self.lanes.groups())
        except torch.AcceleratorError as error:
            raise HpsearchError(f"the device failed: {one_line(error)}") from error
        except torch.OutOfMemoryError as error:
            yield from self._make_room(list(self.running), error)
            return
        yield from self._say_refusals()
        self._num_groups = len(groups)
        for group in groups:
            if self.running.keys().isdisjoint(group.keys):
                continue  # all of it has been lost since the round began
            yield from self._train(group)
            if self.bench.session.wanted != budget.RUNNING:
                yield from self._settle()
                yield from self.give_back(f"the study is {self.bench.session.wanted}")
                return

    def give_back(self, reason: str, ids: Sequence[int] | None = None) -> Generator[Event, None, None]:
        """Put trials (all, if none are named) back into the queue, to go on after their last whole epoch."""
        told = list(self._record_at_once())  # said at the end: a reader who has gone must keep nothing from going back
        runs = [self.running[trial_id] for trial_id in (list(self.running) if ids is None else ids)]
        told += [warning for run in runs if (warning := self._keep(run))]
        held = self._release([(run.lease, run.epoch) for run in runs], reason)
        if ids is None:
            self._release_unused()
        yield from told
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
        for run in self.running.values():
            self._keep(run)

    def close(self) -> None:
        """Wait for what is being recorded; nothing of this worker goes on in its thread."""
        self._reporter.close()
        self._release_unused()

    def _start(self, assignment: Assignment) -> Generator[Event, None, None]:
        """Put one trial into a lane, at its beginning or at its last checkpoint."""
        run, trial_id = Run(self.bench, assignment), assignment.lease.trial_id
        self.running[trial_id] = run
        del self._taken[trial_id]
        yield TrialStarted(run.number, run.recipe.epochs)
        if (yield from self._patiently(lambda: self.bench.session.is_out(run.lease))):
            reason = f"pruned by {self.bench.study.spec.pruner.name}"
            yield from self._finish({trial_id: Outcome(TrialState.PRUNED, run.lease.epoch, reason=reason)})
            return
        state: State | None = None
        unreported: list[Report] = []
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
        for one in unreported:
            write = partial(ledger.report, database, [one], self._lease_seconds)
            kept = bool((yield from self._counted(write)))
        if run.lease.epoch > run.epoch:
            kept = yield from self._counted(lambda: ledger.cut_back(database, run.lease, run.epoch))
        if not kept:
            yield from self._leave({trial_id: LOST})
            return
        self.lanes.add(trial_id, run.recipe, model, state)
        if run.epoch:
            yield TrialResumed(run.number, run.epoch, run.recipe.epochs)
            rows = yield from self._counted(lambda: ledger.epochs(database, trial_id))
            outcome = run.outcome(recorded(rows[-1]), pruned=False)
            if outcome is not None:  # it had ended, and only not been told
                yield from self._finish({trial_id: outcome})

    def _train(self, group: Group) -> Generator[Event, None, None]:
        """One epoch of a group; meanwhile the one before is recorded."""
        started = time.monotonic()
        try:
            with self.bench.interruption.allowed():
                results = group.train_epoch()
            group.keep_epoch()  # not in the block: states and results go together
        except torch.AcceleratorError as error:
            # The process cannot use the device any more; the leases run out, and the next owners count a crash.
            raise HpsearchError(f"the device failed: {one_line(error)}") from error
        except torch.OutOfMemoryError as error:
            yield from self._make_room(list(group.keys), error)
            return
        seconds = time.monotonic() - started
        self._lease_seconds = max(self.bench.settings.lease_seconds, EPOCHS_PER_LEASE * seconds * self._num_groups)
        self._reporter.batches.append(Batch(dict(results), seconds / max(1, len(results))))
        for key in results.keys() - self.running.keys():
            self._drop(key)  # lost since the round began
        yield from self._settle()
        if self._reporter.batches and self._send():
            yield from self._settle()

    def _send(self) -> bool:
        """Begin to record an epoch; whether something depends on what comes of it, so that the next one has to wait."""
        batch = self._reporter.batches[0]
        runs = {key: self.running[key] for key in batch.trained}
        batch.reports = [run.report(batch.trained[key], batch.seconds) for key, run in runs.items()]
        if any(run.due() for run in runs.values()):
            batch.due = {key for key, run in runs.items() if run.due(ALMOST_DUE)}
        batch.due |= {key for key, result in batch.trained.items() if self.bench.session.is_rung(result.epoch)}
        self._reporter.send(self._lease_seconds)
        decides = any(run.decides(batch.trained[key]) for key, run in runs.items())
        return decides or bool(batch.due or batch.broken) or self.bench.session.wanted != budget.RUNNING

    def _settle(self) -> Generator[Event, None, None]:
        """Wait for the epoch that is on its way, if there is one, and do what follows from it."""
        if self._reporter.on_its_way:
            kept = yield from self._patiently(self._reporter.answer)
            decide = partial(self.bench.session.decide, self._reporter.batches[0].reports, kept)
            verdict = yield from self._patiently(decide)
            yield from self._follow(self._reporter.batches.pop(0), verdict)

    def _follow(self, batch: Batch, verdict: Verdict) -> Generator[Event, None, None]:
        """What a recorded epoch means for each trial."""
        self.count.seen(len(self.running), batch.images_per_second, has_room(self.bench.data.device))
        batch.advance(self.running, verdict.lost)
        ended = {key: self.running[key].broken(error) for key, error in batch.broken.items()}
        for key, result in batch.trained.items():
            run = self.running[key]
            if key in verdict.lost:
                ended[key] = LOST
                continue
            yield run.told(result)
            outcome = run.outcome(result, key in verdict.pruned)
            if outcome is not None:
                ended[key] = outcome
            elif key in batch.due and (warning := self._keep(run)):
                yield warning
        yield from self._finish(ended)

    def _record_at_once(self) -> Iterator[Event]:
        """Record what is trained, at the first attempt or not at all, and decide nothing."""
        with contextlib.suppress(*FAULTS):
            while self._reporter.batches:
                if not self._reporter.on_its_way:
                    self._send()
                kept = self._reporter.answer()
                batch = self._reporter.batches.pop(0)
                batch.advance(self.running, batch.trained.keys() - kept)
                for key in [key for key in batch.trained if key in kept]:
                    yield self.running[key].told(batch.trained[key])

    def _keep(self, run: Run) -> WorkerWarned | None:
        """Write a trial's checkpoint, with the epochs that are not known to be recorded."""
        state = self.lanes.state(run.lease.trial_id)
        if state is None or int(state["epoch"]) == 0:
            return None
        return run.save(state, self._reporter.unreported(run.lease.trial_id))

    def _finish(self, ended: Mapping[int, Outcome]) -> Generator[Event, None, None]:
        """Record how trials ended, and take others for their lanes, all of it in one transaction."""
        ended = yield from self._illustrated(ended)
        ends = [self.running[key].end(outcome) for key, outcome in ended.items() if outcome.state is not None]
        held: set[int] = set()
        if ends:
            # Whoever leaves soon, because it is asked to or its trials fail, begins no more.
            leaves = self.bench.interruption.requested or any(outcome.traceback for outcome in ended.values())
            free = 0 if leaves else self._num_free(len(ended))
            turn = partial(self.bench.session.turn, ends, free, self._lease_seconds)
            held, taken = yield from self._patiently(turn)
            self._hold(free, taken)
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
        now = yield from self._counted(lambda: progress(self.bench.session.database, self.bench.study))
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
            with self.bench.session.waiting():
                now = progress(self.bench.session.database, self.bench.study)
        except FAULTS:
            now = None  # the worker is leaving because of that
        runs = {key: self.running.pop(key) for key in ended}
        for key in ended:
            self._drop(key)
        for key, outcome in ended.items():
            self.done += outcome.state not in (TrialState.WAITING, None)
            self.failures_in_a_row = self.failures_in_a_row + 1 if outcome.traceback else 0
            self.last_failure = outcome.reason if outcome.traceback else self.last_failure
            yield TrialEnded(
                trial=runs[key].number,
                state=outcome.state.name if outcome.state else LOST_STATE,
                epoch=outcome.epoch,
                value=outcome.value,
                reason=outcome.reason,
                finished=now.finished if now else 0,
                max_trials=now.max_trials if now else 0,
                best_number=now.best_number if now else None,
                best_value=now.best_value if now else None,
            )

    def _drop(self, key: int) -> None:
        """Free a trial's lane; what it trained last is not recorded any more."""
        self.lanes.drop(key)
        self._reporter.drop(key)

    def _leave_retaken(self) -> Generator[Event, None, None]:
        """End what runs here of trials that were taken again: their leases had run out while the storage was away."""
        again = [key for key in self._taken if key in self.running]
        for key in again:
            if warning := self._keep(self.running[key]):
                yield warning
        yield from self._leave(dict.fromkeys(again, LOST))

    def _asks(self) -> bool:
        """Whether it is time to ask for trials."""
        patient = not self.running or time.monotonic() - self._asked_in_vain >= ASK_AGAIN_SECONDS
        return patient and self._num_free() > 0

    def _num_free(self, leaving: int = 0) -> int:
        """How many trials may be taken, once so many have ended."""
        held = len(self.running) + len(self._taken)
        free = self.count.number - held + leaving
        return free if self._most is None else min(free, self._most - self.done - held)

    def _hold(self, asked: int, taken: Taken | None) -> None:
        """Keep what was taken for the next `fill`."""
        if taken is not None:
            self._taken |= {lease.trial_id: lease for lease in taken.leases}
            if len(taken.leases) < asked:
                self._asked_in_vain = time.monotonic()

    def _release(self, given: Sequence[tuple[Lease, int]], reason: str) -> set[int]:
        """Give trials back; the ids of those that still were this worker's, as far as the storage can be reached."""
        with contextlib.suppress(*FAULTS), self.bench.session.waiting():  # else the leases run out
            return ledger.release(self.bench.session.database, given, reason) if given else set()
        return set()

    def _release_unused(self) -> None:
        """Give back the trials that were taken and have not begun."""
        self._release([(lease, lease.epoch) for lease in self._taken.values()], "it had not begun")
        self._taken = {}

    def _make_room(self, keys: Sequence[int], error: Exception) -> Generator[Event, None, None]:
        """A program did not fit into memory: half of the lanes go on, the other trials go back to the queue."""
        let_go(error, self.bench.data.device)
        yield from self._settle()
        keys = [key for key in keys if key in self.running]
        if len(keys) == 1:
            yield from self._finish({keys[0]: self.running[keys[0]].broken(error)})
        elif keys:
            number = self.count.halve()
            yield WorkerWarned(f"out of memory with {len(self.running)} lanes; going on with {number}")
            keep = max(1, min(number, len(keys) // 2))
            yield from self.give_back("there was no memory for it", keys[keep:])
            self.lanes.restart(keys[:keep], lambda key: self.bench.model(self.running[key].recipe))

    def _patiently(self, call: Callable[[], Value]) -> Generator[Event, None, Value]:
        """The call's value; while the storage is away, wait for it and call again."""
        while True:
            try:
                return call()
            except FAULTS as error:
                if warning := self._patience.begins(error):
                    yield warning
                with self.bench.session.waiting():
                    self._patience.wait()

    def _counted(self, call: Callable[[], Value]) -> Generator[Event, None, Value]:
        """As `_patiently`, for a call whose time nobody else counts as waiting."""

        def counted() -> Value:
            with self.bench.session.waiting():
                return call()

        return (yield from self._patiently(counted))

    def _placed(self, recipe: Recipe) -> Recipe:
        """The recipe with the place in its stream at which it can join trials that are on their way."""
        return replace(recipe, stream_offset=self.lanes.placed(recipe)) if self.count.number > 1 else recipe

    def _say_refusals(self) -> Generator[Event, None, None]:
        for model, reason in self.lanes.refusals.items():
            if model not in self._refused:
                self._refused.add(model)
                yield WorkerWarned(f"model {model} cannot be fused, its trials train one after another: {reason}")
