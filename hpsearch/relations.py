"""What must hold between the values of a study, each right on its own: conditions, peak rates, seeds, budget, first.

A Draft is what could be read of [training] and [space]. It also knows the names that stand there with mistakes, so that
one mistake does not bring others with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpsearch.errors import StudyFileError
from hpsearch.recipe import RULES, Recipe
from hpsearch.sections import PRUNER_OPTIONS, SAMPLER_OPTIONS
from hpsearch.space import (
    Choice,
    Conditions,
    Float,
    Parameter,
    Value,
    configurations,
    is_kind,
    num_combinations,
    num_values,
    order,
    show,
    suggestion,
)

PEAK_SCHEDULER = "onecycle"  # the only schedule that climbs to a peak rate

MOST_LISTED = 100_000  # combinations of a grid, values of a parameter under gp: every worker has them all in memory

# Hyperparameters that mean something under one schedule only; their `when` need not be written.
IMPLIED: dict[str, Conditions] = {
    "peak_learning_rate": {"scheduler": (PEAK_SCHEDULER,)},
    "gamma": {"scheduler": ("exponential",)},
}


@dataclass(frozen=True)
class Draft:
    """Hyperparameters read so far, and the names written in the file, readable or not."""

    training: Mapping[str, Value]
    space: Mapping[str, Parameter]
    fixed: frozenset[str]
    searched: frozenset[str]
    when: Mapping[str, Conditions]  # as written, also of parameters with mistakes
    times: Mapping[str, str]
    candidates: tuple[Mapping[str, Value], ...] = ()  # the values of each, as written

    @property
    def declared(self) -> frozenset[str]:
        return self.fixed | self.searched

    def can_be(self, name: str, value: Value) -> bool:
        """Whether some trial has this value; also, if the hyperparameter is there but could not be read."""
        given = [own[name] for own in self.candidates if name in own]
        if value in given or (given and len(given) == len(self.candidates)):
            return value in given
        if name in self.training:
            return self.training[name] == value
        if name in self.space:
            return self.space[name].contains(value)
        return name in self.declared or bool(default(name) == value)

    def applied(self) -> "Draft":
        """The draft with the conditions that count: implied ones added, those on fixed values settled and gone."""
        return replace(self, space={name: self._applied(name, parameter) for name, parameter in self.space.items()})

    def _applied(self, name: str, parameter: Parameter) -> Parameter:
        when = {**parameter.when, **IMPLIED.get(name, {})}
        return replace(parameter, when={source: values for source, values in when.items() if source in self.searched})


def default(name: str) -> Any:
    return Recipe.__dataclass_fields__[name].default


def highest(name: str, training: Mapping[str, Value], space: Mapping[str, Parameter]) -> float | None:
    """The largest value that a numeric hyperparameter can take in a study; None if it has no value at all.

    Where a condition leaves it out, it has its default; conditions on fixed values are settled.
    """
    when = space[name].when if name in space else {}
    usual = default(name) if name in RULES and isinstance(default(name), int | float) else None
    if any(source in training and training[source] not in allowed for source, allowed in when.items()):
        return usual
    top = highest_chosen(name, training, space)
    return top if top is None or usual is None or when.keys() <= training.keys() else max(top, float(usual))


def highest_chosen(name: str, training: Mapping[str, Value], space: Mapping[str, Parameter]) -> float | None:
    """As `highest`, in trials that have the hyperparameter."""
    factor, passed = 1.0, set()
    while isinstance(parameter := space.get(name), Float) and parameter.times and name not in passed:
        factor *= parameter.high
        passed.add(name)
        name = parameter.times
    if name not in RULES or RULES[name].kind is str:
        return None  # no number to be a multiple of, which is said elsewhere
    if name in training:
        return factor * float(training[name])
    if parameter is not None:
        top = max(map(float, parameter.choices)) if isinstance(parameter, Choice) else parameter.high
        return factor * top
    return factor * float(default(name)) if isinstance(default(name), int | float) else None


def most_epochs(
    training: Mapping[str, Value], space: Mapping[str, Parameter], candidates: Sequence[Mapping[str, Value]]
) -> int | None:
    """The epochs of a study's longest trial, if it has any; what is fixed is nobody's if each candidate has its own."""
    own: list[Any] = [values["epochs"] for values in candidates if is_kind(int, values.get("epochs"))]
    given = highest("epochs", training, space) if not own or len(own) < len(candidates) else None
    return max([*own, int(given or 0)]) or None


def plan_mistakes(draft: Draft, values: Mapping[str, Any]) -> Iterator[str]:
    """How many trials, from which seeds, by which sampler, stopped how; `values` holds the sections read so far."""
    seeds, budget, pruner = values["seeds"], values.get("budget"), values.get("pruner")
    if not seeds and not draft.searched and not values.get("unread_seeds"):
        yield "space: is missing, and so is seeds; search something, or train the same over seeds = 15"
    if seeds and draft.searched:
        yield "seeds: is for studies that search nothing; with [space], give [budget] trials instead"
    if seeds and "seed" in draft.fixed:
        yield "seeds: the seed is fixed under [training] as well; keep one of the two"
    most = len(seeds) * (len(values["candidates"]) or 1)
    if seeds and not draft.searched and budget and budget.trials > most:
        yield f"budget.trials = {budget.trials}: must be at most {most}, the number of seeds" + (
            " times that of candidates" if values["candidates"] else ""
        )
    epochs = most_epochs(draft.training, draft.space, [own for _, own in values["candidates"]])
    if pruner and epochs and (pruner.min_epochs or 1) > epochs:
        yield f"pruner.min_epochs = {pruner.min_epochs}: must be at most epochs = {epochs:g}"
    yield from budget_mistakes(budget, epochs, values.get("objective"))
    yield from option_mistakes("sampler", SAMPLER_OPTIONS, values.get("sampler"))
    yield from option_mistakes("pruner", PRUNER_OPTIONS, pruner)
    if (sampler := values.get("sampler")) and sampler.name == "grid":
        yield from grid_mistakes(draft)
    if sampler and sampler.name == "gp":
        yield from gp_mistakes(draft.space)


def budget_mistakes(budget: Any, epochs: float | None, objective: Any) -> Iterator[str]:
    if budget and epochs and budget.epochs is not None and budget.epochs < epochs:
        yield f"budget.epochs = {budget.epochs}: must be at least epochs = {epochs:g}, or no trial can start"
    fraction = objective is not None and objective.metric == "validation_accuracy"
    if budget and budget.target is not None and fraction and budget.target > 1:
        yield f"budget.target = {show(budget.target)}: must be at most 1, because an accuracy is a fraction"


def option_mistakes(key: str, options: Mapping[str, tuple[str, ...]], section: Any) -> Iterator[str]:
    if section is None or section.name not in options:
        return
    allowed = options[section.name]
    for option in section.options().keys() - set(allowed):
        yield f"{key}.{option}: {section.name} does not take it; it takes {', '.join(allowed) or 'no options'}"


def grid_mistakes(draft: Draft) -> Iterator[str]:
    most, space = num_combinations(draft.space), draft.applied().space
    if most is not None and most > MOST_LISTED and not listable(space):
        aside = ", conditions aside" if any(parameter.when for parameter in space.values()) else ""
        rule = f"the space has {most} combinations{aside}, the most is {MOST_LISTED}"
        yield f'sampler.name = "grid": {rule}; widen the steps'
    for name, parameter in draft.space.items():
        if num_values(parameter) is None:
            yield f"space.{name}: the grid sampler needs a step, or choices instead of a range"


def listable(space: Mapping[str, Parameter]) -> bool:
    try:
        return configurations(space, MOST_LISTED) is not None
    except StudyFileError:
        return True  # conditions in a circle, which is said elsewhere


def gp_mistakes(space: Mapping[str, Parameter]) -> Iterator[str]:
    for name, parameter in space.items():
        if (num_listed := num_values(parameter) or 0) > MOST_LISTED:
            yield f"space.{name}: has {num_listed} values, the gp sampler takes {MOST_LISTED} at most; widen the steps"


def draft_mistakes(draft: Draft) -> Iterator[str]:
    """What is wrong between [training] and [space], and inside [space]."""
    for name in sorted(draft.fixed & draft.searched):
        yield f"space.{name}: is fixed under [training] as well; keep one of the two"
    yield from epochs_mistakes(draft)
    if draft.searched and "stream_offset" in draft.declared:
        section = "space" if "stream_offset" in draft.searched else "training"
        yield f"{section}.stream_offset: is for studies that search nothing; in a search workers set it"
    try:
        order(draft.space)
    except StudyFileError as error:
        yield from error.mistakes
    for name, conditions in draft.when.items():
        yield from condition_mistakes(name, conditions, draft)
    for name, source in draft.times.items():
        yield from times_mistakes(name, source, draft)
    yield from schedule_mistakes(draft)
    yield from peak_mistakes(draft)


def epochs_mistakes(draft: Draft) -> Iterator[str]:
    without = [number for number, own in enumerate(draft.candidates, start=1) if "epochs" not in own]
    if "epochs" in draft.declared:
        return
    if len(without) == len(draft.candidates):
        yield "training.epochs: is missing; it is how many passes over the training part a trial makes"
    else:
        yield from (f"candidate[{number}].epochs: is missing, here and under [training]" for number in without)


def condition_mistakes(name: str, conditions: Conditions, draft: Draft) -> Iterator[str]:
    if name == "epochs" and conditions:
        yield "space.epochs.when: cannot be given, because every trial needs its number of epochs"
    if name == "peak_learning_rate" and conditions.keys() - IMPLIED[name].keys():
        yield (
            f"space.{name}.when: must name nothing but scheduler, because every trial with "
            f"scheduler = {show(PEAK_SCHEDULER)} needs a peak"
        )
    for source, allowed in conditions.items():
        key = f"space.{name}.when.{source}"
        if source not in draft.declared:
            yield f"{key}: is not in this study{suggestion(source, sorted(draft.declared - {name}))}"
        for value in allowed:
            if source in draft.space and not waits_for(draft.space[source], value):
                yield f"{key} = {show(value)}: {source} cannot take it; it is {described(draft.space[source])}"
        if source in draft.training and draft.training[source] not in allowed:
            yield f"{key}: never holds, because {source} is fixed to {show(draft.training[source])}"
        if any(value not in IMPLIED.get(name, {}).get(source, allowed) for value in allowed):
            yield f"{key}: {name} means nothing without {source} = {show(IMPLIED[name][source][0])}"


def waits_for(parameter: Parameter, value: Value) -> bool:
    """Whether a condition may wait for this value; a factor has no value of its own to wait for."""
    return parameter.contains(value) and not (isinstance(parameter, Float) and parameter.times)


def times_mistakes(name: str, source: str, draft: Draft) -> Iterator[str]:
    key = f"space.{name}.times = {show(source)}"
    if source not in draft.declared:
        yield f"{key}: is not in this study{suggestion(source, sorted(draft.declared - {name}))}"
    elif source in RULES and RULES[source].kind is str:
        yield f"{key}: is not a number"
    elif name == "peak_learning_rate" and source != "learning_rate":
        yield f'{key}: must be "learning_rate", so that the peak is not below it'
    elif RULES[name].below is not None:
        yield f"{key}: {name} must stay below {RULES[name].below:g}, so it cannot be a multiple"
    elif source in draft.space and (draft.space[source].when or source in IMPLIED):
        yield f"{key}: is not in every trial, so nothing can be a multiple of it"
    elif RULES[name].above is not None and can_be_zero(source, draft):
        yield f"{key}: can be 0, and {name} must be {RULES[name].interval()}"


def can_be_zero(name: str, draft: Draft) -> bool:
    """Whether a number can be 0 in a trial; a factor is above 0, so it is what it multiplies that counts."""
    seen = set()
    while isinstance(parameter := draft.space.get(name), Float) and parameter.times and name not in seen:
        seen.add(name)
        name = parameter.times
    lowest = draft.training.get(name)
    if parameter is not None:
        lowest = min(parameter.choices) if isinstance(parameter, Choice) else parameter.low
    return lowest == 0


def schedule_mistakes(draft: Draft) -> Iterator[str]:
    """A hyperparameter of a schedule that the study never uses."""
    for name, condition in IMPLIED.items():
        schedule = condition["scheduler"][0]
        if name in draft.declared and not draft.can_be("scheduler", schedule):
            section = "space" if name in draft.searched else "training"
            yield f"{section}.{name}: means nothing without scheduler = {show(schedule)}, which no trial can have"


def peak_mistakes(draft: Draft) -> Iterator[str]:
    """The peak rate is there if the schedule needs it, and never below the initial rate."""
    if draft.candidates:
        return  # each of them is looked at as a whole: see candidates.py
    name, peak = "peak_learning_rate", draft.space.get("peak_learning_rate")
    if name not in draft.declared and draft.can_be("scheduler", PEAK_SCHEDULER) and "scheduler" not in unread(draft):
        yield f"space.{name}: is missing; scheduler = {show(PEAK_SCHEDULER)} needs it, here or under [training]"
    start = highest("learning_rate", {**draft.training, "scheduler": PEAK_SCHEDULER}, draft.space)
    if isinstance(peak, Float) and peak.times == "learning_rate":
        if peak.low < 1:
            yield f"space.{name}.low = {show(peak.low)}: must be at least 1, or the peak is below the initial rate"
    elif peak is not None:
        lowest = min(map(float, peak.choices)) if isinstance(peak, Choice) else peak.low
        if start and lowest < start:
            yield f"space.{name} = {described(peak)}: {below_start(start)}"
    elif name in draft.training and start and float(draft.training[name]) < start:
        yield f"training.{name} = {show(draft.training[name])}: {below_start(start)}"


def uneven_mistakes(draft: Draft, pruner: Any) -> Iterator[str]:
    """A pruner that compares trials whose schedules are of different lengths."""
    if "epochs" in draft.searched and pruner and pruner.name == "median":
        rule = "compares all trials at an epoch, and a shorter schedule has cooled down further there"
        yield f'pruner.name = "median": {rule}; with space.epochs give "asha", which compares those of one length'


def idle_mistakes(draft: Draft, model: Any) -> Iterator[str]:
    """Settings that no trial uses, because the one that they belong to stands nowhere."""
    said = draft.declared.union(*draft.candidates)
    if model and model.export is not None and "start" not in said:
        yield f'model.export = {show(model.export)}: no trial begins with it; set training.start = "export" as well'
    if "momentum" in draft.searched and only_peaks(draft):
        yield f"space.momentum: means nothing with scheduler = {show(PEAK_SCHEDULER)} alone, which cycles its own"
    for name in ("frozen_epochs", "frozen_rate"):
        if name in said and "frozen_layers" not in said:
            section = "training" if name in draft.fixed else "space" if name in draft.searched else "candidate"
            yield f"{section}.{name}: means nothing without frozen_layers, how many layers it is about"


def only_peaks(draft: Draft) -> bool:
    """Whether no trial can have another schedule than onecycle."""
    searched = draft.space.get("scheduler")
    given = searched.choices if isinstance(searched, Choice) else (draft.training.get("scheduler"),)
    return set(given) == {PEAK_SCHEDULER}


def unread(draft: Draft) -> frozenset[str]:
    """Names that stand in the file, but with mistakes."""
    return draft.declared - draft.training.keys() - draft.space.keys()


def below_start(start: float) -> str:
    advice = 'search it as { times = "learning_rate", low = 1.0, high = 30.0, log = true }'
    return f"must not be below the highest learning_rate, {show(start)}; {advice}"


def described(parameter: Parameter) -> str:
    if isinstance(parameter, Choice):
        return f"one of {', '.join(map(show, parameter.choices))}"
    step = f" in steps of {parameter.step:g}" if parameter.step not in (None, 1) else ""
    return f"{show(parameter.low)} to {show(parameter.high)}{step}"
