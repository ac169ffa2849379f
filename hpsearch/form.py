"""What a study file may say: reads its tables, and names every mistake with key, value and rule.

Each reader returns what it could read together with the mistakes, so that one mistake hides no other. What may not
stand together is said in `relations.py`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from pydantic import ValidationError

from hpsearch.candidates import candidate_mistakes, read_candidates, seed_mistakes
from hpsearch.errors import StudyFileError
from hpsearch.first import first_mistakes, read_first, repeated_first
from hpsearch.recipe import RULES
from hpsearch.relations import (
    Draft,
    draft_mistakes,
    idle_mistakes,
    plan_mistakes,
    uneven_mistakes,
)
from hpsearch.sections import FROM_COMPLETE, SECTIONS, Section
from hpsearch.space import (
    Choice,
    Conditions,
    Float,
    Parameter,
    Value,
    conditions_from_table,
    from_table,
    is_kind,
    show,
    suggestion,
    unknown_keys,
)

TOP_LEVEL = ("name", "description", "seed", "seeds", *SECTIONS, "training", "space", "first", "candidate")
# pydantic's words, and ours
WORDS = {
    "Input should be": "must be",
    "a valid integer": "a whole number",
    "a valid string": "a name in quotes",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_NAME = 200  # characters; names of files and folders, which have it in them, end at 255

Training: TypeAlias = dict[str, Value]
Space: TypeAlias = dict[str, Parameter]


def read_study(tables: Mapping[str, Any], recorded: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The arguments of StudySpec, and every mistake; the arguments are complete only if there is no mistake.

    A study that is `recorded` may say what new ones may not: it was accepted once, and must be readable.
    """
    if huge := list(oversized(tables)):
        return {}, huge
    values, mistakes = read_top_level(tables)
    for key, kind in SECTIONS.items():
        section, found = read_section(kind, key, with_defaults(tables, key))
        values |= {} if section is None else {key: section}
        mistakes += found
    training, found = read_training(tables.get("training", {}))
    mistakes += found
    space, found = read_space(tables.get("space", {}))
    mistakes += found
    when, times = read_sources(tables.get("space", {}))
    draft = Draft(training, space, names_of(tables.get("training")), names_of(tables.get("space")), when, times)
    candidates, found = read_candidates(tables.get("candidate", []), draft, values.get("model"))
    mistakes += found
    values["candidates"] = candidates
    draft = replace(draft, candidates=tuple(own for _, own in candidates))
    given = values | {"unread_seeds": bool(tables.get("seeds")) and not values["seeds"]}
    mistakes += [*plan_mistakes(draft, given), *candidate_mistakes(draft, values), *draft_mistakes(draft)]
    final = draft.applied()
    first, found = read_first(tables.get("first", []), final)
    mistakes += first_mistakes(first, values.get("budget"))
    if not recorded:
        mistakes += [*seed_mistakes(draft, values), *uneven_mistakes(draft, values.get("pruner"))]
        mistakes += idle_mistakes(draft, values.get("model"))
        mistakes += [] if found else repeated_first(first)
    return values | {"training": training, "space": final.space, "first": first}, mistakes + found


def oversized(value: object, key: str = "") -> Iterator[str]:
    """Whole numbers that TOML does not have: they would overflow floats, seeds and database columns."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from oversized(item, f"{key}.{name}" if key else str(name))
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield f"{key} = {show(value)}: must fit into 64 bits"


def names_of(section: object) -> frozenset[str]:
    return frozenset(section) if isinstance(section, Mapping) else frozenset()


# Readers


def read_top_level(tables: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    name, description, seed = tables.get("name"), tables.get("description", ""), tables.get("seed", 0)
    mistakes = unknown_keys(tables, TOP_LEVEL)
    if name is None:
        mistakes.append("name: is missing; it is what the study is called")
    elif complaint := name_complaint(name):
        mistakes.append(f"name = {show(name)}: {complaint}")
    if not isinstance(description, str):
        mistakes.append(f"description = {show(description)}: must be a text in quotes")
    if complaint := RULES["seed"].broken_by(seed):
        mistakes.append(f"seed = {show(seed)}: {complaint}")
    seeds, found = read_seeds(tables.get("seeds", []))
    return {"name": name, "description": description, "seed": seed, "seeds": seeds}, mistakes + found


def name_complaint(name: object) -> str | None:
    """The rule that the name of a study breaks: it is typed in commands, and becomes the name of folders."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return "must be letters, digits, '.', '_' or '-', the first a letter or digit"
    return None if len(name) <= LONGEST_NAME else f"must be at most {LONGEST_NAME} characters"


def read_seeds(seeds: object) -> tuple[tuple[int, ...], list[str]]:
    """Seeds from their number or from a list: 3 stands for 0, 1, 2."""
    if is_kind(int, seeds) and isinstance(seeds, int) and 1 <= seeds <= 1_000_000:
        return tuple(range(seeds)), []
    if not isinstance(seeds, list):
        return (), [f"seeds = {show(seeds)}: must be how many, from 1 to 1000000, or a list such as [0, 1, 2]"]
    mistakes = [f"seeds holds {show(s)}: {rule}" for s in seeds if (rule := RULES["seed"].broken_by(s))]
    if not mistakes and len(set(seeds)) < len(seeds):
        mistakes = [f"seeds = {show(seeds)}: holds a seed more than once"]
    return (() if mistakes else tuple(seeds)), mistakes


def with_defaults(tables: Mapping[str, Any], key: str) -> Any:
    """A section as it is read: without a space every trial trains to its end, and N seeds are a budget of N trials.

    Under samplers that learn from such trials only, every trial does so as well.
    """
    section, sampler = tables.get(key, {}), tables.get("sampler")
    if not isinstance(section, Mapping):
        return section
    to_the_end = isinstance(sampler, Mapping) and sampler.get("name") in FROM_COMPLETE
    if key == "pruner" and (to_the_end or not tables.get("space")):
        return {"name": "none", **section}
    if key == "budget" and not tables.get("space") and (given := tables.get("seeds", [])):
        candidates, num_seeds = tables.get("candidate"), len(read_seeds(given)[0]) or 1  # 1: a mistake, told elsewhere
        return {"trials": num_seeds * (len(candidates) if isinstance(candidates, list) else 1), **section}
    return section


def read_section(kind: type[Section], key: str, table: object) -> tuple[Section | None, list[str]]:
    if not isinstance(table, Mapping):
        return None, [f"{key} = {show(table)}: must be a section, [{key}]"]
    try:
        return kind.model_validate(dict(table)), []
    except ValidationError as error:
        return None, [section_mistake(kind, key, dict(found)) for found in error.errors(include_url=False)]


def section_mistake(kind: type[Section], section: str, error: Mapping[str, Any]) -> str:
    """What pydantic found, as a sentence of ours."""
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{section}.{key}: unknown key{suggestion(key, kind.model_fields)}"
    if error["type"] == "missing":
        return f"{section}.{key}: is missing; it is {kind.model_fields[key].description}"
    rule = str(error["msg"])
    for theirs, ours in WORDS.items():
        rule = rule.replace(theirs, ours)
    return f"{section}.{key} = {show(error['input'])}: {rule}"


def read_training(table: object) -> tuple[Training, list[str]]:
    if not isinstance(table, Mapping):
        return {}, [f"training = {show(table)}: must be a section, [training]"]
    mistakes = hyperparameter_mistakes("training", table)
    training = {}
    for name in table.keys() & RULES.keys():
        if complaint := RULES[name].broken_by(table[name]):
            mistakes.append(f"training.{name} = {show(table[name])}: {complaint}")
        else:
            training[name] = float(table[name]) if RULES[name].kind is float else table[name]
    return {name: training[name] for name in table if name in training}, sorted(mistakes)


def hyperparameter_mistakes(section: str, table: Mapping[str, Any]) -> list[str]:
    """Keys of a section that are no hyperparameters."""
    advice = {"model": ": the architecture belongs under [model], as its name"}
    return [
        f"{section}.{key}: unknown hyperparameter{advice.get(key) or suggestion(key, RULES)}"
        for key in table
        if key not in RULES
    ]


def read_space(table: object) -> tuple[Space, list[str]]:
    if not isinstance(table, Mapping):
        return {}, [f"space = {show(table)}: must be a section, [space]"]
    mistakes = hyperparameter_mistakes("space", table)
    space: Space = {}
    for name in table:
        if name not in RULES:
            continue
        try:
            parameter = from_table(RULES[name].kind, table[name])
        except StudyFileError as error:
            mistakes += [f"space.{name}{' ' if text.startswith('=') else '.'}{text}" for text in error.mistakes]
            continue
        found = list(limit_mistakes(name, parameter))
        mistakes += found
        space |= {} if found else {name: parameter}
    return space, mistakes


def read_sources(table: object) -> tuple[Mapping[str, Conditions], Mapping[str, str]]:
    """What the parameters wait for, and multiply, as far as it can be read; those with other mistakes included."""
    tables = table.items() if isinstance(table, Mapping) else ()
    searched = {name: entry for name, entry in tables if name in RULES and isinstance(entry, Mapping)}
    when = {name: conditions_from_table(e) for name, e in searched.items() if isinstance(e.get("when"), Mapping)}
    times = {name: e["times"] for name, e in searched.items() if isinstance(e.get("times"), str)}
    return when, times


def limit_mistakes(name: str, parameter: Parameter) -> Iterator[str]:
    """Ends and choices that the hyperparameter cannot take."""
    if isinstance(parameter, Float) and parameter.times:
        if parameter.low <= 0:
            yield f"space.{name}.low = {show(parameter.low)}: must be above 0, because it is a factor"
        return
    ends = {"low": parameter.low, "high": parameter.high} if not isinstance(parameter, Choice) else {}
    for end, value in ends.items():
        if complaint := RULES[name].broken_by(value):
            yield f"space.{name}.{end} = {show(value)}: {complaint}"
    for choice in parameter.choices if isinstance(parameter, Choice) else ():
        if complaint := RULES[name].broken_by(choice):
            yield f"space.{name}.choices holds {show(choice)}: {complaint}"
