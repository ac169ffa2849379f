"""What a study searches over: Float, Int and Choice, with conditions, as frozen values that know no sampler.

A space is a mapping from the name of a hyperparameter to its parameter. A parameter with `when` exists only in trials
where the named hyperparameters took one of the given values. A Float with `times` is a factor: what is sampled, and
recorded as `<name>_factor`, multiplies the hyperparameter that `times` names.
"""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any, TypeAlias

from hpsearch.errors import StudyFileError

Value: TypeAlias = int | float | str
Conditions: TypeAlias = Mapping[str, tuple[Value, ...]]

FEW = 8  # so many known words are listed even beside the nearest one
MOST_STEPS = 1e19  # decimals, here and in Optuna, have 28 digits; every range of 64 bits has fewer
NEAR = 1e-9  # relative distance at which two floats count as equal: 0.3 / 0.1 is 2.9999999999999996


@dataclass(frozen=True)
class Float:
    """Real numbers from low to high, both included; on a log scale, or in steps, if asked for.

    Raises StudyFileError with every rule that the values break, as all parameters do.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    times: str | None = None
    when: Conditions = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse([*range_mistakes(self.low, self.high, self.log, self.step), *when_mistakes(self.when)])
        if self.step is not None and self.log:
            refuse([f"step = {self.step}: cannot be combined with log = true"])

    def contains(self, value: Value) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        margin = NEAR * max(abs(self.low), abs(self.high))
        below, above = (NEAR * self.low, NEAR * self.high) if self.log else (margin, margin)
        inside = self.low - below <= value <= self.high + above
        return inside and (self.step is None or near_multiple(value - self.low, self.step))


@dataclass(frozen=True)
class Int:
    """Whole numbers from low to high, both included, in steps or on a log scale."""

    low: int
    high: int
    step: int = 1
    log: bool = False
    when: Conditions = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse([*range_mistakes(self.low, self.high, self.log, self.step), *when_mistakes(self.when)])
        if self.step != 1 and self.log:
            refuse([f"step = {self.step}: cannot be combined with log = true"])

    def contains(self, value: Value) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (value - self.low) % self.step == 0


@dataclass(frozen=True)
class Choice:
    """One of a few values, without an order."""

    choices: tuple[Value, ...]
    when: Conditions = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse([*choices_mistakes(self.choices), *when_mistakes(self.when)])

    def contains(self, value: Value) -> bool:
        return value in self.choices and not isinstance(value, bool)  # True == 1


Parameter: TypeAlias = Float | Int | Choice
Space: TypeAlias = Mapping[str, Parameter]


# What a trial asks for, and in which order


def recorded_name(name: str, parameter: Parameter) -> str:
    """The name under which a trial records what was sampled."""
    return f"{name}_factor" if isinstance(parameter, Float) and parameter.times else name


def order(space: Space) -> tuple[str, ...]:
    """Hyperparameters in an order in which each comes after those that its `when` and `times` name.

    Raises StudyFileError that names the circle, if they depend on each other in one.
    """
    done: dict[str, None] = {}
    waiting = dict.fromkeys(space)
    while waiting:
        ready = [name for name in waiting if not (sources(space[name]) & waiting.keys())]
        if not ready:
            raise StudyFileError([f"space: {' and '.join(sorted(waiting))} depend on each other in a circle"])
        done |= dict.fromkeys(ready)
        waiting = {name: None for name in waiting if name not in done}
    return tuple(done)


def num_values(parameter: Parameter) -> int | None:
    """How many values the parameter has; None if it is a range without steps."""
    if isinstance(parameter, Choice):
        return len(parameter.choices)
    if parameter.low == parameter.high:
        return 1
    if parameter.step is None:
        return None
    if isinstance(parameter, Int):
        return (parameter.high - parameter.low) // parameter.step + 1
    return math.floor((parameter.high - parameter.low) / parameter.step + NEAR) + 1


def value_at(parameter: Parameter, index: int) -> Value:
    """One of the values that `num_values` counts."""
    if isinstance(parameter, Choice):
        return parameter.choices[index]
    # As Optuna computes it: 0.1 + 2 * 0.1 is above 0.3, which it would refuse.
    return min(parameter.low + index * (parameter.step or 1), parameter.high)


def num_combinations(space: Space) -> int | None:
    """How many configurations there are at most, conditions aside; None if there is no end to them."""
    numbers = [num_values(parameter) for parameter in space.values()]
    return None if None in numbers else math.prod(number for number in numbers if number is not None)


def configurations(space: Space, most: int) -> list[dict[str, Any]] | None:
    """Every configuration, by recorded names, in the order of the study file; None if there are more than `most`."""
    if num_combinations(space) is None:
        return None
    found: Iterator[dict[str, Any]] = iter([{}])
    for name, parameter in asked(space).items():
        found = widened(found, name, parameter)
    listed = list(islice(found, most + 1))
    return listed if len(listed) <= most else None


def widened(found: Iterable[dict[str, Any]], name: str, parameter: Parameter) -> Iterator[dict[str, Any]]:
    """Each with every value of one more parameter, where its conditions hold."""
    for chosen in found:
        if active(parameter, chosen):
            yield from ({**chosen, name: value_at(parameter, index)} for index in range(num_values(parameter) or 0))
        else:
            yield chosen


def sources(parameter: Parameter) -> set[str]:
    """The hyperparameters that decide whether, or as what, a parameter enters a trial."""
    times = parameter.times if isinstance(parameter, Float) else None
    return {*parameter.when, *([times] if times else [])}


def asked(space: Space) -> dict[str, Parameter]:
    """Recorded name to parameter, in the order in which a trial asks: skip those that are not `active`."""
    return {recorded_name(name, space[name]): space[name] for name in order(space)}


def active(parameter: Parameter, chosen: Mapping[str, Any]) -> bool:
    """Whether a trial has this parameter, given what it has chosen so far; a missing source counts as not chosen."""
    return all(
        name in chosen and any(is_same(chosen[name], value) for value in allowed)
        for name, allowed in parameter.when.items()
    )


def is_same(chosen: Value, value: Value) -> bool:
    """Whether a trial has chosen this value: the third step of 0.1 is 0.30000000000000004, and the file says 0.3."""
    if isinstance(chosen, float) and isinstance(value, int | float):
        return math.isclose(chosen, value, rel_tol=NEAR)
    return chosen == value


# From and to the tables of a study file


def from_table(kind: type, table: object) -> Parameter:
    """A parameter from what stands in [space]; `kind` (int, float or str) is the hyperparameter's own type.

    A list, or `{ choices = [...] }`, is a Choice; `{ low, high }` is an Int or a Float.
    Raises StudyFileError; its mistakes begin with the key inside the parameter, if one is at fault.
    """
    if isinstance(table, list):
        table = {"choices": table}
    if not isinstance(table, Mapping):
        advice = "must be choices [..] or a range { low = .., high = .. }; one fixed value belongs under [training]"
        raise StudyFileError([f"= {show(table)}: {advice}"])
    if "choices" in table:
        return choice_from_table(kind, table)
    if kind is str:
        refuse([f"= {show(table)}: is not a number, so it needs choices: a list of names"])
    return range_from_table(kind, table)


def choice_from_table(kind: type, table: Mapping[str, Any]) -> Choice:
    refuse(unknown_keys(table, ("choices", "when")))
    choices = table["choices"]
    if not isinstance(choices, list | tuple):
        raise StudyFileError([f"choices = {show(choices)}: must be a list"])
    refuse([f"choices holds {show(v)}: must be {KINDS[kind]}" for v in choices if not is_kind(kind, v)])
    return Choice(tuple(float(v) if kind is float else v for v in choices), conditions_from_table(table))


def range_from_table(kind: type, table: Mapping[str, Any]) -> Float | Int:
    keys = ("low", "high", "log", "step", "when") + (("times",) if kind is float else ())
    mistakes = unknown_keys(table, keys)
    mistakes += [f"{key}: is missing; a range is {{ low = .., high = .. }}" for key in keys[:2] if key not in table]
    numbers = {key: table[key] for key in ("low", "high", "step") if key in table}
    mistakes += [f"{k} = {show(v)}: must be {KINDS[kind]}" for k, v in numbers.items() if not is_kind(kind, v)]
    log, times = table.get("log", False), table.get("times")
    mistakes += [] if isinstance(log, bool) else [f"log = {show(log)}: must be true or false"]
    mistakes += [] if times is None or isinstance(times, str) else [f"times = {show(times)}: must be a name in quotes"]
    refuse(mistakes)
    when = conditions_from_table(table)
    if kind is int:
        return Int(**numbers, log=log, when=when)
    return Float(**{key: float(number) for key, number in numbers.items()}, log=log, times=times, when=when)


def conditions_from_table(table: Mapping[str, Any]) -> dict[str, tuple[Value, ...]]:
    when = table.get("when", {})
    if not isinstance(when, Mapping):
        raise StudyFileError([f'when = {show(when)}: must be a table such as {{ scheduler = "onecycle" }}'])
    return {name: tuple(value) if isinstance(value, list | tuple) else (value,) for name, value in when.items()}


def to_table(parameter: Parameter) -> dict[str, Any]:
    """The table that `from_table` reads back as an equal parameter; plain JSON values."""
    if isinstance(parameter, Choice):
        table: dict[str, Any] = {"choices": list(parameter.choices)}
    else:
        table = {"low": parameter.low, "high": parameter.high, "log": parameter.log}
        table |= {"step": parameter.step} if parameter.step is not None else {}
        table |= {"times": parameter.times} if isinstance(parameter, Float) and parameter.times else {}
    return table | ({"when": {k: list(v) for k, v in parameter.when.items()}} if parameter.when else {})


# Rules, each as the sentences that say how it is broken

KINDS = {int: "a whole number", float: "a number", str: "a name in quotes"}


def is_kind(kind: type, value: object) -> bool:
    """Whether a value may stand for a hyperparameter of this kind: 1 is a float too, true is no number."""
    return isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)


def range_mistakes(low: float, high: float, log: bool, step: float | None) -> list[str]:
    unbounded = [
        f"{key} = {show(number)}: must be finite"
        for key, number in (("low", low), ("high", high), ("step", step))
        if number is not None and not math.isfinite(number)
    ]
    if unbounded:
        return unbounded
    mistakes = [f"low = {show(low)}: must not be above high = {show(high)}"] if low > high else []
    mistakes += [f"low = {show(low)}: must be above 0, because log = true"] if log and low <= 0 else []
    mistakes += [f"step = {show(step)}: must be above 0"] if step is not None and step <= 0 else []
    if not mistakes and step is not None and (high - low) / step > MOST_STEPS:
        mistakes.append(f"step = {show(step)}: is too small to count the steps from {show(low)} to {show(high)}")
    if not mistakes and step is not None and (rest := remainder(low, high, step)):
        last = Decimal(str(high)) - rest
        mistakes.append(f"high = {show(high)}: steps of {show(step)} from {show(low)} miss it; the last one is {last}")
    return mistakes


def remainder(low: float, high: float, step: float) -> Decimal:
    """What is left of the range after whole steps, in decimals: 0.1 + 0.2 is 0.3 for the reader of a study file."""
    return (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step))


def near_multiple(distance: float, step: float) -> bool:
    return math.isclose(distance, round(distance / step) * step, rel_tol=NEAR, abs_tol=NEAR * step)


def choices_mistakes(choices: tuple[Value, ...]) -> list[str]:
    if not choices:
        return ["choices = []: must hold at least one value"]
    repeated = dict.fromkeys(choice for choice in choices if choices.count(choice) > 1)
    infinite = [choice for choice in choices if isinstance(choice, float) and not math.isfinite(choice)]
    return [f"choices holds {show(choice)} more than once" for choice in repeated] + [
        f"choices holds {show(choice)}: must be finite" for choice in infinite
    ]


def when_mistakes(when: Conditions) -> list[str]:
    mistakes = [f"when.{name} = []: must name at least one value" for name, values in when.items() if not values]
    return mistakes + [
        f"when.{name} = {show(value)}: must be a number or a name"
        for name, values in when.items()
        for value in values
        if not is_kind(float, value) and not isinstance(value, str)
    ]


def refuse(mistakes: list[str]) -> None:
    """Raise StudyFileError unless the list is empty."""
    if mistakes:
        raise StudyFileError(mistakes)


def unknown_keys(table: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    known = tuple(known)
    return [f"{key}: unknown key{suggestion(key, known)}" for key in table if key not in known]


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, and all of them unless they are many."""
    known = tuple(known)
    near = difflib.get_close_matches(word, known, n=1)
    question = f"; did you mean {near[0]}?" if near else ""
    listed = f" (known: {', '.join(known) or 'none'})" if not near or len(known) <= FEW else ""
    return question + listed


def show(value: object) -> str:
    """A value as the study file writes it, short enough for one line."""
    text = written(value)
    return text if len(text) <= 60 else text[:57] + "..."


def written(value: object) -> str:
    """A value in TOML; what JSON writes is TOML too, but for tables and dates."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {written(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) and value.bit_length() > 1000:
        return hex(value)  # Python refuses to write some thousand decimal digits
    return str(value)
