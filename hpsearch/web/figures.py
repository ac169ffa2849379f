"""Figures as Plotly traces without colours: the browser paints them, light or dark, by the role in each trace's `meta`.

Roles: faint (pruned and failed), plain (complete), running, best, and first to fourth for things side by side.
However many trials there are, a figure draws a few hundred of them: the best, those that run, and an even sample.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hpsearch.confusion import Confusion
from hpsearch.space import Choice, Float, Parameter
from hpsearch.web.queries import TrialRow
from hpsearch.web.words import metric as written
from hpsearch.web.words import number, spoken

MAX_CURVES = 200
MAX_BEST, MAX_RUNNING = 50, 64  # of those
MAX_EPOCHS_DRAWN = 60  # points of one curve
MAX_DOTS = 1500  # of the history
SIDE_BY_SIDE = ("first", "second", "third", "fourth")
CURVES = ("training_loss", "validation_loss", "training_accuracy", "validation_accuracy")
MAX_NAMED_CLASSES = 20  # the names of more do not fit beside a matrix; a pointer shows them
WHOLE, MAX_TICKS = ("epoch", "trial"), 10  # axes of whole numbers, and how many of them have a tick each
DECIMALS = 4  # of losses and accuracies of many trials: more cannot be seen, and doubles what is sent
SIGNIFICANT = 5  # digits of other values

Curves = Mapping[int, Sequence[tuple[Any, ...]]]
Figure = dict[str, Any]


def chosen(trials: Sequence[TrialRow], maximize: bool) -> tuple[list[TrialRow], TrialRow | None]:
    """The trials whose curves are drawn, by number, and the best complete one."""
    ranking = ranked(trials, maximize)
    if len(trials) <= MAX_CURVES:
        return [trial for trial in trials if trial.epoch], next(iter(ranking), None)
    picked = {trial.number: trial for trial in ranking[:MAX_BEST]}
    picked |= {trial.number: trial for trial in [t for t in trials if t.state == "RUNNING"][:MAX_RUNNING]}
    others = [trial for trial in trials if trial.epoch and trial.number not in picked]
    picked |= {trial.number: trial for trial in evenly(others, MAX_CURVES - len(picked))}
    return [picked[key] for key in sorted(picked)], next(iter(ranking), None)


def ranked(trials: Iterable[TrialRow], maximize: bool) -> list[TrialRow]:
    """The complete trials, the best first; others can record an infinite value, which is none."""
    sign = -1.0 if maximize else 1.0
    valued = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    complete = [trial for trial in valued if trial.state == "COMPLETE"]
    return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def history(trials: Sequence[TrialRow], name: str, maximize: bool) -> Figure:
    """The objective over trial numbers, and the best so far."""
    valued = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    complete = [trial for trial in valued if trial.state == "COMPLETE"]
    stopped = [trial for trial in valued if trial.state == "PRUNED"]
    records: list[TrialRow] = []
    for trial in complete:
        if not records or (trial.value > records[-1].value if maximize else trial.value < records[-1].value):  # type: ignore[operator]
            records.append(trial)
    groups = (("stopped early", "faint", stopped), ("complete", "plain", complete))
    traces = [
        _dots(word if len(dots) <= MAX_DOTS else f"{word}, an even sample", role, evenly(dots, MAX_DOTS))
        for word, role, dots in groups
    ]
    if records:
        last = trials[-1].number
        steps = [*((t.number, t.value) for t in records), (last, records[-1].value)]
        traces.append(_line("best so far", "best", steps) | {"line": {"shape": "hv"}, "hoverinfo": "skip"})
    return _figure([t for t in traces if t["x"]], x="trial", y=spoken(name), percent=name.endswith("accuracy"))


def curves(drawn: Sequence[TrialRow], best: TrialRow | None, values: Curves, column: int, name: str) -> Figure:
    """One metric over epochs: the best strongest, those that run, complete ones, and faint those that were stopped."""
    groups = {"faint": "stopped early or failed", "plain": "complete", "running": "running", "best": ""}
    members: dict[str, list[TrialRow]] = {role: [] for role in groups}
    for trial in drawn:
        members[_role(trial, best)].append(trial)
    traces: list[dict[str, Any]] = []
    for role, title in groups.items():
        x: list[Any] = []
        y: list[Any] = []
        numbers: list[Any] = []
        for trial in members[role]:
            points = thinned(values.get(trial.trial_id, ()))
            x += [*(point[0] for point in points), None]
            y += [*(None if (at := point[column]) is None else round(at, DECIMALS) for point in points), None]
            numbers += [*(trial.number for _ in points), None]
        if x:
            label = title or f"best: trial {best.number}" if best else title
            line: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": label, "x": x, "y": y}
            line |= {"customdata": numbers, "meta": {"role": role}}
            line |= {"hovertemplate": "trial %{customdata}, epoch %{x}: %{y}<extra></extra>"}
            traces.append(line)
            # A line through one point is none; y ends with None, which stands before its first one as well.
            lone = [at for at in range(len(y)) if y[at] is not None and y[at - 1] is None and y[at + 1] is None]
            if lone:
                dots = {key: [line[key][at] for at in lone] for key in ("x", "y", "customdata")}
                traces.append(line | {"mode": "markers", "showlegend": False} | dots)
    return _figure(traces, x="epoch", y="", percent=name.endswith("accuracy"), layout={"showlegend": False})


def rungs(trials: Sequence[TrialRow], epochs_of_rungs: Iterable[int], last_epoch: int) -> Figure:
    """How many trials reached each rung, and how many went on from there."""
    rows = [*sorted(epochs_of_rungs), last_epoch]
    reached = [sum(trial.epoch >= rung for trial in trials) for rung in rows]
    went_on = [
        sum(trial.epoch > rung or (trial.epoch == rung and trial.state == "COMPLETE") for trial in trials)
        for rung in rows
    ]
    labels = [f"epoch {rung}" for rung in rows]
    stopped = [a - b for a, b in zip(reached, went_on, strict=True)]
    groups = (("went on or finished", "best", went_on), ("stopped there, or not decided yet", "faint", stopped))
    bars: list[dict[str, Any]] = [
        {"type": "bar", "name": title, "x": labels, "y": y, "meta": {"role": role}} for title, role, y in groups
    ]
    hover: dict[str, Any] = {"hovertemplate": "%{x}: %{y} trials<extra>%{fullData.name}</extra>"}
    return _figure([bar | hover for bar in bars if any(reached)], x="", y="trials", layout={"barmode": "stack"})


def importances(shares: Mapping[str, float]) -> Figure:
    """Shares of the hyperparameters, the largest on top."""
    names = list(shares)[::-1]
    bar: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "y": [spoken(name) for name in names],
        "x": [shares[n] for n in names],
    }
    bar |= {"meta": {"role": "plain"}, "name": "importance", "hovertemplate": "%{y}: %{x:.1%}<extra></extra>"}
    layout = {"xaxis": {"tickformat": ".0%", "rangemode": "tozero"}, "showlegend": False, "rows": len(names)}
    return _figure([bar], x="importance", y="", layout=layout)


def parallel(
    drawn: Sequence[TrialRow],
    recipes: Mapping[int, Mapping[str, Any]],
    space: Mapping[str, Parameter],
    name: str,
    maximize: bool,
) -> Figure:
    """One line per trial across the searched hyperparameters to its value, the worst first.

    Lines and not Plotly's own parallel coordinates: those need WebGL, and scripts made from texts.
    """
    shown = [trial for trial in ranked(drawn, maximize)[::-1] if trial.trial_id in recipes]
    values = [trial.value or 0.0 for trial in shown]
    low, high = min(values, default=0.0), max(values, default=1.0)
    axes = [(key, _scale(space[key], [recipes[trial.trial_id].get(key) for trial in shown])) for key in space]
    traces = []
    for trial, value in zip(shown, values, strict=True):
        recipe, height = recipes[trial.trial_id], (value - low) / (high - low) if low < high else 0.5
        places = [(index, scale.place(recipe.get(key))) for index, (key, scale) in enumerate(axes)]
        points = [*((index, round(place, 4)) for index, place in places if place is not None), (len(axes), height)]
        trace = _line(str(trial.number), "scale", points)
        trace["meta"]["at"] = 1.0 if low == high else round(height if maximize else 1 - height, 3)
        traces.append(trace | {"hoverinfo": "text", "text": f"trial {trial.number}: {written(value, name)}"})
    ends = [(0.0, written(low, name)), (1.0, written(high, name))] if low < high else [(0.5, written(low, name))]
    titles = [spoken(key).replace(" ", "<br>") for key in (*space, name)]
    layout = {
        "showlegend": False,
        "xaxis": {"tickvals": list(range(len(titles))), "ticktext": titles, "range": [-0.3, len(axes) + 0.6]},
        "yaxis": {"visible": False, "range": [-0.06, 1.06]},
        "scales": [*(scale.labels for _, scale in axes), ends if shown else []],
    }
    return _figure(traces, x="", y="", layout=layout)


def side_by_side(named: Sequence[tuple[str, Sequence[tuple[Any, ...]]]], column: int, name: str) -> Figure:
    """One metric of a few trials, each in its own colour."""
    traces = [
        _line(label, role, [(point[0], _rounded(point[column])) for point in thinned(points)])
        | {"hovertemplate": f"epoch %{{x}}: %{{y}}<extra>{plain(label)}</extra>"}
        for role, (label, points) in zip(SIDE_BY_SIDE, named, strict=False)
    ]
    return _figure(traces, x="epoch", y="", percent=name.endswith("accuracy"), layout={"showlegend": False})


def of_trial(
    points: Sequence[tuple[Any, ...]], columns: Sequence[tuple[int, str, str]], y: str, percent: bool
) -> Figure:
    """Metrics of one trial over its epochs: (column, label, role) of each."""
    traces = [
        _line(label, role, [(p[0], _rounded(p[column])) for p in thinned(points)]) for column, label, role in columns
    ]
    hover = {"hovertemplate": "epoch %{x}: %{y}<extra>%{fullData.name}</extra>"}
    single = {"showlegend": len(traces) > 1}
    return _figure([trace | hover for trace in traces], x="epoch", y=y, percent=percent, layout=single)


def confusion_matrix(found: Confusion) -> Figure:
    """Rows are classes, columns what they were taken for, as shares of the row; what is right lies on the diagonal."""
    names = [plain(name) for name in found.classes]
    shares = [[round(count / max(1, sum(row)), 3) for count in row] for row in found.counts]
    hover = "%{y} taken for %{x}: %{z:.1%}, %{text} images<extra></extra>"
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": shares,
        "text": found.counts,
        "hovertemplate": hover,
    }
    trace |= {"meta": {"role": "matrix"}, "showscale": False, "zmin": 0, "zmax": 1}
    few = len(names) <= MAX_NAMED_CLASSES
    axes = {"showticklabels": few, "type": "category", "constrain": "domain"}
    layout = {"xaxis": axes, "yaxis": axes | {"autorange": "reversed", "scaleanchor": "x"}}
    return _figure([trace], x="taken for", y="class", layout=layout)


def class_accuracies(named: Sequence[tuple[str, str, Confusion]]) -> Figure:
    """The accuracy on each class, one dot for each trial (role, label, matrix), in the order of the first one's."""
    classes = named[0][2].classes
    first = [accuracy or 0.0 for accuracy in named[0][2].accuracies]
    order = sorted(range(len(classes)), key=lambda index: -first[index])
    traces = []
    for role, label, found in named:
        if found.classes != classes:
            continue
        y = [None if (a := found.accuracies[index]) is None else round(a, 4) for index in order]
        trace = _line(label, role, zip([plain(classes[index]) for index in order], y, strict=True))
        hover = f"%{{x}}: %{{y:.1%}}<extra>{plain(label)}</extra>"
        traces.append(trace | {"mode": "markers", "hovertemplate": hover})
    few = len(classes) <= MAX_NAMED_CLASSES
    layout = {"showlegend": False, "xaxis": {"type": "category", "showticklabels": few}}
    return _figure(traces, x="" if few else "classes, the first trial's best first", y="", percent=True, layout=layout)


def thinned(points: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """As many points as a screen can tell apart, the first and the last among them."""
    return evenly(points, MAX_EPOCHS_DRAWN)


def evenly(things: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(things) <= most:
        return things
    if most < 2:
        return things[:most]
    return [things[round(index * (len(things) - 1) / (most - 1))] for index in range(most)]


class _Scale:
    """One axis of the parallel coordinates: 0 at the bottom, 1 at the top, with a few labels."""

    def __init__(self, values: Sequence[float], labels: Sequence[str], log: bool, names: Sequence[Any]) -> None:
        self._values, self._log, self._names = values, log, list(names)
        self.labels = [(self.place(value), label) for value, label in zip(names or values, labels, strict=True)]

    def place(self, value: Any) -> float | None:
        """Where a value lies; None for a hyperparameter that the trial does not have."""
        if value is None:
            return None
        if self._names:
            return self._names.index(value) / max(1, len(self._names) - 1) if value in self._names else None
        low, high = (math.log(v) if self._log else v for v in (self._values[0], self._values[-1]))
        at = math.log(value) if self._log else value
        return (at - low) / ((high - low) or 1.0)


def _scale(parameter: Parameter, values: Sequence[Any]) -> _Scale:
    if isinstance(parameter, Choice):
        return _Scale([], [plain(number(c)) for c in parameter.choices], False, parameter.choices)
    known = [value for value in values if value is not None]
    factor = isinstance(parameter, Float) and parameter.times is not None
    ends = (min(known), max(known)) if factor and known else (parameter.low, parameter.high)
    return _Scale(ends, [number(end) for end in ends], parameter.log, [])


def _role(trial: TrialRow, best: TrialRow | None) -> str:
    if best is not None and trial.number == best.number:
        return "best"
    return {"RUNNING": "running", "COMPLETE": "plain"}.get(trial.state, "faint")


def _dots(name: str, role: str, trials: Sequence[TrialRow]) -> dict[str, Any]:
    x, y = [trial.number for trial in trials], [_rounded(trial.value) for trial in trials]
    hover = "trial %{x}: %{y}<extra>%{fullData.name}</extra>"
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "meta": {"role": role},
        "hovertemplate": hover,
    }


def _line(name: str, role: str, points: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    pairs = list(points)
    x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {"type": "scatter", "mode": "lines", "name": plain(name), "x": x, "y": y, "meta": {"role": role}}


def _figure(
    traces: Sequence[Mapping[str, Any]], x: str, y: str, percent: bool = False, layout: Mapping[str, Any] | None = None
) -> Figure:
    axes: dict[str, Any] = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    if x in WHOLE and max((at or 0 for trace in traces for at in trace["x"]), default=0) <= MAX_TICKS:
        axes["xaxis"]["dtick"] = 1  # no half epochs
    if percent:
        axes["yaxis"] |= {"tickformat": ".2~%", "hoverformat": ".2%"}
    for key, value in (layout or {}).items():
        axes[key] = axes[key] | value if key in axes else value
    return {"traces": list(traces), "layout": axes}


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{SIGNIFICANT}g}")


def plain(text: str) -> str:
    """A label without what Plotly would take for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")
