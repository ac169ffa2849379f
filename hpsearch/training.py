"""The trials that a worker has in its lanes: filled, trained epoch by epoch, decided on, replaced.

Here search and training meet. While an epoch trains, the one before is recorded (`reporting.py`), unless something
depends on it: so at most two epochs are not known to be recorded. Trials that end leave their lanes at once, to others
that are ready (`stock.py`); that they have ended is recorded, and the stock filled, while those train.
"""

import math
import time
from collections.abc import Generator, Mapping, Sequence, Set
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial

import torch
from optuna.trial import TrialState

from hpsearch.ends import Ends, leading
from hpsearch.errors import HpsearchError, StorageError
from hpsearch.events import Event, TrialEnded, TrialResumed, TrialStarted, WorkerWarned
from hpsearch.patience import Patience
from hpsearch.reporting import FIRST_EPOCH_SECONDS, Batch, Errand, Reporter
from hpsearch.search.session import Assignment, Verdict
from hpsearch.stock import Placed, Stock, joining
from hpsearch.storage import budget
from hpsearch.storage.ledger import Report
from hpsearch.storage.open import FAULTS
from hpsearch.train.checkpoint import State
from hpsearch.train.device_data import has_room, make_room, out_of_memory
from hpsearch.train.fused import CannotFuse
from hpsearch.train.lanes import Group, Lanes
from hpsearch.train.plan import LaneCount, Stream
from hpsearch.trial import LOST, Bench, Outcome, Run, one_line, recorded

EPOCHS_PER_LEASE = 10  # a lease outlasts so many epochs as long as the last one, if the setting is shorter
ALMOST_DUE = 0.5  # of the time between two checkpoints: then a trial gets one along with another that is due
STOCK_SECONDS = 30.0  # a round that takes longer hides what it waits: trials are drawn up when lanes are free for them


class Training:
    """All trials of one worker in one study, of which it does `most`, until `close`."""

    def __init__(
        self, bench: Bench, lanes: Lanes, count: LaneCount, patience: Patience, most: int | None = None
    ) -> None:
        self.bench, self.lanes, self.count, self._most = bench, lanes, count, most
        self._patiently = patience.patiently
        self.running: dict[int, Run] = {}  # by trial id
        self.stock, self.ends = Stock(bench.session), Ends()
        self._reporter = Reporter(bench, self.running, self.stock)
        self._speed, self._spent_seconds = 0.0, 0.0  # images per second of the last epoch, seconds of this round
        self._next: dict[Stream, int] = {}  # the epochs of streams with which the next round begins
        self._round_seconds = math.inf  # of all groups, about; not known before the first
        self._lease_seconds = bench.settings.lease_seconds  # or longer, if epochs are long

    def fill(self) -> Generator[Event, None, bool]:
        """Begin trials in lanes that are free, from the stock as long as there are some; whether there were any.

        Some may end at once.
        """
        if self.bench.interruption.requested:
            yield from self._settle_all() if not self.running else ()
            return False
        begun = yield from self._begin()
        if not self.running or self._asks():
            yield from self._settle_all()
            if self._asks():
                lease = partial(self.bench.session.lease, free := self._num_free(), self._lease_seconds)
                self.stock.hold(free, (yield from self._patiently(lease)))
                yield from self._leave_retaken()
            placed = self._joining(self.lanes.positions())
            yield from self._patiently(lambda: self.stock.draw_up(placed))
            yield from self._patiently(lambda: self.stock.prepare(placed, self._lease_seconds))
            begun += yield from self._begin()
        return begun > 0

    def round(self) -> Generator[Event, None, None]:
        """One epoch of every trial; those that end make room.

        Raises:
            StorageAway: the storage stayed away; see `keep`.
            HpsearchError: the device cannot be used any more.
            Interrupted: while an epoch was trained; nothing has been given back yet.
        """
        try:
            groups = list(self.lanes.groups())
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            return (yield from self._make_room(list(self.running), error))
        yield from map(WorkerWarned, self.lanes.complaints())
        self._spent_seconds = 0.0
        self._next = {stream: position + 1 for stream, position in self.lanes.positions().items()}
        for group in groups:
            if self.running.keys().isdisjoint(group.keys):
                continue  # all of it has been lost since the round began
            yield from self._train(group)
            if (wanted := self.bench.session.wanted) != budget.RUNNING:
                yield from self._settle_all()
                yield from self.give_back(f"the study is {wanted}")  # perhaps resumed since
                return
        self._round_seconds = self._spent_seconds or self._round_seconds
        self.count.end_round(self.count.settled or has_room(self.bench.data))

    def give_back(self, reason: str, ids: Sequence[int] | None = None) -> Generator[Event, None, None]:
        """Put trials (all, if none are named) back into the queue, to go on after their last whole epoch."""
        told = self._record_at_once()  # said at the end: a reader who has gone must keep nothing from going back
        here = self._runs()
        runs = [here[trial_id] for trial_id in (here if ids is None else ids)]
        told += [warning for run in runs if (warning := self._keep(run))]
        held = self.bench.session.release([(run.lease, run.epoch) for run in runs], reason)
        if ids is None:
            self.stock.give_back()
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
        for run in self._runs().values():
            self._keep(run)

    def close(self) -> None:
        """Wait for what is being recorded; nothing of this worker goes on in its thread."""
        self._reporter.close()
        if (errand := self._reporter.errand) is None:
            errand = replace(self._errand(), num_wanted=0)  # the device has failed: what ended before has ended
            with suppress(*FAULTS):
                errand.run()
        self._turned(errand)
        self.stock.give_back()

    def _runs(self) -> dict[int, Run]:
        """All trials that have begun here and are not known to be recorded as ended."""
        return {**self.running, **{key: one.run for key, one in self.ends.leaving.items()}}

    def _begin(self) -> Generator[Event, None, int]:
        """Begin what is in the stock and still this worker's, as far as lanes are free; the number."""
        yield from self._patiently(lambda: self.stock.prepare(joining(None), self._lease_seconds))
        first = list(self.stock.drawn.values())[: max(0, self.count.number - len(self.running))]
        out = yield from self._patiently(lambda: self.bench.session.out([one.lease for one in first]))
        for one in first:
            yield from self._start(one, one.lease.trial_id in out)
        return len(first)

    def _start(self, assignment: Assignment, is_out: bool) -> Generator[Event, None, None]:
        """Put one trial into a lane, at its beginning or at its last checkpoint."""
        run, trial_id = Run(self.bench, assignment), assignment.lease.trial_id
        self.running[trial_id] = run
        self.stock.pop(trial_id)
        yield TrialStarted(run.number, run.recipe.epochs)
        session, kept = self.bench.session, True
        if is_out and run.lease.epoch < run.recipe.epochs:
            rows = yield from self._patiently(lambda: session.epochs(trial_id))
            yield from self._finish({trial_id: run.beaten(rows)})
            return
        state: State | None = None
        unreported: list[Report] = []
        try:
            model = self.bench.model(run.recipe)
        except Exception as error:
            yield from self._finish({trial_id: run.broken(error)})
            return
        try:
            state, unreported = run.last_state(model)
        except (OSError, HpsearchError) as error:
            yield WorkerWarned(f"trial {run.number} begins again, without its checkpoints: {error}")
        run.epoch = int(state["epoch"]) if state is not None else 0
        pruned: Set[int] = set()
        for one in unreported:
            if one.epoch > run.lease.epoch:  # else it is recorded, and not decided on
                kept = bool((yield from self._patiently(partial(session.record, [one], self._lease_seconds))))
            pruned = (yield from self._patiently(partial(session.decide, [one], {trial_id} if kept else set()))).pruned
        if run.lease.epoch > run.epoch:
            kept = yield from self._patiently(lambda: session.cut_back(run.lease, run.epoch))
        if not kept:
            yield from self._leave({trial_id: LOST})
            return
        self.lanes.add(trial_id, run.recipe, model, state)
        if run.epoch:
            yield TrialResumed(run.number, run.epoch, run.recipe.epochs)
            rows = yield from self._patiently(lambda: session.epochs(trial_id))
            outcome = run.outcome(recorded(rows[-1]), trial_id in pruned) if rows else None  # none: cut back
            if outcome is not None:  # it had ended, and only not been told
                yield from self._finish({trial_id: outcome})

    def _train(self, group: Group) -> Generator[Event, None, None]:
        """One epoch of a group; meanwhile the one before is recorded, and who left it is replaced."""
        self._reporter.send(self._errand(self._joining(self._next)))
        first, started = math.isinf(self._round_seconds), time.monotonic()
        renewing = self._reporter.renewing(self._lease_seconds) if first else nullcontext()
        try:
            with renewing, self.bench.interruption.stoppable():
                results = group.train_epoch()
            group.keep_epoch()  # not in the block: states and results go together
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            return (yield from self._make_room(list(group.keys), error))
        except CannotFuse:
            yield from self._settle_all()
            self.lanes.restart([key for key in group.keys if key in self.running], self.bench.model)
            return
        # Who takes longer than that was suspended, or is alone.
        seconds = min(time.monotonic() - started, FIRST_EPOCH_SECONDS if first else self._lease_seconds)
        crowded = {key: one for key, one in results.items() if isinstance(one, torch.OutOfMemoryError)}
        batch = Batch({key: results[key] for key in results if key not in crowded}, seconds / max(1, len(results)))
        if batch.trained:
            self._spent_seconds += seconds
            whole = self._spent_seconds if first else max(self._spent_seconds, self._round_seconds)
            self._lease_seconds = max(self.bench.settings.lease_seconds, EPOCHS_PER_LEASE * whole)
        self._reporter.batches.append(batch)
        for key in results.keys() - self.running.keys():
            self._drop(key)  # lost since the round began
        self._speed = batch.images_per_second
        self.count.trained(len(batch.results), self._speed, seconds)
        yield from self._settle()
        if decided := self._decided(batch):
            self._reporter.split(batch, decided)
            self._reporter.send(replace(self._errand(), ends=(), num_wanted=0))
            yield from self._settle()
        if crowded:
            yield from self._make_room(list(crowded), next(iter(crowded.values())))

    def _joining(self, positions: Mapping[Stream, int]) -> Placed:
        """Where trials begin that are drawn up. Over seeds, all candidates see one order from its beginning."""
        return joining(positions if self.count.number > 1 and self.bench.study.spec.space else None)

    def _decided(self, batch: Batch) -> set[int]:
        """The trials that cannot go on before their epoch is recorded, because something depends on it."""
        runs = {key: self.running[key] for key in batch.trained}
        if any(run.due() for run in runs.values()):
            batch.due = {key for key, run in runs.items() if run.due(ALMOST_DUE)}
        batch.due |= {key for key, result in batch.trained.items() if self.bench.session.is_rung(result.epoch)}
        return batch.due | batch.broken.keys() | {key for key, run in runs.items() if run.decides(batch.trained[key])}

    def _errand(self, placed: Placed | None = None) -> Errand:
        """What there is to do now; with `placed`, while an epoch trains: then also what its end may need."""
        if (batch := next(iter(self._reporter.batches), None)) is not None:
            batch.reports = [self.running[key].report(one, batch.seconds) for key, one in batch.trained.items()]
        ends = self.ends.to_record()
        # Whoever leaves soon, because it is asked to or its trials fail, begins no more.
        leaves = self.bench.interruption.requested or self.ends.fails or (self.stock.patient and not ends)
        wanted = 0 if leaves else self._num_free(self._num_ending() if placed is not None else 0)
        return Errand(self.bench.session, self.stock, self._lease_seconds, batch, ends, wanted, placed, self._speed)

    def _num_ending(self) -> int:
        """How many trials may end after their next epoch, as far as their lanes are to be filled from the stock."""
        if self.count.number == 1 or self._round_seconds > STOCK_SECONDS:
            return 0
        trained = {key: run.epoch + len(self._reporter.unreported(key)) for key, run in self.running.items()}
        return sum(self.running[key].may_end(epoch + 1) for key, epoch in trained.items())

    def _settle(self) -> Generator[Event, None, None]:
        """Wait for the errand that is on its way, if there is one, and do what follows from it."""
        if self._reporter.errand is None:
            return
        errand = yield from self._patiently(self._reporter.answer)
        yield from self._turned(errand)
        yield from self._leave_retaken()
        if (batch := errand.batch) is not None:
            decide = partial(self.bench.session.decide, batch.reports, batch.kept or set())
            verdict = yield from self._patiently(decide)
            self._reporter.batches.remove(batch)
            yield from self._follow(batch, verdict)

    def _settle_all(self) -> Generator[Event, None, None]:
        """As `_settle`, until nothing is left to record; nothing trains meanwhile."""
        while self._reporter.errand is not None or self._reporter.batches or self.ends.leaving:
            if self._reporter.errand is None:
                self._reporter.send(self._errand())
            yield from self._settle()

    def _follow(self, batch: Batch, verdict: Verdict) -> Generator[Event, None, None]:
        """What a recorded epoch means for each trial."""
        batch.advance(self.running, verdict.lost)
        ended = {key: self.running[key].broken(error) for key, error in batch.broken.items()}
        for key, result in batch.trained.items():
            run = self.running[key]
            if key in verdict.lost:
                ended[key] = LOST
                continue
            yield run.told(result)
            if (outcome := run.outcome(result, key in verdict.pruned)) is not None:
                ended[key] = outcome
            elif key in batch.due and (warning := self._keep(run)):
                yield warning
        yield from self._finish(ended)

    def _record_at_once(self) -> list[Event]:
        """Record what is trained and what has ended, at the first attempt or not at all, and decide nothing."""
        told, answers = list[Event](), True
        while answers and (self._reporter.errand is not None or self._reporter.batches or self.ends.leaving):
            if self._reporter.errand is None:
                self._reporter.send(replace(self._errand(), num_wanted=0))
            errand = self._reporter.errand
            assert errand is not None
            try:
                self._reporter.answer()
            except FAULTS:
                answers = False
            told += self._turned(errand)
            if (batch := errand.batch) is not None and batch.kept is not None:
                self._reporter.batches.remove(batch)
                batch.advance(self.running, batch.trained.keys() - batch.kept)
                told += [self.running[key].told(batch.trained[key]) for key in batch.trained if key in batch.kept]
        return told

    def _keep(self, run: Run) -> WorkerWarned | None:
        """Write a trial's checkpoint, with the epochs that are not known to be recorded."""
        trial_id = run.lease.trial_id
        leaving = self.ends.leaving.get(trial_id)
        state = self.lanes.state(trial_id) if leaving is None else leaving.state
        return run.save(state, self._reporter.unreported(trial_id)) if state and int(state["epoch"]) else None

    def _finish(self, ended: Mapping[int, Outcome]) -> Generator[Event, None, None]:
        """Free the lanes of trials that end; how they did is recorded while the next epoch trains."""
        yield from self._leave({key: outcome for key, outcome in ended.items() if outcome.state is None})
        ending = yield from self._illustrated({key: one for key, one in ended.items() if one.state is not None})
        for key, outcome in ending.items():
            self.ends.add(self.running.pop(key), outcome, None if outcome.beaten else self.lanes.state(key))
            self._drop(key)
        if self.ends.fails:
            yield from self._settle_all()  # the worker may have to leave

    def _turned(self, errand: Errand) -> list[TrialEnded]:
        """What is said of the trials that ended, as far as the errand has been done."""
        return [] if errand.held is None else self.ends.recorded(errand.ends, errand.held, errand.now)

    def _illustrated(self, ended: Mapping[int, Outcome]) -> Generator[Event, None, dict[int, Outcome]]:
        """The outcomes; a completed one that is the best so far comes with its confusion matrix."""
        if any(one.state == TrialState.COMPLETE for one in ended.values()):
            now = self.ends.standing or (yield from self._patiently(self.bench.session.standing))
            best = leading(ended, self.bench.study.plan, now)
            if best is not None and (state := self.lanes.state(best)) is not None:
                return {**ended, best: replace(ended[best], pictures=self.running[best].pictures(state))}
        return dict(ended)

    def _leave(self, ended: Mapping[int, Outcome]) -> Generator[Event, None, None]:
        """Free the lanes of trials that have ended here, and say how."""
        if not ended:
            return
        try:
            now = self.bench.session.standing()
        except (*FAULTS, StorageError):
            now = None  # the worker is leaving because of that
        runs = self._runs()
        for key in ended:
            self.running.pop(key, None)
            self.ends.leaving.pop(key, None)
            self._drop(key)
        yield from [self.ends.told(runs[key], outcome, now) for key, outcome in ended.items()]

    def _drop(self, key: int) -> None:
        """Free a trial's lane; what it trained last is not recorded any more."""
        self.lanes.drop(key)
        self._reporter.drop(key)

    def _leave_retaken(self) -> Generator[Event, None, None]:
        """End what runs here of trials that were taken again: their leases had run out while the storage was away."""
        again = [key for key in self.stock.leases if key in self.running]
        yield from [warning for key in again if (warning := self._keep(self.running[key]))]
        yield from self._leave(dict.fromkeys(again, LOST))

    def _asks(self) -> bool:
        """Whether it is time to ask for trials."""
        return not (self.running and self.stock.patient) and self._num_free() > 0

    def _num_free(self, ending: int = 0) -> int:
        """How many trials may be taken, once so many of those in lanes have ended."""
        held = len(self.running) + len(self.stock)
        left = math.inf if self._most is None else self._most - self.ends.done - held - len(self.ends.leaving)
        return int(min(self.count.number - held + ending, left))

    def _make_room(self, keys: Sequence[int], error: Exception) -> Generator[Event, None, None]:
        """A program did not fit into memory: augmented images make room, or half of the trials go back to the queue.

        Raises:
            HpsearchError: it was something else: the device failed. The next owners of the trials count a crash.
        """
        if not out_of_memory(error):
            raise HpsearchError(f"the device failed: {one_line(error)}") from error
        freed = make_room(error, self.bench.data)
        yield from self._settle_all()
        keys = [key for key in keys if key in self.running]
        if freed:
            self.lanes.restart(keys, self.bench.model)
        elif keys and len(self.running) == 1:
            self.count.blame_trial()
            yield from self._finish({keys[0]: self.running[keys[0]].broken(error)})
        elif keys:
            number = (self.count.halve if len(keys) > 1 else self.count.try_alone)(len(self.running))
            yield WorkerWarned(f"out of memory with {len(self.running)} lanes; going on with {number}")
            self.stock.give_back()
            others = [key for key in self.running if key not in keys]
            kept = [*keys[: max(1, min(number, len(keys) // 2))], *others][: max(1, number)]
            yield from self.give_back("there was no memory for it", [key for key in self.running if key not in kept])
            self.lanes.restart([key for key in kept if key in keys], self.bench.model)
