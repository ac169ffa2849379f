"""Promises about curves: each is 1 to n, both tables say the same, and a trial's value is the last one.

Two tables hold the objective of each epoch, so that what one has lost the other still knows.
"""

import math
from collections.abc import Iterator
from typing import Any

from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, delete, insert, update

from hpsearch.storage.checks import facts as reading
from hpsearch.storage.checks.facts import Facts, Trial
from hpsearch.storage.checks.findings import Finding, about
from hpsearch.storage.ledger import objective_row
from hpsearch.storage.tables import EPOCHS, INTERMEDIATE_VALUES, LEASES, VALUES

NOT_MADE_UP = "what was not recorded is not made up; only training again would tell"


def check_curves(connection: Connection, facts: Facts) -> Iterator[Finding]:
    """Epochs 1 to n, in Optuna's table and in hpsearch's own, with the same values."""
    metric = facts.study.spec.objective.metric
    broken = [trial for trial in facts.trials if not trial.foreign and not trial.curve_is_whole]
    curves = reading.curves(connection, [trial.trial_id for trial in broken], metric)
    for trial in broken:
        values, measured = curves[trial.trial_id]
        curve = _Curve(values, measured, trial.recipe.epochs if trial.recipe is not None else None)
        if not curve.bad:
            yield _restored(trial, curve, metric)
        elif trial.ended:
            yield about(trial, "curve", curve.complaint, why_not=NOT_MADE_UP)
        else:
            does = f"goes back to epoch {curve.good}, from where the next worker trains it again"
            yield about(trial, "curve", curve.complaint, _cut_back(trial.trial_id, curve.good), does)


def check_values(facts: Facts) -> Iterator[Finding]:
    """COMPLETE and PRUNED trials have the value of their last epoch, and those that have not ended have none."""
    for trial in facts.trials:
        if trial.foreign or not trial.curve_is_whole:
            continue
        finite = trial.values.count > 0 and math.isfinite(trial.last_value)
        if not trial.ended and trial.objective is not None:
            cure = (delete(VALUES).where(VALUES.c.trial_id == trial.trial_id),)
            text = f"it is {trial.state.name} and has a final value already"
            yield about(trial, "value", text, cure, "removes it: the trial gets its value when it ends")
        elif trial.state == TrialState.COMPLETE:
            yield from _check_complete(trial, finite)
        elif trial.state == TrialState.PRUNED and not (trial.objective is None and (trial.infeasible or not finite)):
            yield from _check_last(trial, finite)
        elif trial.state == TrialState.FAIL and not trial.reason:
            yield about(trial, "reason", "it is FAIL without a reason: it was ended past hpsearch", damage=False)


class _Curve:
    """One damaged curve: what can be restored, what is bad, and up to which epoch all is good."""

    def __init__(self, values: dict[int, float], measured: dict[int, float | None], most: int | None) -> None:
        self.values, self.measured = values, measured
        known = values.keys() | measured.keys()
        # An epoch that only hpsearch's table has can be restored, unless its value was not finite.
        unknown = {epoch for epoch in measured.keys() - values.keys() if measured[epoch] is None}
        missing = set(range(1, max(known, default=0) + 1)) - known
        outside = {epoch for epoch in known if epoch < 1 or (most is not None and epoch > most)}
        differing = {epoch for epoch in values.keys() & measured.keys() if _differ(values[epoch], measured[epoch])}
        self.bad = missing | unknown | outside | differing
        self.good = min((epoch for epoch in self.bad if epoch > 0), default=max(known, default=0) + 1) - 1
        parts = (
            ("has no {}", missing | unknown),
            ("has {}, which the recipe has not", outside),
            ("has two values for {}", differing),
        )
        self.complaint = "its curve " + ", ".join(text.format(_named(found)) for text, found in parts if found)


def _differ(value: float, measured: float | None) -> bool:
    if math.isnan(value):
        return False  # diverged, whatever was measured
    return measured is not None if math.isinf(value) else measured != value


def _named(epochs: set[int]) -> str:
    first = sorted(epochs)[:5]
    more = f" and {len(epochs) - len(first)} more" if len(epochs) > len(first) else ""
    return f"epoch {', '.join(map(str, first))}{more}"


def _restored(trial: Trial, curve: _Curve, metric: str) -> Finding:
    """Each table gets from the other what it lacks."""
    no_value, no_row = curve.measured.keys() - curve.values.keys(), curve.values.keys() - curve.measured.keys()
    cure: list[Any] = []
    if no_value:
        rows = [_value_row(trial.trial_id, epoch, curve.measured[epoch]) for epoch in sorted(no_value)]
        cure.append(insert(INTERMEDIATE_VALUES).values(rows))
    if no_row:
        finite = {epoch: value if math.isfinite(value := curve.values[epoch]) else None for epoch in sorted(no_row)}
        rows = [{"trial_id": trial.trial_id, "epoch": epoch, metric: value} for epoch, value in finite.items()]
        cure.append(insert(EPOCHS).values(rows))
    told = [f"Optuna's table has no {_named(no_value)}"] if no_value else []
    told += [f"hpsearch's own table has no {_named(no_row)}"] if no_row else []
    lost = "; the other metrics of it are lost" if no_row else ""
    return about(trial, "curve", " and ".join(told), tuple(cure), f"takes {metric} from the other table{lost}")


def _value_row(trial_id: int, step: int, value: float | None) -> dict[str, Any]:
    assert value is not None
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}


def _cut_back(trial_id: int, epoch: int) -> tuple[Any, ...]:
    tables = ((INTERMEDIATE_VALUES, "step"), (EPOCHS, "epoch"))
    outside = [(table, (table.c[column] > epoch) | (table.c[column] < 1)) for table, column in tables]
    cuts = [delete(table).where(table.c.trial_id == trial_id, rows) for table, rows in outside]
    return (*cuts, update(LEASES).where(LEASES.c.trial_id == trial_id).values(epoch=epoch))


def _check_complete(trial: Trial, finite: bool) -> Iterator[Finding]:
    last = trial.recipe.epochs if trial.recipe is not None else None
    if trial.values.last != last:
        text = f"it is COMPLETE after {trial.values.last} of {last} epochs"
        yield about(trial, "value", text, why_not=f"it was ended past hpsearch, or epochs are lost; {NOT_MADE_UP}")
    else:
        yield from _check_last(trial, finite)


def _check_last(trial: Trial, finite: bool) -> Iterator[Finding]:
    if finite and trial.objective == trial.last_value:
        return
    found = "no value" if trial.objective is None else f"the value {trial.objective!r}"
    text = f"it is {trial.state.name} with {found}, its curve ends with {trial.last_value!r}"
    if not finite:
        yield about(trial, "value", text, why_not="the last epoch gave no finite number to take instead")
        return
    gone = delete(VALUES).where(VALUES.c.trial_id == trial.trial_id)
    cure = (gone, insert(VALUES).values(objective_row(trial.trial_id, trial.last_value)))
    yield about(trial, "value", text, cure, "believes the curve")
