"""A trial that is being drawn up: samplers write into memory, and the result is recorded in one transaction."""

import copy
from typing import Any

import optuna
from optuna.distributions import BaseDistribution


class DraftStorage:
    """A storage as a trial sees it while it is asked for: it reads through, and keeps what is written to itself.

    Optuna's `suggest` writes every parameter on its own, unguarded: a worker that had lost its trial in the meantime
    would change the parameters under its next owner.
    """

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.params: dict[str, tuple[float, BaseDistribution]] = {}
        self.system_attrs: dict[str, Any] = {}

    def set_trial_param(self, trial_id: int, name: str, internal_value: float, distribution: BaseDistribution) -> None:
        """Keep a parameter, in Optuna's internal representation."""
        self.params[name] = (internal_value, distribution)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep a sampler's own note."""
        self.system_attrs[key] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


def draft(study: optuna.Study, trial_id: int) -> tuple[optuna.Trial, DraftStorage]:
    """The trial, and what is written about it until it is recorded."""
    storage = DraftStorage(study._storage)
    copied = copy.copy(study)
    copied._storage = storage  # type: ignore[assignment]
    return optuna.Trial(copied, trial_id), storage
