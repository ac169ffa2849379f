"""Events of a study: what happened to its trials beside being trained, for people who look later."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select

from hpsearch.storage.leases import now
from hpsearch.storage.open import Database
from hpsearch.storage.tables import EVENTS, TRIALS

# Kinds of events of a trial, and of the study as a whole.
ADOPTED, RELEASED, CRASHED, FAILED = "adopted", "released", "crashed", "failed"
INFEASIBLE, DIVERGED = "infeasible", "diverged"
CONTROL, REPAIRED = "control", "repaired"  # the latter may be of one trial
KINDS = (ADOPTED, RELEASED, CRASHED, FAILED, INFEASIBLE, DIVERGED, CONTROL, REPAIRED)


@dataclass(frozen=True)
class Happening:
    """Something that happened to a trial: its kind, and a sentence."""

    kind: str
    text: str


def record(connection: Connection, happenings: Sequence[tuple[int, Happening]]) -> None:
    """Note what happened to trials, by their ids; part of the caller's transaction."""
    if not happenings:
        return
    at = now(connection)
    of_trial = select(TRIALS.c.study_id).where(TRIALS.c.trial_id.in_({trial_id for trial_id, _ in happenings}))
    study_id = connection.scalars(of_trial.limit(1)).one()
    rows = [
        {"study_id": study_id, "trial_id": trial_id, "at": at, "kind": one.kind, "text": _storable(one.text)}
        for trial_id, one in happenings
    ]
    connection.execute(insert(EVENTS), rows)


def _storable(text: str) -> str:
    """What every database takes: what a network's exception says may hold bytes that are no text."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def events(database: Database, study_id: int, last: int = 50) -> list[dict[str, Any]]:
    """The study's last events, the newest first: when (seconds since 1970), trial number or None, kind, text."""
    columns = (EVENTS.c.at, TRIALS.c.number, EVENTS.c.kind, EVENTS.c.text)
    joined = select(*columns).outerjoin(TRIALS, TRIALS.c.trial_id == EVENTS.c.trial_id)
    newest = joined.where(EVENTS.c.study_id == study_id).order_by(EVENTS.c.event_id.desc()).limit(last)
    with database.engine.connect() as connection:
        return [dict(row._mapping) for row in connection.execute(newest)]
