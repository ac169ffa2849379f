"""The view: a worker's copy of the study in memory, from which samplers suggest and on which the pruner decides.

Per call, Optuna reads every running trial with all its values again. The view asks the database what has changed since
it last looked, a few statements however many trials there are, and Optuna's samplers and pruners work on the copy. What
they write, parameters and notes of a trial that is being drawn up, stays in the view until the ledger records it.
"""

from collections.abc import Container, Iterable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from hpsearch.storage import bulk, snapshot
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy
from hpsearch.storage.tables import TRIALS


class View:
    """The trials of one study, as of the last `sync`.

    `study` is an Optuna study over them. If `rungs` are given, nothing reads the values of other epochs: only those and
    the last one at each `sync` are kept.
    """

    def __init__(self, database: Database, study: LoadedStudy, rungs: frozenset[int] | None = None) -> None:
        self._database, self._study_id, self._rungs = database, study.study_id, rungs
        self._trials: dict[int, FrozenTrial] = {}  # by id, in the order of their numbers
        self._open: set[int] = set()  # ids of those that had not ended
        self._distributions: dict[str, BaseDistribution] = {}
        self._storage = ViewStorage(self._trials)
        direction = study.spec.objective.direction
        self.study = optuna.create_study(storage=self._storage, study_name=study.name, direction=direction)

    def sync(self) -> None:
        """Take in what has changed in the database."""
        with self._database.statements() as connection:
            rows = snapshot.open_trials(connection, self._study_id, len(self._trials))
            ended = self._open - {row.trial_id for row in rows}
            if not self._trials:
                self._load(connection, rows)
            else:
                self._update(connection, [*snapshot.trials(connection, ended), *rows])
        self._open = {trial_id for trial_id in self._open if not self._trials[trial_id].state.is_finished()}
        self.forget_cache()

    def trial(self, trial_id: int) -> FrozenTrial:
        """One trial; it must have been there at the last `sync`."""
        return self._trials[trial_id]

    def has(self, trial_id: int) -> bool:
        """Whether the trial was there at the last `sync`."""
        return trial_id in self._trials

    def trials(self) -> Iterable[FrozenTrial]:
        """All of them, by number."""
        return self._trials.values()

    def draft(self, trial_id: int) -> tuple[optuna.Trial, "Drafts"]:
        """The trial, for samplers to draw up, and what they write about it."""
        drafts = self._storage.drafts[trial_id] = Drafts()
        self.forget_cache()
        return optuna.Trial(self.study, trial_id), drafts

    def withdraw(self, trial_id: int) -> None:
        """Forget the parameters of a trial that was drawn up, and what its sampler noted."""
        trial = self._trials[trial_id]
        trial.params, trial.distributions = {}, {}
        for key in self._storage.drafts.pop(trial_id, Drafts()).system_attrs:
            trial.system_attrs.pop(key, None)

    def keep(self, trial_ids: Iterable[int]) -> None:
        """What was drawn up of these trials is recorded, and stays as it is."""
        for trial_id in trial_ids:
            self._storage.drafts.pop(trial_id, None)

    def forget_cache(self) -> None:
        """Optuna keeps the list of trials of the last `ask`; nobody calls that here."""
        self.study._thread_local.cached_all_trials = None

    def _load(self, connection: Connection, rows: Iterable[Any]) -> None:
        of_study = TRIALS.c.study_id == self._study_id
        params = snapshot.params(connection, of_study, self._distributions)
        attributes = snapshot.sampler_attributes(connection, of_study)
        objectives = snapshot.objectives(connection, of_study)
        for row in rows:
            self._add(row, params.get(row.trial_id), attributes.get(row.trial_id, {}))
            self._end(row, objectives)
        self._take_values(connection, of_study, 0, self._rungs)

    def _update(self, connection: Connection, rows: list[Any]) -> None:
        """Take in trials that are new, or had not ended when last seen."""
        bare = [row.trial_id for row in rows if not self._known_params(row.trial_id)]
        behind = [row for row in rows if self._last_epoch(row.trial_id) < (row.epoch or 0)]
        resumed = [row.trial_id for row in rows if _may_have_gone_back(row)]
        params: dict[int, snapshot.Params] = {}
        attributes: dict[int, dict[str, Any]] = {}
        objectives: dict[int, list[float]] = {}
        for ids in snapshot.batches(bare):
            params |= snapshot.params(connection, bulk.among(connection, TRIALS.c.trial_id, ids), self._distributions)
        for ids in snapshot.batches(
            row.trial_id for row in rows if row.trial_id in params or self._needs_attributes(row)
        ):
            attributes |= snapshot.sampler_attributes(connection, bulk.among(connection, TRIALS.c.trial_id, ids))
        for ids in snapshot.batches(row.trial_id for row in rows if row.state.is_finished()):
            objectives |= snapshot.objectives(connection, bulk.among(connection, TRIALS.c.trial_id, ids))
        for row in rows:
            if row.trial_id not in self._trials:
                self._add(row, params.get(row.trial_id), attributes.get(row.trial_id, {}))
            elif row.trial_id in params:
                self._trials[row.trial_id].params, self._trials[row.trial_id].distributions = params[row.trial_id]
            self._trials[row.trial_id].system_attrs.update(attributes.get(row.trial_id, {}))
            self._end(row, objectives)
        for trial_id in resumed:
            self._trials[trial_id].intermediate_values = {}
        for ids in snapshot.batches(resumed):
            self._take_values(connection, bulk.among(connection, TRIALS.c.trial_id, ids), 0, self._rungs)
        for ids in snapshot.batches(row.trial_id for row in behind if not _may_have_gone_back(row)):
            after = min(self._last_epoch(trial_id) for trial_id in ids)
            self._take_values(connection, bulk.among(connection, TRIALS.c.trial_id, ids), after, self._rungs)

    def _add(self, row: Any, params: snapshot.Params | None, attrs: dict[str, Any]) -> None:
        values, kinds = params or ({}, {})
        start, end = row.datetime_start, row.datetime_complete
        trial = FrozenTrial(row.number, row.state, None, start, end, values, kinds, {}, attrs, {}, row.trial_id)
        self._trials[row.trial_id] = trial
        self._open.add(row.trial_id)

    def _end(self, row: Any, objectives: dict[int, list[float]]) -> None:
        trial = self._trials[row.trial_id]
        trial.state, trial.datetime_start, trial.datetime_complete = (
            row.state,
            row.datetime_start,
            row.datetime_complete,
        )
        if row.trial_id in objectives:
            trial.values = objectives[row.trial_id]

    def _take_values(self, connection: Connection, of: Any, after: int, steps: frozenset[int] | None) -> None:
        for trial_id, step, value in snapshot.values(connection, of, after, steps):
            if trial_id in self._trials:
                self._trials[trial_id].intermediate_values[step] = value

    def _known_params(self, trial_id: int) -> bool:
        return trial_id in self._trials and bool(self._trials[trial_id].params)

    def _last_epoch(self, trial_id: int) -> int:
        trial = self._trials.get(trial_id)
        return max(trial.intermediate_values, default=0) if trial is not None else 0

    def _needs_attributes(self, row: Any) -> bool:
        return row.trial_id not in self._trials or row.state.is_finished()


def _may_have_gone_back(row: Any) -> bool:
    """Whether epochs may have been removed, and recorded again: a second owner goes on from a checkpoint."""
    return row.token is not None and (row.token > 1 or row.state == TrialState.WAITING)


class Drafts:
    """What samplers wrote about one trial: parameters in Optuna's internal representation, and their own notes."""

    def __init__(self) -> None:
        self.params: dict[str, tuple[float, BaseDistribution]] = {}
        self.system_attrs: dict[str, Any] = {}


class ViewStorage(InMemoryStorage):
    """What Optuna's studies, samplers and pruners see of trials by id; nothing that they write reaches the database."""

    def __init__(self, trials: dict[int, FrozenTrial]) -> None:
        super().__init__()
        self._view_trials = trials
        self.drafts: dict[int, Drafts] = {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials themselves, never copies: nobody here changes them."""
        if states is None:
            return list(self._view_trials.values())
        return [trial for trial in self._view_trials.values() if trial.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The trial itself."""
        return self._view_trials[trial_id]

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """The trial's own."""
        return self._view_trials[trial_id].system_attrs

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Keep it for the ledger; `Trial` itself shows it in the view."""
        self.drafts[trial_id].params[param_name] = (param_value_internal, distribution)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep it for the ledger, and show it."""
        self.drafts[trial_id].system_attrs[key] = value
        self._view_trials[trial_id].system_attrs[key] = value
