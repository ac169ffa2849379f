"""Known good configurations: the [[first]] sections of a study file, read as its trials record them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpsearch.relations import Draft, described, times_mistakes
from hpsearch.space import Choice, Float, Parameter, Value, active, is_kind, is_same, recorded_name, show, suggestion


def read_first(tables: object, draft: Draft) -> tuple[tuple[Mapping[str, Value], ...], list[str]]:
    """The [[first]] configurations by recorded name, in the order of the file; a factor may be given as such."""
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        return (), [f"first = {show(tables)}: must be sections, [[first]]"]
    configurations, mistakes = [], []
    for number, table in enumerate(tables, start=1):
        configuration, found = read_configuration(table, draft)
        configurations.append(configuration)
        mistakes += [f"first[{number}].{mistake}" for mistake in found]
    return tuple(configurations), mistakes


def first_mistakes(first: tuple[Mapping[str, Value], ...], budget: Any) -> Iterator[str]:
    if budget and budget.trials < len(first):
        yield f"budget.trials = {budget.trials}: must be at least {len(first)}, the number of [[first]] configurations"


def repeated_first(first: Sequence[Mapping[str, Value]]) -> Iterator[str]:
    """Configurations that say something, and the same as an earlier one."""
    for number, one in enumerate(first, start=1):
        before = [n for n, other in enumerate(first[: number - 1], start=1) if one and equal(one, other)]
        if before:
            yield f"first[{number}]: says the same as first[{before[0]}]; keep one of the two, it is trained once"


def equal(one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
    return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)


def read_configuration(table: Mapping[str, Any], draft: Draft) -> tuple[dict[str, Value], list[str]]:
    recorded = {recorded_name(name, parameter): parameter for name, parameter in draft.space.items()}
    known = {*draft.declared, *recorded}
    mistakes = [
        f"{name}: is not searched in this study{suggestion(name, sorted(draft.searched))}"
        for name in table
        if name not in known
    ]
    mistakes += [
        f"{name} = {show(table[name])}: is fixed to {show(value)} under [training]"
        for name, value in draft.training.items()
        if name in table and table[name] != value
    ]
    configuration: dict[str, Value] = {}
    for name, parameter in draft.space.items():
        if name in table or recorded_name(name, parameter) in table:
            value, mistake = read_value(name, parameter, table, draft)
            if name in table and (factor := recorded_name(name, parameter)) != name and factor in table:
                mistakes.append(f"{factor} = {show(table[factor])}: {name} says that already; keep one of the two")
            configuration |= {} if value is None else {recorded_name(name, parameter): value}
            mistakes += [mistake] if mistake else []
    return configuration, mistakes


def read_value(
    name: str, parameter: Parameter, table: Mapping[str, Any], draft: Draft
) -> tuple[Value | None, str | None]:
    """One value of a configuration as it is recorded, or the mistake in it."""
    value = written = table.get(name, table.get(recorded_name(name, parameter)))
    if not active(parameter, table):
        needed = " and ".join(f"{source} is {' or '.join(map(show, v))}" for source, v in parameter.when.items())
        return None, f"{name} = {show(written)}: is used only when {needed}"
    if isinstance(parameter, Float) and parameter.times and name in table:
        if any(times_mistakes(name, parameter.times, draft)):
            return None, None  # said already
        base = table.get(parameter.times, draft.training.get(parameter.times))
        if not is_kind(float, base) or not is_kind(float, written) or not base:
            return None, f"{name} = {show(written)}: needs {parameter.times} beside it, because it is a multiple of it"
        value = written / base
    if not isinstance(value, int | float | str) or not parameter.contains(value):
        multiple = f" times {parameter.times}" if isinstance(parameter, Float) and parameter.times else ""
        return None, f"{name} = {show(written)}: is outside [space], {described(parameter)}{multiple}"
    return exact(parameter, value), None


def exact(parameter: Parameter, value: Value) -> Value:
    """The value that the parameter holds: a float moved inside its range by rounding, a choice as it was written."""
    if isinstance(parameter, Float):
        return min(max(float(value), parameter.low), parameter.high)
    if isinstance(parameter, Choice):
        return parameter.choices[parameter.choices.index(value)]
    return value
