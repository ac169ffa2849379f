"""What people read of an export: its study file and its model card."""

import json
import re
from collections.abc import Mapping
from typing import Any

from hpsearch.export_schema import Estimate, Metrics
from hpsearch.names import derived
from hpsearch.recipe import Recipe
from hpsearch.search.importance import caution
from hpsearch.spec import StudySpec
from hpsearch.statistics import of_planned, shown

NOT_TRAINING = ("model", "seed")  # fields of a recipe that stand elsewhere in a study file
UNTESTED = {  # by whether the test split was opened
    True: "opened for this study, and no result of these networks was recorded",
    False: "never opened for this study",
    None: "unknown: the study for which it would have been opened is not in the storage",
}
# What Markdown reads as markup; an underscore between letters is none.
MARKUP = re.compile(r"[`*~\[\]|]|\\(?=[!-/:-@\[-`{-~]|$)|(?<![^\W_])_|_(?![^\W_])")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # line breaks among them


def config(spec: StudySpec, recipe: Recipe) -> str:
    """A study file of one trial that trains the same again, bit for bit on the same kind of CPU."""
    model: dict[str, Any] = {"name": spec.model.name}
    model |= {"export": spec.model.export} if spec.model.export else {}
    idle = () if recipe.scheduler == "exponential" else ("gamma",)
    training = {k: v for k, v in recipe.as_dict().items() if k not in (*NOT_TRAINING, *idle) and v is not None}
    objective, data, name = spec.objective.model_dump(), spec.data.model_dump(), derived(spec.name, "-export")
    needs = (
        "# It begins with the weights of another export, which must be in the storage: see model.export.",
        "# Copy storage/weights from where that was made, or name the folder of that export in place of its sum.",
    )
    lines = [
        "# Trains the network of this export again.",
        *(needs if recipe.start == "export" else ()),
        f"# Run: hpsearch create-study config.toml && hpsearch worker {name}",
        "",
        f"name = {_text(name)}",
        f"description = {_text(f'One trial of {spec.name} again')}",
        f"seeds = [{recipe.seed}]",
        *_table("model", model),
        *_table("data", data),
        *_table("training", training),
        *_table("objective", objective),
    ]
    return "\n".join(lines) + "\n"


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    return ["", f"[{name}]", *(f"{key} = {_text(value)}" for key, value in values.items())]


def _text(value: Any) -> str:
    """A value as TOML, in which a character beyond the 16 bits of JSON's escapes must stand as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def card(metrics: Metrics, *, opened: bool | None) -> str:
    """The README.md of an export: what it is, and the evidence for it.

    `opened`: whether the test split ever was; None if nobody knows, as the study whose record says so is gone.
    """
    m = metrics
    lines = [
        f"# {_cell(m.model.name)} on {_cell(m.data.name)}",
        "",
        f"{m.model.num_parameters:,} parameters, {len(m.model.classes)} classes; made by hpsearch {m.hpsearch_version} "
        f"on {m.created}. Rank {m.rank}: {_cell(m.label)}.",
        "",
        "```python",
        "import hpsearch",
        'network = hpsearch.load_export("THIS FOLDER")',
        "logits = network(network.preprocess(image))    # a PIL image, or uint8 (B, C, H, W)",
        "```",
        "",
        "## Evidence",
        "",
        "| what | value |",
        "| --- | --- |",
        *(f"| {_cell(what)} | {_cell(value)} |" for what, value in _evidence(m, opened)),
        "",
        *_importances(m),
        "## Configuration",
        "",
        "| hyperparameter | value |",
        "| --- | --- |",
        *(f"| {name} | {_cell(str(value))} |" for name, value in m.configuration.items() if value is not None),
        "",
        "## Preprocessing",
        "",
        f"{m.preprocessing.channels} channel(s), resized to {m.preprocessing.image_size} pixels high and wide "
        f"(bicubic, antialiased), scaled to 0..1; mean {_numbers(m.preprocessing.mean)} subtracted, divided by "
        f"{_numbers(m.preprocessing.std)}.",
        "",
        "Classes, in the order of the outputs: " + ", ".join(map(_cell, m.model.classes)) + ".",
        "",
        "`hpsearch verify THIS FOLDER` checks the checksums, the schema, and that the weights give the validation",
        "accuracy that is stated here.",
    ]
    return "\n".join(lines) + "\n"


def _evidence(m: Metrics, opened: bool | None) -> list[tuple[str, str]]:
    rows = [
        ("these weights, validation accuracy", f"{m.weights.validation_accuracy:.4f} (seed {m.weights.seed})"),
        ("these weights, validation loss", f"{m.weights.validation_loss:.4f}"),
    ]
    if m.confirmation is None:
        rows.append(("confirmed over seeds", "no: the value of one trial of a search, which is partly luck"))
    else:
        c = m.confirmation
        num = of_planned(c.value.num, c.planned, c.lost, " new seeds")
        rows.append((f"{m.metric} over {num}", _interval(c.value, m.metric)))
        if c.luck is not None and c.search_value is not None:
            rows.append(("reported by the search", f"{c.search_value:.4f}; luck {c.luck.mean:+.4f}"))
        if c.not_told_apart:  # it was compared with others
            if m.rank == 1:
                rows.append(
                    ("chosen by that", "as the best of several on these seeds; its mean is somewhat optimistic")
                )
            rows.append(("cannot be told from the best", ", ".join(c.not_told_apart)))
    if m.test is None:
        rows.append(("test split", UNTESTED[opened]))
    else:
        once = "once" if m.test.openings == 1 else f"{m.test.openings} times; this is the first result"
        accuracy = _interval(m.test.accuracy, "accuracy")
        rows.append((f"test accuracy ({m.test.label})", f"{accuracy}; opened {once}, {m.test.time}"))
        rows.append(("test macro F1", _interval(m.test.macro_f1, "macro_f1")))
        rows.append(("expected calibration error", _interval(m.test.calibration_error, "calibration_error")))
    if m.search is not None:
        s = m.search
        rows.append(("search", f"{s.trials} trials, {s.pruned} pruned ({s.pruned_share:.0%}), {s.failed} failed"))
    rows.append(("data", f"{m.data.name}: {m.data.num_train} training and {m.data.num_validation} validation images"))
    rows.append(("data and split, SHA-256", m.data.fingerprint))
    return rows


def _importances(m: Metrics) -> list[str]:
    if m.search is None or not m.search.importances:
        return []
    rows = [
        f"| {name} | {one.share:.0%} | {one.low:.0%} to {one.high:.0%} |" for name, one in m.search.importances.items()
    ]
    trials = caution(m.search.complete) or f"{m.search.complete} completed trials"
    by = f"{m.search.importance_evaluator}, {trials}; 95 % bootstrap intervals"
    return [f"## Importances ({by})", "", "| hyperparameter | share | interval |", "| --- | --- | --- |", *rows, ""]


def _interval(found: Estimate, metric: str) -> str:
    if found.low is None or found.high is None:
        return f"{found.mean:.4f}"
    low, high = (shown(end, metric) for end in (found.low, found.high))
    return f"{found.mean:.4f} (95 % interval {low:.4f} to {high:.4f}, {found.num} seeds)"


def _cell(text: str) -> str:
    """A text that ends no cell of a table, and is no markup."""
    text = MARKUP.sub(r"\\\g<0>", text).replace("&", "&amp;").replace("<", "&lt;")
    return CONTROL.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
