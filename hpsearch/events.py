"""What a worker tells the person who watches it: small frozen values that travel as lines of JSON."""

import json
from dataclasses import asdict, dataclass
from typing import get_args


@dataclass(frozen=True)
class StudyOpened:
    """A worker has loaded the study and its data and is about to take trials."""

    study: str
    metric: str
    device: str
    max_trials: int
    finished: int
    best_number: int | None
    best_value: float | None


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins; it has at most so many epochs."""

    trial: int
    epochs: int


@dataclass(frozen=True)
class TrialResumed:
    """The trial goes on from a checkpoint of its last owner, after `epoch`."""

    trial: int
    epoch: int
    epochs: int


@dataclass(frozen=True)
class EpochDone:
    """One epoch of a trial has been trained and recorded; `value` is the objective."""

    trial: int
    epoch: int
    epochs: int
    value: float
    images_per_second: float


LOST_STATE = "LOST"


@dataclass(frozen=True)
class TrialEnded:
    """A trial has ended here: COMPLETE, PRUNED, FAIL, WAITING when it was given back, LOST when another has it."""

    trial: int
    state: str
    epoch: int
    value: float | None
    reason: str
    finished: int
    max_trials: int  # which `extend` may have raised; 0 while the storage is away
    best_number: int | None
    best_value: float | None


@dataclass(frozen=True)
class WorkerLeft:
    """The worker takes no more trials, and why."""

    reason: str
    interrupted: bool = False


@dataclass(frozen=True)
class WorkerWarned:
    """Something that a person should mend, but that stops nothing."""

    message: str


@dataclass(frozen=True)
class WorkerFailed:
    """The worker ends by an error: its sentence, and the exit code of its process."""

    message: str
    code: int


Event = StudyOpened | TrialStarted | TrialResumed | EpochDone | TrialEnded | WorkerLeft | WorkerWarned | WorkerFailed

_KINDS = {kind.__name__: kind for kind in get_args(Event)}


def to_json(event: Event) -> str:
    """One line, without the line's end."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_json(line: str) -> Event:
    """The event of one line.

    Raises:
        ValueError: the line is not one that `to_json` made.
    """
    fields = json.loads(line)
    try:
        event: Event = _KINDS[fields.pop("event")](**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of a worker: {line[:200]!r}") from error
    return event
