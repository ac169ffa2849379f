"""The [[candidate]] configurations of a study file: what is compared over the same seeds, and every mistake in it."""

from collections.abc import Iterator, Mapping
from typing import Any

from hpsearch.errors import UsageError
from hpsearch.recipe import RULES, Recipe
from hpsearch.relations import PEAK_SCHEDULER, Draft
from hpsearch.sections import PRUNER_OPTIONS
from hpsearch.space import Choice, Value, show, suggestion

OF_THE_SEED = ("seed", "stream_seed", "stream_offset")  # what differs between the trials of one configuration
OVER_SEEDS = ("none", "race")  # pruners that look at no single seed


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
        found += [] if found else whole_mistakes(values, draft, model)
        mistakes += [f"candidate[{number}].{mistake}" for mistake in found]
        candidates.append((str(label), values))
    labels = [table["label"] for table in tables if isinstance(table.get("label"), str)]
    mistakes += [
        f"candidate: label {show(label)} is there more than once" for label in labels if labels.count(label) > 1
    ]
    return tuple(candidates), list(dict.fromkeys(mistakes))


def whole_mistakes(own: Mapping[str, Any], draft: Draft, model: Any) -> list[str]:
    """What is wrong with a candidate's whole configuration, its own values and the fixed ones."""
    values = {"epochs": 1, **draft.training, **own}
    if values.get("scheduler") != PEAK_SCHEDULER and "peak_learning_rate" not in own:
        values.pop("peak_learning_rate", None)  # fixed for the candidates that are onecycle
    try:
        recipe = Recipe(model=model.name if model else "", **values)
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


def seed_mistakes(draft: Draft, values: Mapping[str, Any]) -> Iterator[str]:
    """What would make of several seeds fewer: of a candidate the same one again, by a pruner the best ones."""
    for number, own in enumerate(draft.candidates, start=1):
        for name in own:
            if name in OF_THE_SEED:
                yield f"candidate[{number}].{name}: all candidates have the same seeds; give them at the top, as seeds"
    pruner = values.get("pruner")
    if pruner and values["seeds"] and not draft.searched and pruner.name in PRUNER_OPTIONS.keys() - set(OVER_SEEDS):
        others = ' or "race"' if draft.candidates else ""
        rule = "it would leave the best seeds, not a fair sample"
        yield f'pruner.name = {show(pruner.name)}: is for searches, over seeds {rule}; give "none"{others}'
