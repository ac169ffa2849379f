"""Studies with many finished trials, made in bulk, for the benchmarks of the storage half."""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.trial import TrialState
from sqlalchemy import Table, insert

from hpsearch.search.asking import digest_of, recipe
from hpsearch.search.pruners import make_pruner, rungs
from hpsearch.search.samplers import at, distribution
from hpsearch.space import active
from hpsearch.spec import StudySpec, build, read_tables, with_overrides
from hpsearch.storage import tables
from hpsearch.storage.leases import Lease
from hpsearch.storage.ledger import Report, _epoch_row, _value_row
from hpsearch.storage.open import Database, connect, create
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy, create_study, load_study

STUDY_FILE = Path(__file__).parent.parent / "studies" / "lenet.toml"
NAME = "populated"
MEASURED = dict.fromkeys(tables.METRICS, 0.5)


@dataclass(frozen=True)
class _Past:
    """A trial that ended before the benchmark began: its id, number, parameters and last epoch."""

    trial_id: int
    number: int
    params: Mapping[str, Any]
    last_epoch: int


def lenet(*overrides: str) -> StudySpec:
    """studies/lenet.toml (ten hyperparameters, three of them conditional) with `section.key=value` applied."""
    tables = with_overrides(read_tables(STUDY_FILE.read_text(), STUDY_FILE.name), ["budget.trials=1000000", *overrides])
    return replace(build(tables, STUDY_FILE.name), first=())


def populated(url: str, spec: StudySpec, num_trials: int) -> tuple[Database, LoadedStudy]:
    """A new database with a study of `num_trials` trials that ended at the rungs where ASHA would have ended them."""
    create(url).close()
    database = connect(url)
    create_study(database, spec, NAME)
    study = load_study(database, NAME)
    if num_trials:
        past = list(_past(spec, num_trials))
        with database.engine.begin() as connection:
            for table, rows in _rows(spec, study.study_id, past).items():
                connection.execute(insert(table), rows)
        _continue_ids(database)
    return database, study


def quality(number: int, epoch: int) -> float:
    """A made-up validation accuracy: every trial has a limit of its own and comes near it with time."""
    return random.Random(number).random() * (1.0 - math.exp(-epoch / 10))


def reports(leases: Sequence[Lease], epoch: int) -> list[Report]:
    """The same epoch of many trials."""
    return [Report(lease, epoch, quality(lease.number, epoch), MEASURED, 1.0) for lease in leases]


def _past(spec: StudySpec, num_trials: int) -> Iterator[_Past]:
    ends = [*sorted(rungs(make_pruner(spec)) or ()), spec.max_epochs]
    factor = spec.pruner.factor or 3
    for number in range(num_trials):
        draw = random.Random(f"trial {number}")
        params: dict[str, Any] = {}
        for name, parameter in spec.parameters.items():
            if active(parameter, params):
                params[name] = at(parameter, draw.random())
        passed = int(math.log(1.0 / (1.0 - draw.random()), factor))  # rungs: one in `factor` passes each
        yield _Past(number + 1, number, params, ends[min(passed, len(ends) - 1)])


def _rows(spec: StudySpec, study_id: int, past: Sequence[_Past]) -> dict[Table, list[dict[str, Any]]]:
    kinds = {name: distribution(parameter) for name, parameter in spec.parameters.items()}
    texts = {name: distribution_to_json(kind) for name, kind in kinds.items()}
    at_end = datetime.now(UTC).replace(tzinfo=None)
    found: dict[Table, list[dict[str, Any]]] = {table: [] for table in _TABLES}
    for one in past:
        key = {"trial_id": one.trial_id}
        complete = one.last_epoch == spec.max_epochs
        state = TrialState.COMPLETE if complete else TrialState.PRUNED
        row: dict[str, Any] = {"study_id": study_id, "number": one.number, "state": state}
        found[tables.TRIALS].append(key | row | {"datetime_start": at_end, "datetime_complete": at_end})
        for name, value in one.params.items():
            row = {"param_name": name, "param_value": kinds[name].to_internal_repr(value)}
            found[tables.PARAMS].append(key | row | {"distribution_json": texts[name]})
        lease = Lease(one.trial_id, one.number, "past", 1)
        for epoch in range(1, one.last_epoch + 1):
            report = Report(lease, epoch, quality(one.number, epoch), MEASURED)
            found[tables.INTERMEDIATE_VALUES].append(_value_row(report))
            found[tables.EPOCHS].append(_epoch_row(report))
        row = {"objective": 0, "value": quality(one.number, one.last_epoch), "value_type": "FINITE"}
        found[tables.VALUES].append(key | row)
        text = json.dumps(recipe(spec, one.params, one.number).as_dict())
        found[tables.USER_ATTRIBUTES].append(key | {"key": RECIPE_KEY, "value_json": text})
        row = {"owner": "past", "token": 1, "expires": 0.0, "crashes": 0, "seconds": 1.0}
        found[tables.LEASES].append(key | row | {"epoch": one.last_epoch})
        found[tables.CONFIGURATIONS].append(key | {"study_id": study_id, "digest": digest_of(one.params, None)})
    return found


def _continue_ids(database: Database) -> None:
    """Let PostgreSQL number new trials after those that were given their ids here; SQLite does so by itself."""
    if database.engine.dialect.name == "postgresql":
        with database.engine.begin() as connection:
            last = "SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), max(trial_id)) FROM trials"
            connection.exec_driver_sql(last)
    with database.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")


_TABLES = (
    tables.TRIALS,
    tables.PARAMS,
    tables.INTERMEDIATE_VALUES,
    tables.EPOCHS,
    tables.VALUES,
    tables.USER_ATTRIBUTES,
    tables.LEASES,
    tables.CONFIGURATIONS,
)
