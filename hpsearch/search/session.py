"""A session: one worker's part in a study. It takes trials, draws them up, records their epochs, and decides at rungs.

Each call is about many trials and costs a few statements, whatever their number.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hpsearch.recipe import Recipe
from hpsearch.search.asking import ask
from hpsearch.search.pruners import failing, make_pruner, rungs
from hpsearch.search.racing import RacePruner
from hpsearch.search.samplers import finite_points
from hpsearch.search.view import View
from hpsearch.storage import budget, fleet, ledger, snapshot
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Drawn, End, Report
from hpsearch.storage.open import Database
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy
from hpsearch.storage.tables import TRIALS

BEAT_SECONDS = 1.0  # between two signs of life while trials train


@dataclass(frozen=True)
class Assignment:
    """A trial that this worker trains: its lease, which knows the last recorded epoch, and what to train."""

    lease: Lease
    recipe: Recipe


@dataclass(frozen=True)
class Hand:
    """What `take` gave; if it is less than what was asked for, `reason` says why."""

    assignments: tuple[Assignment, ...]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """After a report: the ids of trials that belong to somebody else now, and of those that fail their rung."""

    lost: frozenset[int]
    pruned: frozenset[int]


class Session:
    """One worker in one study.

    `wanted` is what people want of the study (budget.RUNNING, PAUSED or STOPPED), as of the last sign of life.
    """

    def __init__(
        self,
        database: Database,
        study: LoadedStudy,
        worker: fleet.Worker,
        lease_seconds: float,
        last_words: Callable[[str], str] = lambda _owner: "",
    ) -> None:
        self.database, self.study, self.worker = database, study, worker
        self._lease_seconds, self._last_words = lease_seconds, last_words
        self._pruner = make_pruner(study.spec)
        self._rungs = rungs(self._pruner)
        self._view = View(database, study, self._rungs)
        self._view.study.pruner = self._pruner
        self._points = finite_points(study.spec)
        self._began, self._waited, self._beaten = time.monotonic(), 0.0, 0.0
        self.wanted = budget.RUNNING

    def take(self, num: int, placed: Callable[[Recipe], Recipe] = lambda recipe: recipe) -> Hand:
        """Take up to `num` trials: abandoned ones, waiting ones, new ones, and draw up those that are new.

        `placed` says with which recipe a trial begins here: at which epoch of its stream.

        Raises:
            StorageError: the study has been deleted.
        """
        with self._waiting():
            taken = ledger.take(
                self.database,
                self.study.study_id,
                num,
                self.worker.owner,
                self._lease_seconds,
                self.study.plan,
                self._last_words,
            )
        self.wanted = taken.state
        if not taken.leases:
            return Hand((), taken.reason)
        recipes = self._recorded(taken.leases)
        recipes |= self._draw_up([lease for lease in taken.leases if lease.trial_id not in recipes], placed)
        drawn = [Assignment(lease, recipes[lease.trial_id]) for lease in taken.leases if lease.trial_id in recipes]
        return Hand(tuple(drawn), taken.reason)

    def report(self, reports: Sequence[Report], lease_seconds: float, images_per_second: float) -> Verdict:
        """Record one epoch of each trial, all of them before anything is decided; decide over all that is known."""
        with self._waiting():
            kept = ledger.report(self.database, reports, lease_seconds)
            if time.monotonic() - self._beaten >= BEAT_SECONDS:
                self.beat(fleet.TRAINING, images_per_second)
            at_rung = [one for one in reports if self._rungs is None or self.is_rung(one.epoch)]
            if at_rung:
                self._view.sync()
        decided = [one.lease for one in at_rung if one.lease.trial_id in kept]
        failed = failing(self._pruner, self._view.study, [self._view.trial(lease.trial_id) for lease in decided])
        pruned = {lease.trial_id for lease in decided if lease.number in failed}
        return Verdict(frozenset({one.lease.trial_id for one in reports} - kept), frozenset(pruned))

    def is_out(self, lease: Lease) -> bool:
        """Whether a race has put the trial's candidate out, so that it need not be trained."""
        if not isinstance(self._pruner, RacePruner):
            return False
        with self._waiting():
            self._view.sync()
        return self._pruner.prune(self._view.study, self._view.trial(lease.trial_id))

    def is_rung(self, epoch: int) -> bool:
        """Whether the study has rungs, and this epoch is one."""
        return self._rungs is not None and epoch in self._rungs

    def finish(self, ends: Sequence[End]) -> set[int]:
        """End trials; the ids of those that still were this worker's."""
        with self._waiting():
            return ledger.finish(self.database, ends)

    def beat(self, state: str, images_per_second: float = 0.0) -> None:
        """Give a sign of life, and learn what people want."""
        share = self._waited / max(time.monotonic() - self._began, 1e-9)
        sign = fleet.Sign(self.study.study_id, state, images_per_second, min(1.0, share))
        self.wanted = fleet.beat(self.database, self.worker, sign)
        self._beaten = time.monotonic()

    def _recorded(self, leases: Sequence[Lease]) -> dict[int, Recipe]:
        """The recipes of trials that were drawn up before."""
        found: dict[int, Recipe] = {}
        with self._waiting(), self.database.engine.connect() as connection:
            for ids in snapshot.batches(lease.trial_id for lease in leases):
                known = snapshot.user_attribute(connection, RECIPE_KEY, TRIALS.c.trial_id.in_(ids))
                found |= {trial_id: Recipe(**fields) for trial_id, fields in known.items()}
        return found

    def _draw_up(self, leases: Sequence[Lease], placed: Callable[[Recipe], Recipe]) -> dict[int, Recipe]:
        """Draw up trials that are new, again and again those whose configuration another trial has."""
        if leases:
            with self._waiting():
                self._view.sync()
        recipes: dict[int, Recipe] = {}
        bare, attempt = list(leases), 0
        while bare:
            drawn = [ask(self._view, self.study.spec, lease, attempt, self._points, placed) for lease in bare]
            accepted, doubles = self._record([one for one, _ in drawn])
            recipes |= {one.lease.trial_id: recipe for one, recipe in drawn if one.lease.trial_id in accepted}
            bare = [lease for lease in bare if lease.trial_id in doubles]
            attempt += 1
        return recipes

    def _record(self, drawn: Sequence[Drawn]) -> tuple[set[int], set[int]]:
        with self._waiting():
            accepted, doubles = ledger.set_up(self.database, self.study.study_id, drawn)
            for trial_id in doubles:
                self._view.withdraw(trial_id)
            if doubles:
                self._view.sync()  # the trial that has the configuration may be new
        return accepted, doubles

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for the database."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - started
