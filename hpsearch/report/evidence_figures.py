"""Figures of what was confirmed, tested and carried over: curves over seeds, intervals, confusions, transfer."""

import html
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from hpsearch.arms import Arm
from hpsearch.report.drawing import (
    COLOURS,
    Cell,
    Figure,
    axis,
    band,
    colour,
    epoch_axis,
    interval_dots,
    label_axis,
    line,
    words,
)
from hpsearch.report.gather import Gathered
from hpsearch.report.search_figures import CURVE_COLUMNS, curve_rows
from hpsearch.statistics import Estimate, estimate, in_words, of_planned, shown

WORST = 12  # classes that a side-by-side figure of many classes shows at each end


def figures(study: Gathered) -> Iterator[Figure]:
    """All of them that the study has data for."""
    if study.labels and any(study.group(number) for number in range(len(study.labels))):
        yield table_one(study)
        yield over_seeds(study, ("training_accuracy", "validation_accuracy"), "accuracy")
        yield over_seeds(study, ("training_loss", "validation_loss"), "loss")
    if study.confirmation is not None and study.confirmation.seeds_done and not study.arms:
        yield confirmed(study)
    if any(arm.values for arm in study.arms):
        yield transferred([study], f"{study.name}-transfer")
    if study.layers:
        yield layer_table(study)
    for number, record in enumerate(study.tested):
        drawn = tested(study, record)
        yield from drawn if number == 0 else [next(drawn)]  # of later looks the table alone


def table_one(study: Gathered) -> Figure:
    """Test and training accuracy and training loss, averaged over the seeds."""
    columns = ["configuration", "seeds", "test accuracy", "validation accuracy", "training accuracy", "training loss"]
    shown: list[list[str]] = []
    rows: list[list[Cell]] = []
    for number, label in enumerate(study.labels):
        group = study.group(number)
        num = study.over_seeds(number, len(group))
        if not group and not study.lost[number]:
            continue
        last = [trial.epochs[-1] for trial in group if trial.epochs]
        found = [_over(last, name) for name in ("validation_accuracy", "training_accuracy", "training_loss")]
        accuracy = (study.tests[number] or {}).get("accuracy")
        test = Estimate(*(accuracy[key] for key in ("num", "mean", "std", "low", "high"))) if accuracy else None
        shown.append([label, num, *(_plus_minus(one) for one in [test, *found])])
        pairs = [[None, None] if one is None else [one.mean, one.std] for one in [test, *found]]
        rows.append([label, len(group), study.lost[number], *(value for pair in pairs for value in pair)])
    wide = [columns[0], columns[1], "lost", *(f"{name} {what}" for name in columns[2:] for what in ("mean", "std"))]
    caption = "At the end of training; mean and standard deviation over seeds. A dash: not tested."
    if study.tested_otherwise:
        caption += f" Tested before, with other seeds or values: {', '.join(study.tested_otherwise)}."
    return Figure(f"{study.name}-table", "Table 1: over seeds", caption, wide, rows, html=table(columns, shown))


def over_seeds(study: Gathered, metrics: tuple[str, str], what: str) -> Figure:
    """Mean curves with a band of one standard deviation."""
    traces: list[dict[str, Any]] = []
    for number, label in enumerate(study.labels):
        group = study.group(number)
        for metric, dash in zip(metrics, ("dot", "solid"), strict=True):
            x, means, spreads = _curve([trial.series(metric)[1] for trial in group])
            if not x:
                continue
            name = f"{label}, {metric.partition('_')[0]}"
            low, high = ([m + side * s for m, s in zip(means, spreads, strict=True)] for side in (-1, 1))
            traces += [
                band(x, low, high, colour(number), legendgroup=name),
                line(name, x, means, colour(number), line={"dash": dash}, legendgroup=name),
            ]
    rows = [row for n, label in enumerate(study.labels) for trial in study.group(n) for row in curve_rows(label, trial)]
    caption = (
        f"{what.capitalize()} while training (dotted) and on the validation part (solid): mean over seeds, and one "
        "standard deviation."
    )
    layout = {"xaxis": epoch_axis(study.spec.max_epochs), "yaxis": axis(what)}
    title = f"{what.capitalize()} over seeds"
    return Figure(f"{study.name}-{what}", title, caption, CURVE_COLUMNS, rows, traces, layout)


def confirmed(study: Gathered) -> Figure:
    """Candidates with their intervals, beside what the search reported."""
    assert study.confirmation is not None
    shown = [one for one in reversed(study.confirmation.standings) if one.over_seeds.num]
    labels = [one.label for one in shown]
    found = [one.over_seeds for one in shown]
    lows, highs = ([_end(one, end, study.metric) for one in found] for end in ("low", "high"))
    searched = [(one.origin.value, one.label) for one in shown if one.origin.value is not None]
    traces = [interval_dots("over seeds", range(len(labels)), [one.mean for one in found], lows, highs, COLOURS[0])]
    if searched:
        reported = {
            "type": "scatter",
            "mode": "markers",
            "name": "reported by the search",
            "x": [value for value, _ in searched],
            "y": [labels.index(label) for _, label in searched],
            "marker": {"color": COLOURS[3], "size": 11, "symbol": "diamond-open", "line": {"width": 2}},
        }
        traces.append(reported)
    alike = [one.label for one in study.confirmation.standings if one.in_set]
    seeds = f"{study.confirmation.seeds_done} of {study.confirmation.num_seeds}"
    caption = f"Means with 95 % intervals (Student's t) after {seeds} seeds. " + (
        "The distance to the diamond is the luck of the search's seed. " if searched else ""
    )
    caption += f"Cannot be told from the best: {', '.join(alike) or 'none'}."
    if len(study.confirmation.standings) > 1 and alike:
        caption += f" The mean of the best of {len(study.confirmation.standings)} is somewhat optimistic."
    if without := [f"{one.label}, {one.verdict}" for one in study.confirmation.standings if not one.over_seeds.num]:
        caption += f" Without a value: {'; '.join(without)}."
    columns = ["candidate", "seeds", "mean", "std", "low", "high", "in_search", "luck", "in_set", "verdict"]
    rows: list[list[Cell]] = [
        [
            one.label,
            one.over_seeds.num,
            one.over_seeds.mean,
            one.over_seeds.std,
            one.over_seeds.low,
            one.over_seeds.high,
            one.origin.value,
            one.luck.mean if one.luck else None,
            int(one.in_set),
            one.verdict,
        ]
        for one in study.confirmation.standings
    ]
    layout = {"xaxis": axis(words(study.metric)), "yaxis": label_axis(labels)}
    height = 170 + 42 * len(labels)
    return Figure(f"{study.name}-confirmed", "Confirmation", caption, columns, rows, traces, layout, height=height)


def transferred(studies: Sequence[Gathered], key: str) -> Figure:
    """Every way to train on the target, against scratch over the same seeds; the studies differ in the image size."""
    arms = [arm for study in studies for arm in study.arms if arm.values]
    traces: list[dict[str, Any]] = []
    rows: list[list[Cell]] = []
    names = list(dict.fromkeys(arm.label for arm in reversed(arms)))
    sizes = list(dict.fromkeys(arm.image_size for arm in arms))
    for index, size in enumerate(sizes):
        own = [arm for arm in arms if arm.image_size == size]
        shift = 0.22 * ((len(sizes) - 1) / 2 - index)  # beside each other, not on top
        means = [arm.over_seeds.mean for arm in own]
        lows, highs = ([_end(arm.over_seeds, end, studies[0].metric) for arm in own] for end in ("low", "high"))
        places = [names.index(arm.label) + shift for arm in own]
        traces.append(interval_dots(f"{size} x {size} pixels", places, means, lows, highs, colour(index)))
    for arm in arms:
        lead, own_mean = arm.over_scratch, arm.over_seeds
        over = (lead.mean, lead.low, lead.high) if lead else (None, None, None)
        about = (arm.study, arm.image_size, arm.label)
        rows.append([*about, own_mean.num, arm.lost, own_mean.mean, own_mean.low, own_mean.high, *over])
    columns = ["study", "image_size", "arm", "seeds", "lost", "mean", "low", "high"]
    columns += ["over_scratch", "over_low", "over_high"]
    layout = {"xaxis": axis(words(studies[0].metric)), "yaxis": label_axis(names)}
    height, caption = 170 + 46 * len(names), _transfer_caption(studies)
    return Figure(key, "Transfer against scratch", caption, columns, rows, traces, layout, height=height)


def _transfer_caption(studies: Sequence[Gathered]) -> str:
    arms, spec = [arm for study in studies for arm in study.arms], studies[0].spec
    several = len({arm.image_size for arm in arms}) > 1
    named = [(arm, f"{arm.label}{f' at {arm.image_size} px' if several else ''}") for arm in arms]
    leads = [
        f"{name} {arm.over_scratch.mean:+.3f} ({_ends(arm.over_scratch)}{_pairs(arm)})"
        for arm, name in named
        if arm.over_scratch
    ]
    lost = [f"{name}, {of_planned(len(arm.values), arm.planned, arm.lost)}" for arm, name in named if arm.lost]
    caption = (
        f"{words(studies[0].metric).capitalize()} of {spec.model.name} on {spec.data.name} with the same "
        "configuration, seeds and epochs; 95 % intervals. "
        f"Lead over scratch, paired by seed: {'; '.join(leads) or 'not known yet'}."
    )
    return caption + (f" Not of all seeds: {'. '.join(lost)}." if lost else "")


def layer_table(study: Gathered) -> Figure:
    columns = ["layer", "values", "taken over", "why"]
    rows: list[list[Any]] = [[fate["layer"], fate["num_values"], fate["fate"], fate["why"]] for fate in study.layers]
    shown = [[row[0], f"{row[1]:,}", *row[2:]] for row in rows]
    caption = "What the network takes over from the export, layer by layer."
    return Figure(f"{study.name}-layers", "Layers", caption, columns, rows, html=table(columns, shown))


def tested(study: Gathered, record: Mapping[str, Any]) -> Iterator[Figure]:
    """What one opening of the test split gave."""
    classes: list[str] = record["classes"]
    again = f" Opened again, because: {record['again']}." if record["again"] else ""
    if other := record.get("other_images"):
        again += f" These are other images than at the opening on {other}."
    when = f"Test split of {record['data']}, {record['num_images']} images, opened {record['time']}.{again}"
    stamp = record["time"].replace(":", "").replace("+0000", "").lower()
    result = record["result"]
    seeds = len(result["seeds"])
    shown = [
        [one["label"], of_planned(len(one["seeds"]), one.get("planned"), one.get("lost", 0), "")]
        + [in_words(one[key], key) for key in ("accuracy", "macro_f1", "calibration_error", "log_loss", "brier")]
        for one in record["results"]
    ]
    rows = [
        [one["label"], seed, *(one[key]["values"][index] for key in ("accuracy", "macro_f1", "calibration_error"))]
        for one in record["results"]
        for index, seed in enumerate(one["seeds"])
    ]
    columns = ["configuration", "seeds", "accuracy", "macro F1", "calibration error", "log loss", "Brier score"]
    caption = f"{when} Mean over seeds, with 95 % intervals."
    wide = ["configuration", "seed", "accuracy", "macro_f1", "calibration_error"]
    yield Figure(f"{study.name}-test-{stamp}", "Final test", caption, wide, rows, html=table(columns, shown))
    yield side_by_side([(study.name, record)], f"{study.name}-classes-{stamp}")
    title = f"Confusion matrix, {len(classes)} classes"
    yield confusion(f"{study.name}-confusion-{stamp}", title, result["confusion"], classes, seeds)
    if "superclasses" in result:
        rough = result["superclasses"]
        title = f"Confusion matrix, {len(rough['names'])} superclasses"
        yield confusion(f"{study.name}-superclasses-{stamp}", title, rough["confusion"], rough["names"], seeds)
    yield reliability(study, record, stamp)


def side_by_side(records: Sequence[tuple[str, Mapping[str, Any]]], key: str) -> Figure:
    """The accuracy on each class of the first two models that were tested on the same classes."""
    classes: list[str] = records[0][1]["classes"]
    models = [
        (f"{name}: {r['label']}" if len(records) > 1 else r["label"], r)
        for name, rec in records
        for r in rec["results"]
    ]
    shown = models[:2] if len(records) == 1 or len(models) < 3 else _firsts(models, records)
    order = sorted(range(len(classes)), key=lambda place: shown[0][1]["recall"][place])
    drawn = order if len(order) <= 2 * WORST else [*order[:WORST], *order[-WORST:]]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": [classes[place] for place in drawn],
            "x": [result["recall"][place] for place in drawn],
            "marker": {"color": colour(index)},
        }
        for index, (name, result) in enumerate(shown)
    ]
    part = "" if drawn == order else f" The {WORST} worst and the {WORST} best classes; the CSV holds all."
    caption = f"Share of the test images of each class that are recognised, mean over seeds.{part}"
    columns = ["class", *(name for name, _ in models)]
    rows: list[list[Cell]] = [
        [classes[place], *(result["recall"][place] for _, result in models)] for place in range(len(classes))
    ]
    layout = {
        "xaxis": axis("accuracy", range=[0, 1]),
        "yaxis": {"automargin": True, "type": "category", "dtick": 1},
        "barmode": "group",
    }
    title = "Accuracy by class" if len(shown) == 1 else "Accuracy by class, side by side"
    height = 130 + (18 if len(shown) == 1 else 30) * len(drawn)
    return Figure(key, title, caption, columns, rows, traces, layout, height=height)


def confusion(key: str, title: str, counts: Sequence[Sequence[int]], names: Sequence[str], seeds: int) -> Figure:
    """Shares of each true class; the diagonal is what is right."""
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    few = len(names) <= 20
    traces = [
        {
            "type": "heatmap",
            "x": list(names),
            "y": list(names),
            "z": shares,
            "colorscale": "Viridis",
            "zmin": 0,
            "zmax": 1,
            "colorbar": {"thickness": 10, "tickformat": ".0%"},
            "hovertemplate": "%{y} seen as %{x}: %{z:.1%}<extra></extra>",
        }
    ]
    marks = {"automargin": True, "type": "category", **({"dtick": 1} if few else {"showticklabels": False})}
    layout = {
        "xaxis": {**marks, **axis("predicted"), "tickangle": -90 if few and len(names) > 5 else 0},
        "yaxis": {**marks, **axis("true"), "autorange": "reversed"},
    }
    caption = f"Share of each true class (row) that is seen as each class (column); {seeds} seeds together."
    rows: list[list[Cell]] = [
        [names[i], names[j], count] for i, row in enumerate(counts) for j, count in enumerate(row) if count
    ]
    columns = ["true", "predicted", "images"]
    return Figure(key, title, caption, columns, rows, traces, layout, height=520)


def reliability(study: Gathered, record: Mapping[str, Any], stamp: str) -> Figure:
    traces: list[dict[str, Any]] = [line("perfect", [0, 1], [0, 1], COLOURS[-1], mode="lines", line={"dash": "dot"})]
    for index, result in enumerate(record["results"]):
        x, y = [row[0] for row in result["reliability"]], [row[1] for row in result["reliability"]]
        traces.append(line(result["label"], x, y, colour(index)))
    caption = "How often the network is right (up) against how sure it is (right); below the diagonal it is too sure."
    rows = [[result["label"], *row] for result in record["results"] for row in result["reliability"]]
    layout = {"xaxis": axis("confidence", range=[0, 1]), "yaxis": axis("accuracy", range=[0, 1])}
    columns = ["configuration", "confidence", "accuracy", "images"]
    return Figure(f"{study.name}-calibration-{stamp}", "Calibration", caption, columns, rows, traces, layout)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML; every cell is text."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="table" tabindex="0">{inside}</div>'


def _firsts(
    models: Sequence[tuple[str, Any]], records: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[tuple[str, Any]]:
    """The winner of each of the first two studies."""
    second = len(records[0][1]["results"])
    return [models[0], models[second]]


def _curve(series: Sequence[Sequence[float | None]]) -> tuple[list[int], list[float], list[float]]:
    """Mean and standard deviation at each epoch, as far as all seeds go; not where none has a finite number."""
    columns = [[value for value in column if value is not None] for column in zip(*series, strict=False)]
    known = {epoch: column for epoch, column in enumerate(columns, start=1) if column}
    spreads = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in known.values()]
    return list(known), [statistics.fmean(column) for column in known.values()], spreads


def _over(rows: Sequence[Row[Any]], name: str) -> Estimate | None:
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    return estimate(values) if values else None


def _ends(found: Estimate) -> str:
    return "no interval" if math.isnan(found.low) else f"{found.low:.3f} to {found.high:.3f}"


def _pairs(arm: Arm) -> str:
    """How many pairs a lead is over, where that is not all."""
    num = arm.over_scratch.num if arm.over_scratch else 0
    return "" if num == arm.planned else f", {num} of {arm.planned} pairs"


def _plus_minus(found: Estimate | None) -> str:
    if found is None:
        return "-"
    spread = "" if found.std is None or found.std != found.std else f" ± {found.std:.4f}"
    return f"{found.mean:.4f}{spread}"


def _end(found: Estimate, end: str, metric: str) -> float:
    """One end of an interval as it is drawn; the mean itself, where one seed gives none."""
    value: float = getattr(found, end)
    return found.mean if math.isnan(value) else shown(value, metric)
