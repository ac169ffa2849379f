"""The stock: trials that a worker holds and that have not begun, ready for the lanes that become free."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from hpsearch.recipe import Recipe
from hpsearch.search.session import Assignment, Session
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Taken
from hpsearch.train.plan import Stream

ASK_AGAIN_SECONDS = 2.0  # after there was nothing more to take, while some lanes train and others are free
RENEW = 0.25  # of the time of a lease: then it is renewed

Placed = Callable[[Recipe], Recipe]


class Stock:
    """Trials of one worker, by id: `leases` are all that it holds; `drawn` are those that can begin.

    Of these it is recorded what they train, the place in their stream where they join others included.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.leases: dict[int, Lease] = {}
        self._drawn: dict[int, Assignment] = {}
        self._asked_in_vain = -ASK_AGAIN_SECONDS
        self._renewed = 0.0  # when the oldest of the leases was, at the earliest

    def __len__(self) -> int:
        return len(self.leases)

    @property
    def drawn(self) -> Mapping[int, Assignment]:
        """What it is to train."""
        return self._drawn

    @property
    def patient(self) -> bool:
        """Whether nothing more was there to take a moment ago."""
        return time.monotonic() - self._asked_in_vain < ASK_AGAIN_SECONDS

    def hold(self, num_asked: int, taken: Taken | None) -> None:
        """Put trials in; None: others were starting trials."""
        if taken is not None:
            self._renewed = self._renewed if self.leases else time.monotonic()
            for lease in taken.leases:
                self._drawn.pop(lease.trial_id, None)  # it was lost, and taken again
                self.leases[lease.trial_id] = lease
            if len(taken.leases) < num_asked:
                self._asked_in_vain = time.monotonic()

    def draw_up(self, placed: Placed) -> None:
        """Draw up those that are not; `placed` says with which recipe a trial begins here."""
        bare = [lease for trial_id, lease in self.leases.items() if trial_id not in self._drawn]
        if not bare:
            return
        drawn = {one.lease.trial_id: one for one in self._session.assign(bare, placed)}
        self._drawn |= drawn
        for lease in bare if self._session.goes_on() else ():  # or it is still to be drawn up, by another worker
            if lease.trial_id not in drawn:
                del self.leases[lease.trial_id]  # it is not this worker's any more

    def prepare(self, placed: Placed, lease_seconds: float) -> None:
        """Keep what is drawn up ready: record where it joins others now, and renew the leases."""
        moved = {trial_id: _moved(one, placed) for trial_id, one in self._drawn.items()}
        young = time.monotonic() - self._renewed < RENEW * lease_seconds
        if moved == self._drawn and (young or not moved):
            return
        held = self._session.prepare({one.lease: one.recipe for one in moved.values()}, lease_seconds)
        for trial_id in moved.keys() - held:
            del self.leases[trial_id]
        self._drawn, self._renewed = {key: one for key, one in moved.items() if key in held}, time.monotonic()

    def pop(self, trial_id: int) -> None:
        """Take one out: it begins, or is given back."""
        del self.leases[trial_id]
        self._drawn.pop(trial_id, None)

    def give_back(self) -> None:
        """Let others have all of them."""
        self._session.release([(lease, lease.epoch) for lease in self.leases.values()], "it had not begun")
        self.leases, self._drawn = {}, {}


def joining(positions: Mapping[Stream, int] | None) -> Placed:
    """Gives recipes the place in their stream at which they can join trials that are on their way, if they are to."""
    if positions is None:
        return lambda recipe: recipe
    return lambda recipe: replace(recipe, stream_offset=positions.get(Stream.of(recipe), 0))


def _moved(one: Assignment, placed: Placed) -> Assignment:
    """With the recipe with which it begins now, if no epoch of it was trained with the one that it has."""
    is_new = one.lease.epoch == 0 and one.lease.crashes == 0
    return replace(one, recipe=placed(one.recipe)) if is_new else one
