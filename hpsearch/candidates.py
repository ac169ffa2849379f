"""The [[candidate]] configurations of a study file: what is compared over the same seeds, and every mistake in it."""

from collections.abc import Iterator, Mapping
from typing import Any

from hpsearch.errors import UsageError
from hpsearch.recipe import RULES, Recipe
from hpsearch.relations import PEAK_SCHEDULER, Draft
from hpsearch.space import Choice, Value, show, suggestion


def read_candidates(
    tables: object, draft: Draft, model: Any
) -> tuple[tuple[tuple[str, Mapping[str, Value]], ...], list[str]]:
    """The [[candidate]] configurations, each with its label, and every mistake in them."""
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) for table in tables):
        return (), [f"candidate = {show(tables)}: must be sections, [[candidate]]"]
    candidates, mistakes = [], []
    for number, table in enumerate(tables, start=1):
        label = table.get("label")
        values = {name: value for name, value in table.items() if name != "label"}
        found = [] if isinstance(label, str) and label else ["label: is missing; it is what results call the candidate"]
        found += [f"{key}: unknown hyperparameter{suggestion(key, RULES)}" for key in values if key not in RULES]
        found += [
            f"{key} = {show(value)}: {rule}"
            for key, value in values.items()
            if key in RULES and (rule := RULES[key].broken_by(value))
        ]
        values = {k: float(v) if k in RULES and RULES[k].kind is float and not found else v for k, v in values.items()}
        found += [] if found else whole_mistakes({**draft.training, **values}, model)
        mistakes += [f"candidate[{number}].{mistake}" for mistake in found]
        candidates.append((str(label), values))
    labels = [label for label, _ in candidates]
    mistakes += [
        f"candidate: label {show(label)} is there more than once" for label in labels if labels.count(label) > 1
    ]
    return tuple(candidates), list(dict.fromkeys(mistakes))


def whole_mistakes(values: Mapping[str, Any], model: Any) -> list[str]:
    """What is wrong with a whole configuration."""
    try:
        recipe = Recipe(model=model.name if model else "", **{"epochs": 1, **values})
    except UsageError as error:
        return [str(error).removeprefix("recipe: ")]
    if recipe.scheduler == PEAK_SCHEDULER and recipe.peak_learning_rate is None:
        return [f"peak_learning_rate: is missing; scheduler = {show(PEAK_SCHEDULER)} needs it"]
    return []


def candidate_mistakes(draft: Draft, values: Mapping[str, Any]) -> Iterator[str]:
    """Candidates need seeds and each other; weights to start from need an export."""
    candidates, model, pruner = values["candidates"], values.get("model"), values.get("pruner")
    if candidates and (not values["seeds"] or draft.searched):
        yield "candidate: is compared over seeds, with nothing searched; give seeds = 5, and no [space]"
    if len(candidates) == 1:
        yield "candidate: there is one only; give two or more to compare, or put its values under [training]"
    if pruner and pruner.name == "race" and not candidates:
        yield 'pruner.name = "race": a race is between [[candidate]] configurations, and there are none'
    starts = [draft.training.get("start"), *(candidate.get("start") for _, candidate in candidates)]
    if draft.searched and (space := draft.space.get("start")) and isinstance(space, Choice):
        starts += space.choices
    if "export" in starts and model and model.export is None:
        yield 'model.export: is missing; start = "export" needs it: the folder of an export'
