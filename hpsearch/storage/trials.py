"""Optuna's storage, which reads all trials of a study by one statement for each table.

Optuna itself makes an object of each row first. Figures: "Reading a large study" in docs/benchmarks.md.
"""

from collections.abc import Container

from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, or_, select

from hpsearch.storage import bulk, snapshot
from hpsearch.storage.tables import STUDIES, SYSTEM_ATTRIBUTES, TRIALS, USER_ATTRIBUTES


class BulkStorage(RDBStorage):
    """As Optuna's, with the same trials in less time and memory; those of one reading share their distributions."""

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """The study's trials after that id, and the included ones, by id.

        Raises:
            KeyError: there is no such study.
        """
        included = {trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than}
        with self.engine.connect() as connection:
            if connection.scalar(select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)) is None:
                raise KeyError(models.NOT_FOUND_MSG)
            found = _read(connection, study_id, included, trial_id_greater_than)
        return [trial for trial in found if states is None or trial.state in states]


def _read(connection: Connection, study_id: int, included: set[int], after: int) -> list[FrozenTrial]:
    of = TRIALS.c.study_id == study_id
    if after >= 0 and len(included) <= snapshot.MAX_IDS:
        of &= or_(TRIALS.c.trial_id > after, bulk.among(connection, TRIALS.c.trial_id, included))
    # First the trials: what has ended is whole, and what has not may be newer than its state.
    rows = [row for row in snapshot.rows(connection, of) if row.trial_id > after or row.trial_id in included]
    params, objectives = snapshot.params(connection, of, {}), snapshot.objectives(connection, of)
    user, system = (snapshot.attributes(connection, table, of) for table in (USER_ATTRIBUTES, SYSTEM_ATTRIBUTES))
    trials: dict[int, FrozenTrial] = {}
    for row in sorted(rows, key=lambda row: row.trial_id):
        key, (values, kinds) = row.trial_id, params.get(row.trial_id, ({}, {}))
        when, own = (row.datetime_start, row.datetime_complete), (user.get(key, {}), system.get(key, {}))
        trials[key] = FrozenTrial(
            row.number, row.state, None, *when, values, kinds, *own, {}, key, values=objectives.get(key)
        )
    for trial_id, step, value in snapshot.values(connection, of):
        if trial_id in trials:
            trials[trial_id].intermediate_values[step] = value
    return list(trials.values())
