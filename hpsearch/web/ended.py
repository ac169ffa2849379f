"""What optuna-dashboard sends of the trials of a study, with ended ones written once: they never change.

It writes all of them anew for every look at a study, which takes seven seconds at 10,000 trials of 50 values.
"""

import json
import threading
from collections import OrderedDict
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna_dashboard._serializer import serialize_frozen_trial

MAX_STUDIES = 2  # whose trials are kept, each about 5 kB with 50 values


class EndedTrials:
    """The trials that have ended, as JSON, of the studies that were looked at last."""

    def __init__(self, storage: BaseStorage) -> None:
        self._storage, self._lock = storage, threading.Lock()
        self._kept: OrderedDict[int, tuple[dict[str, Any], dict[int, bytes]]] = OrderedDict()

    def trials(self, study_id: int, after: int) -> bytes:
        """A JSON list of the study's trials, but for the first `after` of them.

        Raises:
            KeyError: there is no such study.
        """
        with self._lock:
            attributes = self._storage.get_study_system_attrs(study_id)  # notes on trials are kept there
            known, written = self._kept.pop(study_id, (attributes, {}))
            if known != attributes:
                written = {}
            self._kept[study_id] = attributes, written
            while len(self._kept) > MAX_STUDIES:
                self._kept.popitem(last=False)
            trials = self._storage.get_all_trials(study_id, deepcopy=False)[after:]
            return b"[" + b", ".join(_json(study_id, trial, attributes, written) for trial in trials) + b"]"


def _json(study_id: int, trial: FrozenTrial, attributes: dict[str, Any], written: dict[int, bytes]) -> bytes:
    if (known := written.get(trial.number)) is not None:
        return known
    made = json.dumps(serialize_frozen_trial(study_id, trial, attributes)).encode()
    if trial.state.is_finished():
        written[trial.number] = made
    return made
