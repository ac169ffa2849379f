"""A session: one worker's part in a study. It takes trials, draws them up, records their epochs, and decides at rungs.

Each call is about many trials and costs a few statements, whatever their number.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from hpsearch.errors import StorageError, UsageError
from hpsearch.recipe import Recipe
from hpsearch.search.asking import ask
from hpsearch.search.pruners import failing, make_pruner, rungs
from hpsearch.search.racing import RacePruner
from hpsearch.search.view import View
from hpsearch.storage import budget, fleet, ledger, snapshot
from hpsearch.storage.budget import Plan
from hpsearch.storage.events import FAILED, Happening
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import REASON_KEY, Drawn, End, Report, Taken
from hpsearch.storage.open import FAULTS, Database
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy, Standing, standing
from hpsearch.storage.tables import TRIALS

BEAT_SECONDS = 1.0  # between two signs of life while trials train


@dataclass(frozen=True)
class Assignment:
    """A trial that this worker trains: its lease, which knows the last recorded epoch, and what to train."""

    lease: Lease
    recipe: Recipe


@dataclass(frozen=True)
class Verdict:
    """After a report: the ids of trials that belong to somebody else now, and of those that fail their rung."""

    lost: frozenset[int]
    pruned: frozenset[int]


class Session:
    """One worker in one study.

    What another thread than that which made it calls, while the worker trains, counts as no waiting.

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
        self._points = study.spec.configurations
        self._attempted: set[int] = set()  # ids of trials that were to be drawn up here
        self._complaints: deque[str] = deque()
        self._thread = threading.get_ident()
        self._began, self._waited, self._beaten = time.monotonic(), 0.0, 0.0
        self.wanted = budget.RUNNING
        self.goes_on: Callable[[], bool] = lambda: True  # asked before each suggestion: many may take long

    def lease(self, num: int, lease_seconds: float = 0.0) -> Taken:
        """Take up to `num` trials: abandoned ones, waiting ones, new ones.

        They are this worker's for `lease_seconds`, if that is longer than it may be silent.

        Raises:
            StorageError: the study has been deleted.
        """
        with self.waiting():
            taken = ledger.take(self.database, *self._taking(num, lease_seconds))
        self.wanted = taken.state
        return taken

    def turn(self, ends: Sequence[End], num: int, lease_seconds: float = 0.0) -> tuple[set[int], Taken | None]:
        """`finish` and `lease` in one transaction; None: others are starting trials just now, so ask again.

        Raises:
            StorageError: the study has been deleted.
        """
        if num <= 0:
            return self.finish(ends), None
        with self.waiting():
            held, taken = ledger.turn(self.database, ends, *self._taking(num, lease_seconds))
        self.wanted = taken.state if taken is not None else self.wanted
        return held, taken

    def assign(
        self, leases: Sequence[Lease], placed: Callable[[Recipe], Recipe] = lambda recipe: recipe
    ) -> tuple[Assignment, ...]:
        """What the trials train that this worker holds: as recorded, or drawn up now; again after a fault.

        `placed` says with which recipe a trial begins here: at which epoch of its stream.
        """
        recipes = self._recorded([lease for lease in leases if lease.token > 1 or lease.trial_id in self._attempted])
        recipes |= self._draw_up([lease for lease in leases if lease.trial_id not in recipes], placed)
        return tuple(Assignment(lease, recipes[lease.trial_id]) for lease in leases if lease.trial_id in recipes)

    def prepare(self, recipes: Mapping[Lease, Recipe], lease_seconds: float) -> set[int]:
        """Record with which recipes trials will begin, and renew their leases; the ids of those still this worker's."""
        attributes = [(lease, {RECIPE_KEY: recipe.as_dict()}) for lease, recipe in recipes.items()]
        with self.waiting():
            return ledger.prepare(self.database, attributes, lease_seconds)

    def renew(self, leases: Sequence[Lease], lease_seconds: float) -> None:
        """Renew the leases of trials whose epochs do not, because none ends for long."""
        ledger.prepare(self.database, [(lease, {}) for lease in leases], lease_seconds)

    def record(self, reports: Sequence[Report], lease_seconds: float) -> set[int]:
        """Record one epoch of each trial; the ids of those that still were this worker's."""
        with self.waiting():
            return ledger.report(self.database, reports, lease_seconds)

    def decide(self, reports: Sequence[Report], kept: set[int]) -> Verdict:
        """What the epochs mean that were recorded for the trials `kept`, all of them before: over all that is known."""
        at_rung = [one for one in reports if self.decides(one.epoch)]
        if at_rung:
            with self.waiting():
                self._view.sync()
        decided = [one.lease for one in at_rung if one.lease.trial_id in kept]
        failed = failing(self._pruner, self._view.study, [self._view.trial(lease.trial_id) for lease in decided])
        pruned = {lease.trial_id for lease in decided if lease.number in failed}
        return Verdict(frozenset({one.lease.trial_id for one in reports} - kept), frozenset(pruned))

    def out(self, leases: Sequence[Lease]) -> set[int]:
        """The ids of trials whose candidates a race has put out, so that they need not be trained."""
        if not isinstance(self._pruner, RacePruner) or not leases:
            return set()
        with self.waiting():
            self._view.sync()
        failed = failing(self._pruner, self._view.study, [self._view.trial(lease.trial_id) for lease in leases])
        return {lease.trial_id for lease in leases if lease.number in failed}

    def is_rung(self, epoch: int) -> bool:
        """Whether the study has rungs, and this epoch is one."""
        return self._rungs is not None and epoch in self._rungs

    def decides(self, epoch: int) -> bool:
        """Whether the pruner has a say after this epoch."""
        return self._rungs is None or epoch in self._rungs

    def finish(self, ends: Sequence[End]) -> set[int]:
        """End trials; the ids of those that still were this worker's."""
        with self.waiting():
            return ledger.finish(self.database, ends)

    def release(self, given_back: Sequence[tuple[Lease, int]], reason: str) -> set[int]:
        """Give trials back, each after an epoch, at the first attempt or not at all: then the leases run out.

        The ids of those that still were this worker's.
        """
        with suppress(*FAULTS), self.waiting():
            return ledger.release(self.database, given_back, reason) if given_back else set()
        return set()

    def complaints(self) -> Iterator[str]:
        """Of each trial that could not be drawn up, and so has failed, why; once."""
        while self._complaints:
            yield self._complaints.popleft()

    def cut_back(self, lease: Lease, last_epoch: int) -> bool:
        """Remove what was recorded of a trial after an epoch; whether it still was this worker's."""
        with self.waiting():
            return ledger.cut_back(self.database, lease, last_epoch)

    def epochs(self, trial_id: int) -> list[dict[str, Any]]:
        """Every recorded epoch of a trial."""
        with self.waiting():
            return ledger.epochs(self.database, trial_id)

    def standing(self) -> Standing:
        """How far the study is."""
        with self.waiting():
            return standing(self.database, self.study)

    def beat_if_due(self, images_per_second: float) -> None:
        """Give a sign of life, if the last one was some time ago."""
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            with self.waiting():
                self.beat(fleet.TRAINING, images_per_second)

    def beat(self, state: str, images_per_second: float = 0.0) -> None:
        """Give a sign of life, and learn what people want."""
        share = self._waited / max(time.monotonic() - self._began, 1e-9)
        sign = fleet.Sign(self.study.study_id, state, images_per_second, min(1.0, share))
        self.wanted = fleet.beat(self.database, self.worker, sign)
        self._beaten = time.monotonic()

    def _recorded(self, leases: Sequence[Lease]) -> dict[int, Recipe]:
        """The recipes of trials that were drawn up before."""
        found: dict[int, Recipe] = {}
        if not leases:
            return found
        with self.waiting(), self.database.statements() as connection:
            for ids in snapshot.batches(lease.trial_id for lease in leases):
                known = snapshot.user_attribute(connection, RECIPE_KEY, TRIALS.c.trial_id.in_(ids))
                found |= {trial_id: self._recipe(fields) for trial_id, fields in known.items()}
        return found

    def _recipe(self, fields: Any) -> Recipe:
        try:
            return Recipe(**fields)
        except TypeError as error:
            name = self.study.name
            raise StorageError(
                f"study {name}: what one of its trials trains with is damaged; `hpsearch fsck {name} --repair` mends it"
            ) from error

    def _draw_up(self, leases: Sequence[Lease], placed: Callable[[Recipe], Recipe]) -> dict[int, Recipe]:
        """Draw up trials that are new, again and again those whose configuration another trial has.

        None any more once the worker was asked to stop.
        """
        if leases:
            with self.waiting():
                self._view.sync()
        leases = [lease for lease in leases if self._view.has(lease.trial_id)]  # the others' study has been deleted
        self._attempted |= {lease.trial_id for lease in leases}
        for lease in leases:
            self._view.withdraw(lease.trial_id)  # what an attempt drew up that a fault of the database ended
        recipes: dict[int, Recipe] = {}
        bare, attempt = list(leases), 0
        while bare:
            asked = (self._ask(lease, attempt, placed) for lease in bare if self.goes_on())
            drawn = [one for one in asked if one is not None]
            accepted, doubles = self._record([one for one, _ in drawn])
            recipes |= {one.lease.trial_id: recipe for one, recipe in drawn if one.lease.trial_id in accepted}
            bare = [lease for lease in bare if lease.trial_id in doubles]
            attempt += 1
        return recipes

    def _ask(self, lease: Lease, attempt: int, placed: Callable[[Recipe], Recipe]) -> tuple[Drawn, Recipe] | None:
        """Draw up one trial; None if it was enqueued with what its study does not allow: then it has failed."""
        try:
            return ask(self._view, self.study.spec, lease, attempt, self._points, placed)
        except (ValueError, UsageError) as error:
            enqueued = self._view.trial(lease.trial_id).system_attrs.get("fixed_params")
            if not enqueued:
                raise
            reason = f"it was enqueued as {enqueued}, which the study does not allow: {error}"
        self._view.withdraw(lease.trial_id)
        if not self.finish([End(lease, TrialState.FAIL, None, {REASON_KEY: reason}, event=Happening(FAILED, reason))]):
            return None  # another worker has it
        self._complaints.append(f"trial {lease.number} failed: {reason}")
        return None

    def _record(self, drawn: Sequence[Drawn]) -> tuple[set[int], set[int]]:
        with self.waiting():
            accepted, doubles = ledger.set_up(self.database, self.study.study_id, drawn)
            self._view.keep(accepted)
            for trial_id in {one.lease.trial_id for one in drawn} - accepted:
                self._view.withdraw(trial_id)  # a double, or no longer this worker's
            if doubles:
                self._view.sync()  # the trial that has the configuration may be new
        return accepted, doubles

    def _taking(self, num: int, lease_seconds: float) -> tuple[int, int, str, float, Plan, Callable[[str], str]]:
        """What the ledger wants to know of who takes trials."""
        seconds = max(self._lease_seconds, lease_seconds)
        return self.study.study_id, num, self.worker.owner, seconds, self.study.plan, self._last_words

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for the database, unless this is a thread beside the training."""
        started = time.monotonic()
        try:
            yield
        finally:
            if threading.get_ident() == self._thread:
                self._waited += time.monotonic() - started
