"""Figures of a search: best so far, rung survival, importances, parallel coordinates, rates and schedules."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from hpsearch.report.drawing import COLOURS, FAINT, Cell, Figure, axis, colour, epoch_axis, line, short, words
from hpsearch.report.gather import Gathered, Trial
from hpsearch.search.importance import caution

MANY = 200  # lines in one figure; beyond it only the best are drawn, and the CSV holds all
BEST = 5  # trials that are shown one by one


def figures(study: Gathered) -> Iterator[Figure]:
    """All of them that the study has data for."""
    if not study.spec.space or not study.begun:
        return
    yield best_so_far(study)
    if any(trial.epochs for trial in study.trials):
        yield survival(study)
        yield by_learning_rate(study)
        yield best_curves(study)
        yield schedules(study)
    if study.importances.shares:
        yield importances(study)
    if any(trial.value is not None for trial in study.trials):
        yield parallel(study)


def best_so_far(study: Gathered) -> Figure:
    done = [trial for trial in study.trials if trial.value is not None]
    complete = [trial for trial in done if trial.state == "COMPLETE"]
    pruned = [trial for trial in done if trial.state == "PRUNED"]
    pick = max if study.higher else min
    best: list[float] = []
    for trial in complete:
        best.append(pick([*best[-1:], trial.value or 0.0]))
    numbers = [trial.number for trial in complete]
    traces = [
        _dots("pruned (last value)", pruned, FAINT),
        _dots("complete", complete, COLOURS[0]),
        line("best so far", numbers, best, COLOURS[3], mode="lines", line={"shape": "hv"}),
    ]
    rows = [[t.number, t.state.lower(), t.value, len(t.epochs)] for t in study.trials]
    unfinished = len(study.trials) - len(done)
    rest = f"; {unfinished} without a value" if unfinished else ""
    caption = f"{len(complete)} trials trained to the end, {len(pruned)} were pruned{rest}."
    columns = ["trial", "state", study.metric, "epochs"]
    layout = {"xaxis": axis("trial"), "yaxis": axis(words(study.metric))}
    return Figure(f"{study.name}-best", "Best so far", caption, columns, rows, traces, layout)


def survival(study: Gathered) -> Figure:
    """How many trials reached each epoch."""
    last = study.spec.max_epochs
    reached = [sum(len(trial.epochs) >= epoch for trial in study.trials) for epoch in range(1, last + 1)]
    epochs = list(range(1, last + 1))
    traces = [
        {
            "type": "bar",
            "x": epochs,
            "y": reached,
            "name": "trials",
            "marker": {"color": [COLOURS[3] if e in study.rungs else COLOURS[0] for e in epochs]},
        }
    ]
    name = study.spec.pruner.name
    rungs = f"Rungs of {name} (in red): {', '.join(map(str, study.rungs))}." if study.rungs else f"Pruner: {name}."
    caption = f"Trials that trained at least so many epochs. {rungs}"
    rows = [[epoch, count, int(epoch in study.rungs)] for epoch, count in zip(epochs, reached, strict=True)]
    layout = {
        "xaxis": epoch_axis(study.spec.max_epochs),
        "yaxis": axis("trials", rangemode="tozero"),
        "showlegend": False,
    }
    columns = ["epoch", "trials", "rung"]
    return Figure(f"{study.name}-survival", "Rung survival", caption, columns, rows, traces, layout)


def by_learning_rate(study: Gathered) -> Figure:
    """Curves of all trials, coloured by their learning rate."""
    known = [trial for trial in study.trials if trial.epochs and trial.recipe.get("learning_rate")]
    rates = [math.log10(trial.recipe["learning_rate"]) for trial in known]
    low, high = min(rates, default=0.0), max(rates, default=1.0)
    traces: list[dict[str, Any]] = []
    shown = sorted(zip(known, rates, strict=True), key=lambda pair: _rank(study, pair[0]))[:MANY]
    for trial, rate in sorted(shown, key=lambda pair: pair[1]):
        x, y = trial.series(study.metric)
        name = f"trial {trial.number}, rate {trial.recipe['learning_rate']:.3g}"
        tint = _scale((rate - low) / ((high - low) or 1.0))
        traces.append(line(name, x, y, tint, showlegend=False, line={"width": 1.5}))
    if known:
        traces.append(_colour_bar(low, high))
    rows = [
        [trial.number, trial.recipe["learning_rate"], epoch, value]
        for trial in known
        for epoch, value in zip(*trial.series(study.metric), strict=True)
    ]
    columns = ["trial", "learning_rate", "epoch", study.metric]
    which = "Every trial" if len(shown) == len(known) else f"The {len(shown)} best of {len(known)} trials"
    caption = f"{which}, coloured by the initial learning rate: blue is the lowest, orange the highest."
    layout = {"xaxis": epoch_axis(study.spec.max_epochs), "yaxis": axis(words(study.metric))}
    return Figure(f"{study.name}-rates", "Learning rates compared", caption, columns, rows, traces, layout)


def best_curves(study: Gathered) -> Figure:
    """Training and validation of the best trials."""
    shown = study.best(BEST) or [trial for trial in study.trials if trial.epochs][:BEST]
    traces = []
    for index, trial in enumerate(shown):
        for metric, dash in (("validation_accuracy", "solid"), ("training_accuracy", "dot")):
            x, y = trial.series(metric)
            name = f"trial {trial.number}, {metric.partition('_')[0]}"
            traces.append(line(name, x, y, colour(index), line={"dash": dash}))
    caption = "Accuracy on the validation part (solid), and on augmented images while training (dotted)."
    return Figure(
        f"{study.name}-curves",
        "Curves of the best trials" if study.best(1) else "Curves of the first trials",
        caption,
        CURVE_COLUMNS,
        [row for trial in shown for row in curve_rows(f"trial {trial.number}", trial)],
        traces,
        {"xaxis": epoch_axis(study.spec.max_epochs), "yaxis": axis("accuracy")},
    )


def schedules(study: Gathered) -> Figure:
    """The rate at the end of each epoch."""
    shown = study.best(BEST) or [trial for trial in study.trials if trial.epochs][:BEST]
    traces = [
        line(f"trial {t.number}, {t.recipe.get('scheduler', '')}", *t.series("learning_rate"), colour(index))
        for index, t in enumerate(shown)
    ]
    rows = [
        [t.number, t.recipe.get("scheduler"), epoch, rate]
        for t in shown
        for epoch, rate in zip(*t.series("learning_rate"), strict=True)
    ]
    caption = "Learning rate at the last step of each epoch."
    layout = {
        "xaxis": epoch_axis(study.spec.max_epochs),
        "yaxis": axis("learning rate", type="log", exponentformat="power"),
    }
    columns = ["trial", "scheduler", "epoch", "learning_rate"]
    return Figure(f"{study.name}-schedules", "Schedules", caption, columns, rows, traces, layout)


def importances(study: Gathered) -> Figure:
    found = study.importances
    names = list(found.shares)[::-1]
    shares = [found.shares[name] for name in names]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [one.share for one in shares],
            "y": [words(name) for name in names],
            "marker": {"color": COLOURS[0]},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, one.high - one.share) for one in shares],
                "arrayminus": [max(0.0, one.share - one.low) for one in shares],
            },
        }
    ]
    text = (
        f"{found.evaluator}, for reaching the best tenth, from {found.num_complete} completed trials; pruned ones do "
        "not count. Lines: where 95 of 100 shares lie when the trials are drawn again with replacement."
    )
    if few := caution(found.num_complete):
        text += f" {few.capitalize()}."
    rows: list[list[Cell]] = [
        [name, found.shares[name].share, found.shares[name].low, found.shares[name].high] for name in found.shares
    ]
    layout = {"xaxis": axis("share", tickformat=".0%"), "yaxis": {"automargin": True}, "showlegend": False}
    columns = ["hyperparameter", "share", "low", "high"]
    height = 140 + 34 * len(names)
    return Figure(f"{study.name}-importances", "Importances", text, columns, rows, traces, layout, height=height)


def parallel(study: Gathered) -> Figure:
    """One line for each trial through the axes of all hyperparameters, drawn as lines so that it prints."""
    names = list(study.spec.space)
    trials = [trial for trial in study.trials if trial.value is not None]
    trials.sort(key=lambda t: t.value or 0.0, reverse=not study.higher)  # the best last: on top
    values = [t.value or 0.0 for t in trials]
    low, high = min(values), max(values)
    axes = [Axis(name, [trial.searched.get(name) for trial in trials]) for name in names]
    result = Axis(study.metric, values, linear=True)
    traces = []
    for trial in trials[-MANY:]:
        share = result.place(trial.value) or 0.0
        places = [*(one.place(trial.searched.get(one.name)) for one in axes), share]
        tint = _scale(1.0 if low == high else share if study.higher else 1 - share)
        name = f"trial {trial.number}: {trial.value:.4g}"
        x, y = zip(*((at, place) for at, place in enumerate(places) if place is not None), strict=True)
        style = {"width": 1.2}
        traces.append(line(name, x, y, tint, mode="lines", showlegend=False, line=style, hoverinfo="name"))
    notes = [note for place, one in enumerate(axes) for note in one.notes(place)]
    notes += result.notes(len(axes))
    ticks = {
        "tickvals": list(range(len(axes) + 1)),
        "ticktext": [words(n).replace(" ", "<br>") for n in [*names, study.metric]],
    }
    layout = {
        "xaxis": {**ticks, "showgrid": True, "range": [-0.3, len(axes) + 0.5], "zeroline": False},
        "yaxis": {"visible": False, "range": [-0.08, 1.08]},
        "annotations": notes,
        "hovermode": "closest",
        "minWidth": 110 * (len(axes) + 1),
    }
    rows = [[t.number, t.state.lower(), t.value, *(t.searched.get(name) for name in names)] for t in study.trials]
    which = "Every trial" if len(trials) <= MANY else f"The {MANY} best of {len(trials)} trials"
    caption = f"{which} with a value, pruned ones with their last; orange lines are the best."
    columns = ["trial", "state", study.metric, *names]
    return Figure(f"{study.name}-parallel", "Parallel coordinates", caption, columns, rows, traces, layout, height=440)


def _rank(study: Gathered, trial: Trial) -> float:
    """What puts the best first, and last what has no value."""
    return math.inf if trial.value is None else -trial.value if study.higher else trial.value


class Axis:
    """One hyperparameter, or the result: where its values stand between 0 and 1; absent ones stand nowhere."""

    def __init__(self, name: str, values: Sequence[Cell], linear: bool = False) -> None:
        self.name = name
        given = [value for value in values if value is not None]
        self.names = sorted({str(value) for value in given}) if any(isinstance(v, str) for v in given) else []
        numbers = [float(value) for value in given if not isinstance(value, str)] if not self.names else []
        self.low, self.high = min(numbers, default=0.0), max(numbers, default=1.0)
        self.log = not linear and self.low > 0 and self.high / self.low > 30

    def place(self, value: Cell) -> float | None:
        if value is None:
            return None
        if self.names:
            return (self.names.index(str(value)) + 0.5) / len(self.names)
        number = float(value)
        if self.high <= self.low:
            return 0.5
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def notes(self, x: int) -> list[dict[str, Any]]:
        """The words beside the axis."""
        if self.names:
            marks = [(self.place(name) or 0.0, name) for name in self.names]
        elif self.high <= self.low:
            marks = [(0.5, short(self.low))]
        else:
            marks = [(0.0, short(self.low)), (1.0, short(self.high))]
        at = {"x": x, "xanchor": "left", "showarrow": False, "font": {"size": 11}, "bgcolor": "PAGE"}
        return [{**at, "y": y, "text": text} for y, text in marks]


CURVE_COLUMNS = (
    "curve",
    "trial",
    "epoch",
    "training_loss",
    "training_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
)


def curve_rows(label: str, trial: Trial) -> list[list[Cell]]:
    return [[label, trial.number, *(getattr(row, name) for name in CURVE_COLUMNS[2:])] for row in trial.epochs]


SCALE = ((70, 110, 220), (40, 160, 150), (235, 130, 20))  # blue, teal, orange: seen on white and on black


def _scale(share: float) -> str:
    """From blue (0) to orange (1); a value that is no number is grey."""
    if not 0 <= share <= 1:
        return COLOURS[-1]
    place = share * (len(SCALE) - 1)
    left = min(int(place), len(SCALE) - 2)
    mixed = [a + (b - a) * (place - left) for a, b in zip(SCALE[left], SCALE[left + 1], strict=True)]
    return f"rgb({','.join(str(round(value)) for value in mixed)})"


def _colour_bar(low: float, high: float) -> dict[str, Any]:
    """A trace without points that shows the scale."""
    ends = [low, high]
    bar = {"title": {"text": "rate"}, "tickvals": ends, "ticktext": [f"{10**end:.2g}" for end in ends], "thickness": 10}
    marker = {
        "color": ends,
        "colorscale": [[0, _scale(0)], [0.5, _scale(0.5)], [1, _scale(1)]],
        "showscale": True,
        "colorbar": bar,
        "size": 0.1,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None, None],
        "y": [None, None],
        "marker": marker,
        "showlegend": False,
    }


def _dots(name: str, trials: Sequence[Trial], tint: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [trial.number for trial in trials],
        "y": [trial.value for trial in trials],
        "marker": {"color": tint, "size": 8},
    }
