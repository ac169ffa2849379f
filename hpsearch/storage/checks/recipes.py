"""Promises about what trials train: whatever was trained has its recipe, parameters agree with it, nothing comes twice.

Three places know the configuration: Optuna's parameters, the recipe, and the digest that was taken up for the trial. If
one is wrong, the two others say what it was.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from optuna.distributions import distribution_to_json
from sqlalchemy import delete, insert

from hpsearch.errors import HpsearchError
from hpsearch.recipe import Recipe
from hpsearch.search.asking import recipe, trial_digest
from hpsearch.search.samplers import distribution
from hpsearch.space import Float, active
from hpsearch.spec import StudySpec
from hpsearch.storage.checks.facts import Facts, Trial
from hpsearch.storage.checks.findings import Finding, about
from hpsearch.storage.studies import RECIPE_KEY
from hpsearch.storage.tables import CONFIGURATIONS, EPOCHS, INTERMEDIATE_VALUES, LEASES, PARAMS, USER_ATTRIBUTES


def check_recipes(facts: Facts) -> Iterator[Finding]:
    """Whatever has epochs or parameters has a recipe, which says the same as the parameters."""
    spec = facts.study.spec
    registered = {trial_id: digest for digest, trial_id in facts.configurations.items()}
    for trial in facts.trials:
        drawn_up = trial.values.count or trial.epochs.count or trial.has_recipe or trial.params or trial.params is None
        if trial.foreign or not drawn_up or (trial.recipe is not None and _agrees(spec, trial)):
            continue
        yield _disagreement(spec, trial, registered.get(trial.trial_id))


def check_configurations(facts: Facts) -> Iterator[Finding]:
    """Each configuration is taken up once, for the trial that trains it."""
    spec, by_id = facts.study.spec, {trial.trial_id: trial for trial in facts.trials}
    digests = {t.trial_id: _digest(spec, t) for t in facts.trials if t.recipe is not None and _agrees(spec, t)}
    for digest, trial_id in facts.configurations.items():
        trial = by_id.get(trial_id)
        unknown = trial is None or (not trial.has_recipe and not trial.params)
        if unknown or digests.get(trial_id, digest) != digest:
            of_it = (CONFIGURATIONS.c.study_id == facts.study.study_id) & (CONFIGURATIONS.c.digest == digest)
            text = f"a configuration ({digest}) is taken up for a trial that does not train it"
            does = "frees it"
            freed = (delete(CONFIGURATIONS).where(of_it),)
            if trial is None:
                yield Finding("configuration", text, cure=freed, does=does)
            else:
                yield about(trial, "configuration", text, freed, does)
    holders: dict[str, Trial] = {}
    for trial in facts.trials:
        if (digest := digests.get(trial.trial_id, "")) and digest not in holders:
            holders[digest] = trial
            if digest not in facts.configurations:
                row = {"study_id": facts.study.study_id, "digest": digest, "trial_id": trial.trial_id}
                text = "its configuration is not taken up: another trial could train the same"
                yield about(trial, "configuration", text, (insert(CONFIGURATIONS).values(row),), "takes it up")
        elif digest:
            pair = (trial, holders[digest])
            yield _double(*(pair[::-1] if facts.configurations.get(digest) == trial.trial_id else pair))


def _double(trial: Trial, other: Trial) -> Finding:
    """`other` had taken up the configuration when `trial` came."""
    text = f"it has the configuration of trial {other.number}"
    if trial.ordered:
        return about(trial, "configuration", f"{text}; a person ordered it", damage=False)
    why = "no trial is deleted, and which of the two is one too many nobody can say"
    return about(trial, "configuration", text, why_not=why)


def _disagreement(spec: StudySpec, trial: Trial, digest: str | None) -> Finding:
    """The trial's recipe or its parameters are missing or wrong: which, and what they were, if the rest tells."""
    from_params = _recipe_of(spec, trial)
    from_recipe = _params_of(spec, trial.recipe, trial.number) if trial.recipe is not None else None
    if from_params is not None and (trial.recipe is None or digest == _digest(spec, trial)):
        text = "its recipe does not say what its parameters say" if trial.has_recipe else "it has no recipe"
        does = "makes the recipe anew from the parameters and the study's seeds"
        if trial.recipe is None:
            does += "; where in the stream of images it began is lost, and taken for the beginning"
        return about(trial, "recipe", text, _set_recipe(trial.trial_id, from_params), does)
    text = "its parameters do not say what its recipe says"
    if trial.recipe is not None and from_recipe is not None:
        meant = trial_digest(spec, trial.number, from_recipe, trial.recipe.seed)
        if digest in (None, meant):
            cure = _set_params(spec, trial.trial_id, from_recipe)
            return about(trial, "recipe", text, cure, "takes the parameters from the recipe")
    if trial.recipe is None:
        text = "it has no recipe that can be read, nor all of its parameters"
        if not trial.ended:
            does = "begins it again with another configuration, as nobody knows what was trained"
            return about(trial, "recipe", text, _begin_again(trial.trial_id), does)
    return about(trial, "recipe", text, why_not="nothing else tells what it trained")


def _agrees(spec: StudySpec, trial: Trial) -> bool:
    """Whether the recipe is what the study and the parameters give; what the study does not name may have changed."""
    expected = _recipe_of(spec, trial)
    if expected is None or trial.recipe is None:
        return False
    return _same(spec, expected, trial.recipe)


def _same(spec: StudySpec, one: Recipe, other: Recipe) -> bool:
    """Whether they say the same about all that the study names."""
    return all(getattr(one, name) == getattr(other, name) for name in _named(spec))


def _named(spec: StudySpec) -> set[str]:
    """The fields of a recipe that the study names."""
    return {"model", "epochs", *spec.training, *spec.space, *(name for _, values in spec.candidates for name in values)}


def _recipe_of(spec: StudySpec, trial: Trial) -> Recipe | None:
    """What the parameters give, if they are all there; what the study does not name is as recorded, if it can be read.

    The seeds, then, and the place in the stream of images where the trial began.
    """
    if trial.params is None:
        return None
    chosen: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        if active(parameter, chosen) and name in trial.params:
            chosen[name] = trial.params[name]
        elif active(parameter, chosen):
            return None
    if chosen.keys() != trial.params.keys():
        return None
    try:
        if trial.recipe is None:
            return recipe(spec, chosen, trial.number)
        candidate, _ = spec.place(trial.number)
        made = spec.recipe(chosen, trial.recipe.seed, trial.recipe.stream_seed, candidate)
        return replace(trial.recipe, **{name: getattr(made, name) for name in _named(spec)})
    except (HpsearchError, TypeError):
        return None


def _params_of(spec: StudySpec, known: Recipe, number: int) -> dict[str, Any] | None:
    """The parameters that give exactly this recipe; None if there are none, or a factor cannot be told exactly."""
    chosen: dict[str, Any] = {}
    fields = {
        (f"{name}_factor" if isinstance(parameter, Float) and parameter.times else name): (name, parameter)
        for name, parameter in spec.space.items()
    }
    for recorded, parameter in spec.parameters.items():
        if active(parameter, chosen):
            value = getattr(known, fields[recorded][0])
            if isinstance(parameter, Float) and parameter.times:
                value = value / getattr(known, parameter.times) if value is not None else None
            if value is None or not parameter.contains(value):
                return None
            chosen[recorded] = value
    try:
        again = spec.recipe(chosen, known.seed, known.stream_seed, spec.place(number)[0])
    except HpsearchError:
        return None
    return chosen if _same(spec, again, known) else None


def _digest(spec: StudySpec, trial: Trial) -> str:
    assert trial.recipe is not None
    return trial_digest(spec, trial.number, trial.params or {}, trial.recipe.seed)


def _set_recipe(trial_id: int, value: Recipe) -> tuple[Any, ...]:
    row = {"trial_id": trial_id, "key": RECIPE_KEY, "value_json": json.dumps(value.as_dict())}
    of_it = (USER_ATTRIBUTES.c.trial_id == trial_id) & (USER_ATTRIBUTES.c.key == RECIPE_KEY)
    return delete(USER_ATTRIBUTES).where(of_it), insert(USER_ATTRIBUTES).values(row)


def _set_params(spec: StudySpec, trial_id: int, chosen: dict[str, Any]) -> tuple[Any, ...]:
    kinds = {name: distribution(spec.parameters[name]) for name in chosen}
    rows = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": kinds[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(kinds[name]),
        }
        for name, value in chosen.items()
    ]
    gone = delete(PARAMS).where(PARAMS.c.trial_id == trial_id)
    return (gone, insert(PARAMS).values(rows)) if rows else (gone,)


def _begin_again(trial_id: int) -> tuple[Any, ...]:
    of_it = [delete(table).where(table.c.trial_id == trial_id) for table in (PARAMS, INTERMEDIATE_VALUES, EPOCHS)]
    recorded = (USER_ATTRIBUTES.c.trial_id == trial_id) & (USER_ATTRIBUTES.c.key == RECIPE_KEY)
    lease = LEASES.update().where(LEASES.c.trial_id == trial_id).values(epoch=0)
    return (*of_it, delete(USER_ATTRIBUTES).where(recorded), lease)
