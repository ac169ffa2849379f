"""What a report needs of a study, read once and kept as plain values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Row, select

from hpsearch import confirm
from hpsearch.arms import KIND, Arm, compare
from hpsearch.confirm import Confirmation
from hpsearch.search.importance import Bootstrapped, bootstrap
from hpsearch.search.pruners import make_pruner, rungs
from hpsearch.space import recorded_name
from hpsearch.spec import StudySpec
from hpsearch.statistics import of_planned
from hpsearch.storage.open import Database
from hpsearch.storage.openings import openings
from hpsearch.storage.pinned import recorded_images
from hpsearch.storage.studies import Progress, load_study, progress, recorded_recipe
from hpsearch.storage.tables import EPOCHS, TRIALS


@dataclass(frozen=True)
class Trial:
    """One trial: `epochs` holds the metrics of each, in rows; `candidate` and `searched` where the study has such."""

    number: int
    state: str
    value: float | None
    recipe: Mapping[str, Any]
    searched: Mapping[str, Any]
    candidate: int
    epochs: tuple[Row[Any], ...]

    def series(self, metric: str) -> tuple[list[int], list[float | None]]:
        """Epochs, and the metric at each."""
        return [row.epoch for row in self.epochs], [getattr(row, metric) for row in self.epochs]


@dataclass(frozen=True)
class Gathered:
    """One study with everything that is recorded of it."""

    name: str
    spec: StudySpec
    created: str
    progress: Progress
    trials: tuple[Trial, ...]
    rungs: tuple[int, ...]
    importances: Bootstrapped
    confirmation: Confirmation | None  # of a study with candidates
    lost: tuple[int, ...]  # of each group over seeds, the trials that diverged or failed
    images: str | None  # fingerprint of those that its trials saw, if that is recorded
    num_openings: int  # of the test split
    tested: tuple[Mapping[str, Any], ...]  # those that have a result; the others ended while it was open
    elsewhere: int | None  # openings recorded with the study that this one confirms; None: it is not there
    tests: tuple[Mapping[str, Any] | None, ...]  # of each group over seeds, its result on the test split
    tested_otherwise: tuple[str, ...]  # groups of which there is none, but one of other networks by that name
    arms: tuple[Arm, ...]  # of a transfer
    layers: tuple[Mapping[str, Any], ...]

    @property
    def begun(self) -> bool:
        """Whether a trial has begun; those that wait to be tried first do not count."""
        return any(trial.state != "WAITING" for trial in self.trials)

    @property
    def metric(self) -> str:
        return self.spec.objective.metric

    @property
    def higher(self) -> bool:
        return self.spec.objective.maximize

    @property
    def labels(self) -> list[str]:
        """What the groups of trials over seeds are called."""
        return labels_of(self.spec, self.name)

    def over_seeds(self, number: int, num: int) -> str:
        """That so many trials of a group have a value, of how many, and how many diverged or failed."""
        planned = len(self.spec.seeds) if self.spec.candidates else self.progress.max_trials
        return of_planned(num, max(planned, num + self.lost[number]), self.lost[number], "")

    def group(self, number: int) -> list[Trial]:
        """The completed trials of one candidate."""
        return [trial for trial in self.trials if trial.candidate == number and trial.state == "COMPLETE"]

    def best(self, num: int) -> list[Trial]:
        """The best completed trials."""
        complete = [trial for trial in self.trials if trial.state == "COMPLETE" and trial.value is not None]
        return sorted(complete, key=lambda t: (-(t.value or 0.0) if self.higher else (t.value or 0.0), t.number))[:num]


def gather(database: Database, name: str) -> Gathered:
    """Read a study. Raises StorageError if there is none of that name."""
    study = load_study(database, name)
    spec, link = study.spec, confirm.link_of(study)
    trials = study.optuna_study.get_trials(deepcopy=False)
    rows = _epochs(database, study.study_id)
    found = rungs(make_pruner(spec)) or frozenset()
    looks, searched = openings(database, study), confirm.searched(database, study)
    elsewhere = openings(database, searched) if searched is not study else []
    labels = labels_of(spec, name)
    first = [record for looked in (looks, elsewhere) for record in _with_results(looked)[:1]]  # which counts
    known = {result["label"] for record in first for result in record["results"]}
    groups = confirm.groups(study) if labels else []
    tests = tuple(_test(first, group.trials) for group in groups)
    return Gathered(
        name=name,
        spec=spec,
        created=study.created,
        progress=progress(database, study),
        trials=tuple(_trial(spec, trial, rows.get(trial._trial_id, ())) for trial in trials),
        rungs=tuple(sorted(found)),
        importances=_importances(study.optuna_study, spec),
        confirmation=confirm.result(study) if spec.candidates else None,
        lost=tuple(group.lost for group in groups),
        images=recorded_images(study),
        num_openings=len(looks),
        tested=_with_results(looks),
        elsewhere=None if confirm.orphaned(database, study) else len(elsewhere),
        tests=tests,
        tested_otherwise=tuple(label for label, test in zip(labels, tests, strict=True) if not test and label in known),
        arms=tuple(compare([study])) if link.get("kind") == KIND else (),
        layers=tuple(link.get("layers", ())),
    )


def labels_of(spec: StudySpec, name: str) -> list[str]:
    """What the groups of trials over seeds are called; a search has none."""
    return [label for label, _ in spec.candidates] or ([name] if not spec.space else [])


def _test(records: Iterable[Mapping[str, Any]], trials: Sequence[FrozenTrial]) -> Mapping[str, Any] | None:
    """The result on the test split of the networks that these trials trained."""
    results = (result for record in records for result in record["results"])
    return next((result for result in results if confirm.is_test_of(result, trials)), None)


def _with_results(looks: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(record for record in looks if "results" in record)


def _importances(study: optuna.Study, spec: StudySpec) -> Bootstrapped:
    return bootstrap(study) if spec.space else Bootstrapped("PED-ANOVA", 0, {})


def _trial(spec: StudySpec, trial: FrozenTrial, rows: Sequence[Row[Any]]) -> Trial:
    recipe = recorded_recipe(trial.user_attrs)
    drawn = [name for name, parameter in spec.space.items() if recorded_name(name, parameter) in trial.params]
    searched = {name: recipe[name] for name in drawn if recipe.get(name) is not None}
    value = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    if value is not None and not math.isfinite(value):  # told by others, through Optuna
        value = None
    return Trial(trial.number, trial.state.name, value, recipe, searched, spec.place(trial.number)[0], tuple(rows))


def _epochs(database: Database, study_id: int) -> dict[int, list[Row[Any]]]:
    """Trial id -> its recorded epochs, in one statement."""
    statement = select(EPOCHS).join(TRIALS, TRIALS.c.trial_id == EPOCHS.c.trial_id)
    statement = statement.where(TRIALS.c.study_id == study_id).order_by(EPOCHS.c.trial_id, EPOCHS.c.epoch)
    found: dict[int, list[Row[Any]]] = {}
    with database.engine.connect() as connection:
        for row in connection.execute(statement):
            found.setdefault(row.trial_id, []).append(row)  # a study may have a million: as a dict each takes thrice
    return found
