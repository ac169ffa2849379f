"""What the pages Trial and Compare say: plain values for their templates, and figures."""

from dataclasses import dataclass
from typing import Any

from hpsearch.confusion import SAMPLES_PICTURE, Confusion
from hpsearch.recipe import RULES
from hpsearch.storage.studies import LoadedStudy
from hpsearch.storage.tables import METRICS
from hpsearch.web import figures, queries
from hpsearch.web.queries import Listed, TrialRow
from hpsearch.web.source import Source

MOST_COMPARED = 4
COMPARED = ("validation_accuracy", "validation_loss", "training_accuracy", "training_loss", "learning_rate")
SEEDS = ("seed", "stream_seed")

Context = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of a configuration: a name, the values of the trials, and whether they differ."""

    name: str
    about: str
    values: tuple[Any, ...]
    searched: bool

    @property
    def differs(self) -> bool:
        """Whether the values are not all the same."""
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True)
class Picked:
    """A trial to compare, with its study and all that it recorded."""

    listed: Listed
    study: LoadedStudy
    trial: TrialRow
    recipe: dict[str, Any]
    points: list[tuple[Any, ...]]
    confusion: Confusion | None

    @property
    def label(self) -> str:
        """How legends call it."""
        return f"{self.listed.name}, trial {self.trial.number}"


def one_trial(
    source: Source, listed: Listed, study: LoadedStudy, number: int, with_figures: bool
) -> tuple[Context, Context] | None:
    """Trial: the values of its parts, and its figures; None if there is no such trial."""
    with source.database.engine.connect() as connection:
        trials = queries.trials(connection, listed.study_id)
        trial = next((one for one in trials if one.number == number), None)
        if trial is None:
            return None
        best = next(iter(figures.ranked(trials, study.spec.objective.maximize)), None)
        ids = [trial.trial_id, *([best.trial_id] if best is not None and best.number != number else [])]
        recipes = queries.recipes(connection, ids, study.spec.space)
        points = queries.epochs(connection, [trial.trial_id], METRICS).get(trial.trial_id, [])
        reason, trace = queries.endings(connection, [trial.trial_id]).get(trial.trial_id, ("", ""))
        start, end = queries.times(connection, trial.trial_id)
        happened = queries.trial_events(connection, trial.trial_id)
        files = queries.artifacts(connection, trial.trial_id)
    found = source.confusion(files)
    epochs = recipes.get(trial.trial_id, {}).get("epochs")
    context = {
        "listed": listed,
        "study": study,
        "metric": study.spec.objective.metric,
        "trial": trial,
        "best": best,
        "lines": configuration([recipes.get(trial_id, {}) for trial_id in ids], study),
        "last": dict(zip(("epoch", *METRICS), points[-1], strict=True)) if points else {},
        "epochs": epochs if isinstance(epochs, int) and epochs > 0 else study.spec.max_epochs,
        "reason": reason,
        "traceback": trace,
        "start": start,
        "end": end,
        "happened": happened,
        "lanes": sum(one.state == "RUNNING" and not one.abandoned and one.owner == trial.owner for one in trials),
        "checkpoints": source.checkpoints(study, number) if not trial.ended else [],
        "num_trials": len(trials),
        "confusion": found,
        "samples": files.get(SAMPLES_PICTURE) if found is not None else None,
    }
    return context, trial_figures(points, found) if with_figures else {}


def trial_figures(points: list[tuple[Any, ...]], found: Confusion | None) -> Context:
    """Every metric over epochs, training and validation together."""
    column = {name: index for index, name in enumerate(METRICS, start=1)}
    pairs = {
        "loss": (
            [(column["training_loss"], "training", "second"), (column["validation_loss"], "validation", "best")],
            "loss",
            False,
        ),
        "accuracy": (
            [
                (column["training_accuracy"], "training", "second"),
                (column["validation_accuracy"], "validation", "best"),
            ],
            "accuracy",
            True,
        ),
        "learning_rate": ([(column["learning_rate"], "learning rate", "best")], "learning rate, last step", False),
        "gradient_norm": ([(column["gradient_norm"], "gradient norm", "best")], "gradient norm", False),
        "images_per_second": ([(column["images_per_second"], "images per second", "best")], "images per second", False),
    }
    drawn = {name: figures.of_trial(points, *what) for name, what in pairs.items()}
    return drawn | ({"confusion": figures.confusion_matrix(found)} if found is not None else {})


def compared(source: Source, wanted: list[tuple[int, int]], with_figures: bool) -> tuple[Context, Context]:
    """Compare: trials given as (study id, number), side by side; the page says which are left out."""
    taken, surplus = wanted[:MOST_COMPARED], wanted[MOST_COMPARED:]
    picked = [one for pair in taken if (one := _pick(source, *pair)) is not None]
    columns = {name: index for index, name in enumerate(METRICS, start=1)}
    context = {
        "picked": picked,
        "lines": configuration([one.recipe for one in picked], *[one.study for one in picked]),
        "last": [dict(zip(("epoch", *METRICS), one.points[-1], strict=True)) if one.points else {} for one in picked],
        "surplus": surplus,
        "missing": [pair for pair in taken if not any((p.listed.study_id, p.trial.number) == pair for p in picked)],
        "studies": [one for one in source.listed() if one.created],
        "roles": figures.SIDE_BY_SIDE,
    }
    if not with_figures or not picked:
        return context, {}
    named = [(one.label, one.points) for one in picked]
    drawn = {name: figures.side_by_side(named, columns[name], name) for name in COMPARED}
    coloured = zip(figures.SIDE_BY_SIDE, picked, strict=False)
    matrices = [(role, one.label, one.confusion) for role, one in coloured if one.confusion is not None]
    if matrices:
        drawn["classes"] = figures.class_accuracies(matrices)
    for index, one in enumerate(picked):
        if one.confusion is not None:
            drawn[f"confusion-{index}"] = figures.confusion_matrix(one.confusion)
    return context, drawn


def configuration(recipes: list[dict[str, Any]], *studies: LoadedStudy) -> list[Line]:
    """The lines of a table of configurations, what was searched first; without what no trial sets."""
    searched = {name for study in studies for name in study.spec.space}
    names = ["model", *RULES]
    lines = [
        Line(
            name,
            RULES[name].about if name in RULES else "",
            tuple(recipe.get(name) for recipe in recipes),
            name in searched,
        )
        for name in names
        if any(recipe.get(name) is not None for recipe in recipes)
    ]
    return sorted(lines, key=lambda line: (not line.searched, line.name in SEEDS))


def _pick(source: Source, study_id: int, number: int) -> Picked | None:
    listed = source.find(study_id)
    study = source.load(listed) if listed is not None else None
    if listed is None or study is None:
        return None
    with source.database.engine.connect() as connection:
        trial = next(iter(queries.trials(connection, study_id, number)), None)
        if trial is None:
            return None
        recipe = queries.recipes(connection, [trial.trial_id], study.spec.space).get(trial.trial_id, {})
        points = queries.epochs(connection, [trial.trial_id], METRICS).get(trial.trial_id, [])
        files = queries.artifacts(connection, trial.trial_id)
    return Picked(listed, study, trial, recipe, points, source.confusion(files))
