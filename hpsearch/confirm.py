"""Confirmation: train the best configurations again from new seeds, and say how much of the search's result was luck.

The confirmation of a study is a study of its own, `<study>-confirm`, that workers train like any other: its candidates
are the best configurations, the first one and the default one; its pruner is the race of `hpsearch.statistics`. What is
said here follows from what is recorded, so that it is the same wherever it is asked.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress, count, islice
from typing import Any

from optuna.trial import FrozenTrial

from hpsearch import spec as study_file
from hpsearch.candidates import OF_THE_SEED
from hpsearch.errors import StorageError, StudyFileError, UsageError
from hpsearch.names import derived
from hpsearch.recipe import Recipe
from hpsearch.search.racing import standing, values
from hpsearch.search.samplers import corner
from hpsearch.sections import Metric, Objective
from hpsearch.spec import RESTORE, StudySpec
from hpsearch.statistics import Elimination, Estimate, Race, estimate
from hpsearch.storage.open import Database
from hpsearch.storage.studies import (
    DATA_KEY,
    LoadedStudy,
    create_study,
    load_study,
    ranked,
    recorded_recipe,
    study_names,
)

LINK_KEY = "hpsearch:link"  # study attribute: which study this one belongs to, and where its candidates come from
CONFIRM = "confirm"
DEFAULT_TOP, DEFAULT_SEEDS = 5, 5


@dataclass(frozen=True)
class Origin:
    """Where a candidate comes from: the trial of the search and its value there, if it has one."""

    label: str
    trial: int | None
    value: float | None


@dataclass(frozen=True)
class Standing:
    """One candidate over the seeds: values in the study's own unit, `luck` positive if the search promised too much."""

    label: str
    number: int
    origin: Origin
    values: tuple[float, ...]
    over_seeds: Estimate
    luck: Estimate | None
    in_set: bool  # whether it cannot be told from the best
    verdict: str


@dataclass(frozen=True)
class Group:
    """One candidate's completed trials, by seed: of those seeds that count in `result`.

    `lost` ones diverged or failed; not those that a race spared it after that, or ended.
    """

    trials: tuple[FrozenTrial, ...]
    lost: int


@dataclass(frozen=True)
class Confirmation:
    """The result of a confirmation as far as it goes, the best candidate first.

    Of several the first one is the best on these seeds, so its mean is somewhat optimistic.
    """

    study: str
    confirms: str
    metric: Metric
    num_seeds: int
    seeds_done: int
    standings: tuple[Standing, ...]

    @property
    def finished(self) -> bool:
        """Whether every candidate that is still in the race has all seeds."""
        return self.seeds_done == self.num_seeds and bool(self.standings) and self.standings[0].in_set

    @property
    def lost(self) -> bool:
        """Whether no candidate is left: of each a trial diverged or failed."""
        return bool(self.standings) and not any(one.in_set for one in self.standings)

    @property
    def promised(self) -> Standing | None:
        """The candidate of which the search reported the best value; None if it reported none."""
        lowest = Objective(metric=self.metric).direction == "minimize"
        reported = [one for one in self.standings if one.origin.value is not None]
        key = lambda one: one.origin.value  # noqa: E731
        return (min if lowest else max)(reported, key=key, default=None)


def name_of(study: str) -> str:
    return derived(study, "-confirm")


def create(database: Database, study: LoadedStudy, top: int, num_seeds: int) -> LoadedStudy:
    """Make the study that confirms `study`.

    Raises:
        UsageError: the study searches nothing, or no trial has completed.
        StorageError: it is being confirmed already.
    """
    spec = study.spec
    if not spec.space:
        raise UsageError(
            f"study {study.name}: searches nothing, so there is no choice to confirm; see `hpsearch report`"
        )
    best = ranked(study)
    if not best:
        raise UsageError(
            f"study {study.name}: no trial has completed yet; train some with `hpsearch worker {study.name}`"
        )
    candidates = _candidates(study, best, top)
    if len(candidates) < 2:
        raise UsageError(f"study {study.name}: has one configuration only, so there is nothing to compare; train more")
    used = {recorded_recipe(trial.user_attrs).get("seed") for trial in study.optuna_study.get_trials(deepcopy=False)}
    seeds = list(islice((seed for seed in count() if seed not in used), num_seeds))
    name = name_of(study.name)  # which is not that of the file where --study-name gave another
    confirming = _spec(study, candidates, seeds)
    link = {
        "kind": CONFIRM,
        "study": study.name,
        "created": study.created,
        "candidates": [asdict(origin) for origin, _ in candidates],
    }
    attributes = {LINK_KEY: json.dumps(link)}
    if (images := study.optuna_study.user_attrs.get(DATA_KEY)) is not None:
        attributes[DATA_KEY] = images
    create_study(database, confirming, name, attributes=attributes)
    return load_study(database, name)


def find(database: Database, study: LoadedStudy) -> LoadedStudy | None:
    """The study that confirms `study`, if there is one."""
    if name_of(study.name) not in study_names(database):
        return None
    found = load_study(database, name_of(study.name))
    if not confirms(found, study):
        earlier = link_of(found).get("kind") == CONFIRM and link_of(found).get("study") == study.name
        what = f"this study {study.name}, but an earlier one of that name" if earlier else f"the study {study.name}"
        raise StorageError(
            f"study {found.name}: does not confirm {what}; create the study again under another name with --study-name"
        )
    return found


def confirms(other: LoadedStudy, study: LoadedStudy) -> bool:
    """Whether the other study confirms this one, and not an earlier one of the same name."""
    link = link_of(other)
    return link.get("kind") == CONFIRM and link.get("created") == study.created


def link_of(study: LoadedStudy) -> dict[str, Any]:
    """What a study belongs to; empty for one that stands alone. Raises StorageError if the record is damaged."""
    text = study.optuna_study.user_attrs.get(LINK_KEY)
    try:
        link = json.loads(text) if text else {}
    except (TypeError, ValueError):
        link = None
    if not isinstance(link, dict):
        raise StorageError(f"study {study.name}: the record of what it belongs to is damaged; {RESTORE}")
    return link


def searched(database: Database, study: LoadedStudy) -> LoadedStudy:
    """The study that this one confirms, whose test split is opened for both; this one if there is none to be read."""
    link = link_of(study)
    if link.get("kind") != CONFIRM or link["study"] not in study_names(database):
        return study
    try:
        other = load_study(database, link["study"])
    except StudyFileError:  # damaged, or of another version
        return study
    return other if other.created == link.get("created") else study


def orphaned(database: Database, study: LoadedStudy) -> str:
    """A sentence if the study that this one confirms is not there, for which alone the test split is opened; or ""."""
    link = link_of(study)
    if link.get("kind") != CONFIRM or searched(database, study) is not study:
        return ""
    return (
        f"study {study.name}: the study {link['study']} that it confirms is not there, or cannot be read, and with it "
        f"whether its test split was opened; {RESTORE}"
    )


def result(study: LoadedStudy) -> Confirmation:
    """What the trials of a study with candidates say so far."""
    spec, link = study.spec, link_of(study)
    trials = study.optuna_study.get_trials(deepcopy=False)
    table, race = values(spec, trials), standing(spec, trials)
    origins = [Origin(**origin) for origin in link.get("candidates", [])]
    origins = origins or [Origin(label, None, None) for label, _ in spec.candidates]
    sign = 1.0 if spec.objective.maximize else -1.0
    rows = [_finite(row[: max(race.num_seeds, 1)]) for row in table]
    order = sorted(range(len(rows)), key=lambda c: (c in race.out, c != race.leader, -_mean(rows[c]), c))
    standings = tuple(_standing(c, origins[c], rows[c], race, sign) for c in order)
    return Confirmation(
        study.name, link.get("study", ""), spec.objective.metric, len(spec.seeds), race.num_seeds, standings
    )


def overtaken(study: LoadedStudy, found: Confirmation) -> str | None:
    """A sentence if the search that was confirmed has gone on since, and has found a better trial than it promised."""
    best = next(iter(ranked(study)), None) if study.spec.space else None
    promised = found.promised
    if best is None or best.value is None or promised is None or promised.origin.value is None:
        return None
    gain = best.value - promised.origin.value
    if (gain if study.spec.objective.maximize else -gain) <= 0:
        return None
    return (
        f"study {study.name}: trial {best.number} ({best.value:.4f}) has completed since it was confirmed, and "
        f"is better than the best that was ({promised.label}, {promised.origin.value:.4f})"
    )


def groups(study: LoadedStudy) -> list[Group]:
    """The trials over seeds of each candidate, or of the one configuration that the study has."""
    spec, trials = study.spec, study.optuna_study.get_trials(deepcopy=False)
    race = standing(spec, trials)
    num_seeds = max(race.num_seeds, 1) if spec.candidates else math.inf
    counted: list[list[FrozenTrial]] = [[] for _ in range(len(spec.candidates) or 1)]
    for trial in trials:
        candidate, block = spec.place(trial.number)
        if block < num_seeds and trial.state.is_finished():
            counted[candidate].append(trial)
    return [_group(spec, own, race.out.get(candidate)) for candidate, own in enumerate(counted)]


def _group(spec: StudySpec, ended: Sequence[FrozenTrial], out: Elimination | None) -> Group:
    complete = [trial.state.name == "COMPLETE" and trial.value is not None for trial in ended]
    until = out.num_seeds if out and spec.pruner.name == "race" else math.inf
    lost = (spec.place(trial.number)[1] < until for trial, done in zip(ended, complete, strict=True) if not done)
    return Group(tuple(compress(ended, complete)), sum(lost))


def configuration(recipe: Recipe) -> dict[str, Any]:
    """What a recipe sets, without the seeds and what is absent."""
    return {
        key: value
        for key, value in recipe.as_dict().items()
        if value is not None and key not in (*OF_THE_SEED, "model")
    }


def is_test_of(result: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> bool:
    """Whether a result on the test split is of the networks that these trials of one configuration have trained.

    Its label does not say so: another confirmation of the study may have had a candidate of that name.
    """
    recipes = [Recipe(**recipe) for trial in trials if (recipe := recorded_recipe(trial.user_attrs))]
    of = {json.dumps(configuration(recipe), sort_keys=True) for recipe in recipes}
    same = of == {json.dumps(result.get("configuration"), sort_keys=True)}
    return same and sorted(result["seeds"]) == sorted(recipe.seed for recipe in recipes)


def _candidates(study: LoadedStudy, best: Sequence[FrozenTrial], top: int) -> list[tuple[Origin, dict[str, Any]]]:
    """The best ones, the study's first trial and its default configuration, each once."""
    found: dict[str, tuple[Origin, dict[str, Any]]] = {}
    first = [trial for trial in study.optuna_study.get_trials(deepcopy=False) if trial.number == 0]
    for trial in [*best, *first]:
        if not (recipe := recorded_recipe(trial.user_attrs)):
            continue
        values = configuration(Recipe(**recipe))
        key = json.dumps(values, sort_keys=True)
        if key not in found and (len(found) < top or trial.number == 0):
            label = f"trial {trial.number}" + (" (first)" if trial.number == 0 else "")
            complete = trial.value if trial.state.name == "COMPLETE" else None
            found[key] = (Origin(label, trial.number, complete), values)
    lowest = corner(study.spec)  # of a peak rate, which has no default, the lowest, with a rate that is not above it
    given = {name: value for name, value in lowest.items() if name.startswith("peak_learning_rate")}
    if {**study.spec.training, **given}.get("peak_learning_rate", math.inf) < Recipe.learning_rate:
        given |= {name: value for name, value in lowest.items() if name.startswith("learning_rate")}
    given |= {"epochs": study.spec.max_epochs} if "epochs" in study.spec.space else {}  # as long as any other
    default = configuration(study.spec.recipe(given, 0, 0))
    found.setdefault(json.dumps(default, sort_keys=True), (Origin("default", None, None), default))
    if study.spec.model.export:  # what the export's weights are worth: the best configuration without them
        _, best_values = next(iter(found.values()))
        scratch = {key: value for key, value in best_values.items() if not key.startswith("frozen_")}
        plain = configuration(Recipe(model=study.spec.model.name, **{**scratch, "start": "scratch"}))
        found.setdefault(json.dumps(plain, sort_keys=True), (Origin("scratch", None, None), plain))
    return list(found.values())


def _spec(study: LoadedStudy, candidates: Sequence[tuple[Origin, Mapping[str, Any]]], seeds: list[int]) -> StudySpec:
    spec = study.spec
    tables = {key: value for key, value in spec.to_tables().items() if key in ("seed", "model", "data", "objective")}
    tables |= {
        "name": name_of(spec.name),
        "description": f"The best configurations of {study.name}, trained again from {len(seeds)} new seeds each",
        "seeds": seeds,
        "training": {"epochs": max(values["epochs"] for _, values in candidates)},
        "pruner": {"name": "race"},
        "candidate": [{"label": origin.label, **values} for origin, values in candidates],
    }
    return study_file.build(tables, name_of(spec.name))


def _standing(candidate: int, origin: Origin, mine: list[float], race: Race, sign: float) -> Standing:
    over_seeds = _signed(estimate(mine), sign)
    luck = None
    if origin.value is not None and mine:
        luck = estimate([sign * origin.value - value for value in mine])
    verdict = _verdict(candidate, race)
    own = tuple(sign * value for value in mine)
    in_set = candidate in race.alive
    return Standing(origin.label, candidate, origin, own, over_seeds, luck, in_set, verdict)


def _verdict(candidate: int, race: Race) -> str:
    if candidate in race.out:
        out = race.out[candidate]
        why = f"p = {out.p:.1g}" if out.rival is not None else "a trial diverged or failed"
        return f"out after {out.num_seeds} seed{'s' if out.num_seeds > 1 else ''} ({why})"
    return (
        "best" if candidate == race.leader else "cannot be told from the best" if race.leader is not None else "waits"
    )


def _signed(found: Estimate, sign: float) -> Estimate:
    if sign > 0:
        return found
    return Estimate(found.num, -found.mean, found.std, -found.high, -found.low)


def _finite(row: Iterable[float | None]) -> list[float]:
    """The values up to the first that is not there."""
    found: list[float] = []
    for value in row:
        if value is None or math.isnan(value):
            break
        found.append(value)
    return found


def _mean(row: Sequence[float]) -> float:
    return sum(row) / len(row) if row else -math.inf
