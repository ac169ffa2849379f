"""Epochs of many trials recorded by one statement, in one journey to PostgreSQL: training waits for it at every rung.

What `ledger.report` does in six on SQLite, where a journey costs nothing: leases are held and renewed, values and
metrics written. The parts of a statement see what was committed before it; the leases are locked before anything is
written, and looked at again if somebody else changed them meanwhile.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import (
    CTE,
    Connection,
    Double,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql

from hpsearch.storage.leases import Lease, renewal
from hpsearch.storage.tables import EPOCHS, INTERMEDIATE_VALUES, LEASES, METRICS, TRIALS

_VALUE = ("intermediate_value", "intermediate_value_type")
_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("trial_id", "token", "epoch", "step"), Integer()),
    "owner": Text(),
    **dict.fromkeys(("expires", "seconds", *METRICS), Double()),  # `expires`: seconds from now
    **{name: INTERMEDIATE_VALUES.c[name].type for name in _VALUE},
}


def record(connection: Connection, epochs: Sequence[tuple[Lease, Mapping[str, Any]]]) -> set[int]:
    """Record rows with the columns of LEASES, EPOCHS and INTERMEDIATE_VALUES; the ids of trials still held."""
    rows = [{**row, "owner": lease.owner, "token": lease.token} for lease, row in epochs]
    given = json.dumps(rows, allow_nan=False, default=lambda value: value.name)
    return set(connection.scalars(_statement(), {"given": given}))


@cache
def _statement() -> Select[Any]:
    rows = func.json_to_recordset(cast(bindparam("given", type_=Text), postgresql.JSON))
    columns = [column(name, kind) for name, kind in _KINDS.items()]
    given = rows.table_valued(*columns).render_derived("given", with_types=True)
    own = (LEASES.c.trial_id == given.c.trial_id) & (LEASES.c.owner == given.c.owner)
    own &= LEASES.c.token == given.c.token
    running = (TRIALS.c.trial_id == LEASES.c.trial_id) & (TRIALS.c.state == TrialState.RUNNING)
    mine = select(*given.c).select_from(given).join(LEASES, own).join(TRIALS, running)
    held = mine.with_for_update(of=(LEASES, TRIALS)).cte("held")
    leases = update(LEASES).where(LEASES.c.trial_id == held.c.trial_id).values(renewal("postgresql", held.c))
    values = _upsert(INTERMEDIATE_VALUES, held, ("trial_id", "step"), _VALUE)
    epochs = _upsert(EPOCHS, held, ("trial_id", "epoch"), METRICS)
    return select(held.c.trial_id).add_cte(leases.cte("renewed"), values, epochs)


def _upsert(table: Table, held: CTE, key: tuple[str, ...], others: tuple[str, ...]) -> CTE:
    names = [*key, *others]
    rows = select(*(held.c[name] for name in names))
    insertion = postgresql.insert(table).from_select(names, rows, include_defaults=False)
    changed = {name: insertion.excluded[name] for name in others}
    return insertion.on_conflict_do_update(index_elements=key, set_=changed).cte(f"{table.name}_written")
