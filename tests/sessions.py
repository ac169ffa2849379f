"""A worker's session as tests and benchmarks drive it: what workers do in several steps, in one."""

from collections.abc import Sequence

from hpsearch.search.session import Assignment, Session, Verdict
from hpsearch.storage.ledger import Report


def take(session: Session, num: int) -> tuple[Assignment, ...]:
    """Take up to `num` trials, and draw up those that are new."""
    return session.assign(session.lease(num).leases)


def report(session: Session, reports: Sequence[Report], lease_seconds: float = 60.0, speed: float = 1.0) -> Verdict:
    """Record one epoch of each trial, give a sign of life if it is due, and decide."""
    kept = session.record(reports, lease_seconds)
    session.beat_if_due(speed)
    return session.decide(reports, kept)
