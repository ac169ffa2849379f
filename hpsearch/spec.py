"""A study as one frozen value: from the tables of its TOML file, and to and from JSON for the database.

    text ─ read_tables ─▶ tables ─ with_overrides ─▶ tables ─ build ─▶ StudySpec ─ to_json ─▶ database
                                                     (form.py says every mistake)

What a study means is here; what a study file may say is in `form.py`. Names of models, data sets, optimizers and so on
are checked by `catalogue.py`, which knows the tables.
"""

import copy
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hpsearch.errors import StudyFileError, UsageError
from hpsearch.form import read_study
from hpsearch.recipe import Recipe
from hpsearch.relations import IMPLIED, MOST_LISTED, PEAK_SCHEDULER, default, most_epochs
from hpsearch.sections import FROM_COMPLETE, SECTIONS, Budget, Data, Model, Objective, Pruner, Sampler
from hpsearch.space import Choice, Float, Parameter, Value, asked, configurations, order, recorded_name, show, to_table

STORED = "the study in the storage"
RESTORE = "restore a backup of the storage, or create the study under another name"
MOST_POINTS = 10_000  # of a space that is looked through whole for what has not been tried; larger ones never run out


@dataclass(frozen=True)
class StudySpec:
    """A question, in full: what is fixed, what is searched, how, how long, and from which seeds."""

    name: str
    description: str
    model: Model
    data: Data
    training: Mapping[str, Value]  # fixed hyperparameters: recipe field -> value
    space: Mapping[str, Parameter]  # searched ones; `when` names searched ones only
    sampler: Sampler
    pruner: Pruner
    budget: Budget
    objective: Objective
    seed: int  # everything random in the study follows from it
    seeds: tuple[int, ...]  # with nothing searched: the seed of trial 0, 1, ...; else empty
    first: tuple[Mapping[str, Value], ...]  # configurations to try first, by recorded name
    candidates: tuple[tuple[str, Mapping[str, Value]], ...] = ()  # label and values of what is compared over `seeds`

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Recorded name to parameter, in the order in which a trial asks; those not `space.active` are left out."""
        return asked(self.space)

    @cached_property
    def configurations(self) -> list[dict[str, Any]] | None:
        """All that the space has, by recorded names, if they are finitely many and few enough to be listed."""
        most = MOST_LISTED if self.sampler.name == "grid" else MOST_POINTS
        return configurations(self.space, most) if self.space else None

    @cached_property
    def _order(self) -> tuple[str, ...]:
        return order(self.space)

    @property
    def max_epochs(self) -> int:
        """The epochs of the longest trial."""
        return most_epochs(self.training, self.space, [values for _, values in self.candidates]) or 0

    def place(self, number: int) -> tuple[int, int]:
        """Which candidate, and which of the seeds, trial `number` trains: all candidates with one seed, then the next.

        With no candidates the first is always 0.
        """
        block, candidate = divmod(number, len(self.candidates) or 1)
        return candidate, block

    @property
    def max_trials(self) -> int:
        """How many trials it can have: its budget, or all there is to try if that is less."""
        points = self.configurations
        return min(self.budget.trials, len(points)) if points else self.budget.trials

    def summary(self) -> str:
        """The study in half a line."""
        what = f"{len(self.space)} hyperparameters searched" if self.space else f"{len(self.seeds)} seeds"
        what = f"{len(self.candidates)} candidates, {what}" if self.candidates else what
        return f"{self.model.name} on {self.data.name}, {what}, {self.max_trials} trials of {self.max_epochs} epochs"

    def cautions(self) -> list[str]:
        """What is allowed and hardly meant, one sentence each."""
        found, pruner, first = [], self.pruner.name, self.pruner.min_epochs or 1
        if self.sampler.name in FROM_COMPLETE and pruner != "none":
            rule = f"sampler {self.sampler.name} learns from completed trials only, and few will be"
            found.append(f'pruner.name = "{pruner}": {rule}; "none" is its default')
        if pruner in ("asha", "hyperband") and 2 * first > self.max_epochs > 1:
            found.append(f"no trial will be pruned: min_epochs = {first} is past half of epochs = {self.max_epochs}")
        if PEAK_SCHEDULER in self._schedulers("momentum"):
            rule = f"is searched with scheduler = {show(PEAK_SCHEDULER)} too, which cycles its own"
            found.append(f"space.momentum: {rule}; name the others in its when")
        return found + list(self._candidate_cautions())

    def _candidate_cautions(self) -> Iterator[str]:
        trained: dict[Recipe, str] = {}
        for number, (label, own) in enumerate(self.candidates):
            recipe = self.recipe({}, 0, 0, number)
            idle = unused(recipe)
            for name in own:
                if name in idle:
                    yield f"candidate {show(label)}: {name} means nothing with scheduler = {show(recipe.scheduler)}"
            if (other := trained.setdefault(replace(recipe, **idle), label)) != label:
                yield f"candidates {show(other)} and {show(label)} train the same"

    def _schedulers(self, name: str) -> Sequence[Value]:
        """The schedules that the study searches and with which it searches this as well."""
        scheduler, parameter = self.space.get("scheduler"), self.space.get(name)
        if not isinstance(scheduler, Choice) or parameter is None:
            return ()
        return parameter.when.get("scheduler", scheduler.choices)

    def recipe(self, params: Mapping[str, Any], seed: int, stream_seed: int, candidate: int = 0) -> Recipe:
        """The recipe of one trial: fixed values, and what the trial recorded; anything else has its default.

        Seeds that the study itself fixes or searches win over the given ones. `candidate` picks one of several.
        Raises UsageError for a recorded name that the study does not have.
        """
        if foreign := params.keys() - self.parameters.keys():
            raise UsageError(f"study {self.name}: {', '.join(sorted(foreign))} is no hyperparameter of its space")
        values: dict[str, Any] = {"seed": seed, "stream_seed": stream_seed, **self.training}
        values |= self.candidates[candidate][1] if self.candidates else {}
        for name in self._order:
            parameter = self.space[name]
            if (recorded := recorded_name(name, parameter)) in params:
                factor_of = parameter.times if isinstance(parameter, Float) else None
                values[name] = (
                    params[recorded] * values.get(factor_of, Recipe.learning_rate) if factor_of else params[recorded]
                )
        if values.get("scheduler") != PEAK_SCHEDULER:
            values.pop("peak_learning_rate", None)  # fixed for the trials of the search that are onecycle
        return Recipe(model=self.model.name, **values)

    def to_tables(self) -> dict[str, Any]:
        """The tables of a study file that says the same, with every default written out; plain JSON values."""
        tables: dict[str, Any] = {"name": self.name, "description": self.description, "seed": self.seed}
        tables |= {"seeds": list(self.seeds)} if self.seeds else {}
        tables |= {key: getattr(self, key).model_dump(exclude_none=True) for key in SECTIONS}
        tables |= {"training": dict(self.training)}
        tables |= {"space": {name: to_table(parameter) for name, parameter in self.space.items()}}
        tables |= {"first": [dict(configuration) for configuration in self.first]} if self.first else {}
        compared = [{"label": label, **values} for label, values in self.candidates]
        return tables | ({"candidate": compared} if compared else {})

    def to_json(self) -> str:
        return json.dumps(self.to_tables())

    @staticmethod
    def from_json(text: str) -> "StudySpec":
        """The study that `to_json` wrote. Raises StudyFileError if it is damaged, or rules have changed since."""
        try:
            tables = json.loads(text)
            # What was accepted once and had no effect.
            if tables.get("sampler", {}).get("name") == "grid":
                tables["sampler"].pop("seed", None)
            if tables.get("space"):
                tables.get("training", {}).pop("stream_offset", None)
        except AttributeError as error:
            raise StudyFileError([f"{STORED}: is damaged (it is no JSON object of tables); {RESTORE}"]) from error
        except (RecursionError, TypeError, ValueError) as error:
            raise StudyFileError([f"{STORED}: is damaged ({error}); {RESTORE}"]) from error
        return build(tables, STORED, recorded=True)


def unused(recipe: Recipe) -> dict[str, Any]:
    """The hyperparameters that mean nothing under the recipe's schedule, at their defaults."""
    names = [name for name, condition in IMPLIED.items() if recipe.scheduler not in condition["scheduler"]]
    names += ["momentum"] if recipe.scheduler == PEAK_SCHEDULER else []
    return {name: default(name) for name in names}


def parse(text: str, source: str) -> StudySpec:
    """The study that a TOML text describes; `source` is what mistakes call it.

    Raises StudyFileError with every mistake of form. Names that no table holds: see `catalogue.read`.
    """
    return build(read_tables(text, source), source)


def read_tables(text: str, source: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises StudyFileError with the line of a syntax error."""
    try:
        return tomllib.loads(text)
    except ValueError as error:  # not only TOMLDecodeError: also a number of more digits than Python reads
        place = str(error).replace("end of document", f"the end, line {len(text.splitlines())}")
        raise StudyFileError([f"{source}: is not valid TOML: {' '.join(place.split())}"]) from error


def build(tables: Mapping[str, Any], source: str, *, recorded: bool = False) -> StudySpec:
    """The study that the tables describe. Raises StudyFileError with every mistake of form; see `read_study`."""
    values, mistakes = read_study(tables, recorded)
    if mistakes:
        raise StudyFileError([f"{source}: {' '.join(mistake.split())}" for mistake in mistakes])
    return StudySpec(**values)


def with_overrides(tables: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tables with each `section.key=value` applied, as `--set` gives them; the original is left as it is.

    The value is read as TOML; what is not TOML is a text, so that `training.scheduler=onecycle` needs no quotes.
    Raises StudyFileError if an override has no `=`, or leads through something that is not a table.
    """
    changed = copy.deepcopy(dict(tables))
    mistakes = [mistake for override in overrides if (mistake := apply_override(changed, override))]
    if mistakes:
        raise StudyFileError(mistakes)
    return changed


def apply_override(tables: dict[str, Any], override: str) -> str | None:
    """Write one override into the tables; the mistake, if it cannot be done."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        return f"--set {override}: must be section.key=value, such as training.epochs=5"
    table = tables
    for depth, key in enumerate(keys[:-1], start=1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            return f"--set {override}: {'.'.join(keys[:depth])} is not a table; set it as a whole"
    table[keys[-1]] = override_value(text.strip())
    return None


def override_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text
