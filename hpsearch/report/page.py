"""The page: one HTML file with everything in it, which opens without a network, in light and dark, and prints.

Names and captions are escaped, figures stand as JSON that no browser can take for markup, and the page's own policy
forbids it every request.
"""

import base64
import contextlib
import csv
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from hpsearch.errors import HpsearchError, UsageError, no_room
from hpsearch.report import evidence_figures, search_figures
from hpsearch.report.drawing import Cell, Figure, cut, plain, short, words
from hpsearch.report.gather import Gathered, gather
from hpsearch.report.samples import samples
from hpsearch.settings import Settings
from hpsearch.storage.open import Database

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a cell begins with that a spreadsheet computes
PLACES = ("x", "y")  # where names of classes and hyperparameters stand in a trace
UNKNOWN = "unknown, as the study that this one confirms is not there"
TEMPLATE = Path(__file__).parent / "page.html"


def write(database: Database, names: Sequence[str], path: Path, settings: Settings) -> list[Figure]:
    """Write the page about these studies, whole or not at all; its figures.

    Raises:
        StorageError: a study is not there.
        UsageError: the file cannot be written.
        HpsearchError: there is no room for it.
    """
    if not path.name:
        raise UsageError("-o: is empty; name the HTML file to write")
    studies = [gather(database, name) for name in dict.fromkeys(names)]
    sections = [(study, study_figures(study, settings)) for study in studies]
    shared = across(studies)
    text = page(sections, shared)
    work = path.with_name(f".{path.name}.{os.getpid()}.part")  # somebody else may write the same page
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_text(text, encoding="utf-8")
        work.replace(path)
    except OSError as error:
        if no_room(error):
            raise HpsearchError(f"-o {path}: {error.strerror}; make room and run the command again") from error
        raise UsageError(f"-o {path}: cannot be written ({error.strerror}); name another file") from error
    finally:
        with contextlib.suppress(OSError):
            work.unlink(missing_ok=True)
    return [*shared, *(figure for _, figures in sections for figure in figures)]


def study_figures(study: Gathered, settings: Settings) -> list[Figure]:
    """Everything about one study, in the order of the page."""
    drawn = [*search_figures.figures(study), *evidence_figures.figures(study)]
    return [samples(study, settings), *drawn]


def across(studies: Sequence[Gathered]) -> list[Figure]:
    """Figures of several studies together."""
    found = []
    carried: dict[tuple[Any, ...], list[Gathered]] = {}  # what differs in nothing but the size of its images
    for study in studies:
        if any(arm.values for arm in study.arms):
            model, data = study.spec.model, study.spec.data
            alike = (model.name, model.export, data.name, study.metric, study.spec.max_epochs, study.spec.seeds)
            carried.setdefault(alike, []).append(study)
    found += [
        evidence_figures.transferred(group, f"transfer-{number}")
        for number, group in enumerate(carried.values())
        if len(group) > 1
    ]
    tested = [(study.name, study.tested[0]) for study in studies if study.tested]
    for number, (one, other) in enumerate(combinations(tested, 2)):
        if _alike(one[1], other[1]):
            found.append(evidence_figures.side_by_side([one, other], f"classes-{number}"))
    return found


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two tests were of the same classes and images, as far as that is recorded."""
    key = "test_fingerprint" if "test_fingerprint" in one and "test_fingerprint" in other else "data"
    return bool(one["classes"] == other["classes"] and one[key] == other[key])


def page(sections: Sequence[tuple[Gathered, Sequence[Figure]]], shared: Sequence[Figure]) -> str:
    """The whole HTML text."""
    from plotly.offline import get_plotlyjs

    names = ", ".join(study.name for study, _ in sections)
    figures = [*shared, *(figure for _, figures in sections for figure in figures)]
    body = [_section(study, own) for study, own in sections]
    if shared:
        body.insert(
            0, f'<section><h2>Together</h2><div class="figures">{"".join(map(_figure, shared))}</div></section>'
        )
    filled = {
        "TITLE": html.escape(names),
        "MADE": html.escape(f"hpsearch {version('hpsearch')}, {datetime.now(UTC).isoformat(timespec='minutes')}"),
        "BODY": "\n".join(body),
        "FIGURES": _script_json({figure.key: _plot(figure) for figure in figures if figure.traces}),
        "PLOTLY": get_plotlyjs().replace("</script", "<\\/script"),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    head, *parts = text.split("{{")
    return head + "".join(filled[name] + rest for name, rest in (part.split("}}", 1) for part in parts))


def _section(study: Gathered, figures: Sequence[Figure]) -> str:
    name = html.escape(study.name)
    facts = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts_of(study))
    drawn = "".join(map(_figure, figures))
    described = html.escape(study.spec.description)
    head = f'<section id="study:{name}"><h2>{name}</h2><p>{described}</p><dl>{facts}</dl>'
    return f'{head}<div class="figures">{drawn}</div></section>'


def facts_of(study: Gathered) -> list[tuple[str, str]]:
    """The study in a few words and numbers."""
    now, spec = study.progress, study.spec
    left = f" ({now.abandoned} abandoned)" if now.abandoned else ""  # by workers that went away
    state = now.word if study.begun else "empty: no trial has begun"
    best = "none yet" if now.best_value is None else f"{short(now.best_value)} in trial {now.best_number}"
    seal = {0: "sealed", 1: "opened once"}.get(study.num_openings, f"opened {study.num_openings} times")
    if len(study.tested) < study.num_openings:
        seal += f", {len(study.tested)} with a result" if study.tested else ", without a result"
    return [
        ("state", state),
        ("trials", f"{now.finished} of {now.max_trials} ended, {now.running} running{left}"),
        ("ended", f"{now.complete} complete, {now.pruned} pruned, {now.failed} failed"),
        (f"best {words(study.metric)}", best),
        ("what", spec.summary()),
        ("test split", {None: UNKNOWN, 0: seal}.get(study.elsewhere, "see the study that this one confirms")),
    ]


def _figure(figure: Figure) -> str:
    title, caption, key = (html.escape(text) for text in (figure.title, figure.caption, figure.key))
    drawing = f'<div class="plot" id="{key}" data-height="{figure.height}"></div>' if figure.traces else figure.html
    encoded = base64.b64encode(csv_of(figure).encode()).decode()
    link = f'<a class="csv" download="{key}.csv" href="data:text/csv;base64,{encoded}">CSV, {len(figure.rows)} rows</a>'
    wide = " wide" if figure.layout.get("minWidth") else ""
    return f'<figure class="card{wide}"><h3>{title}</h3>{drawing}<figcaption>{caption} {link}</figcaption></figure>'


def csv_of(figure: Figure) -> str:
    """The numbers behind a figure; what is no number is empty, and no text is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_text, figure.columns))
    writer.writerows([["" if _missing(cell) else _text(cell) for cell in row] for row in figure.rows])
    return text.getvalue()


def _text(cell: Cell) -> Cell:
    """The cell; a text that spreadsheets would compute, as they do with a class called =1+1, with a quote before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) and not _numeric(cell) else cell


def _numeric(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _plot(figure: Figure) -> dict[str, Any]:
    layout = dict(figure.layout)
    traces = [trace | {key: plain(trace[key]) for key in PLACES if key in trace} for trace in map(dict, figure.traces)]
    for trace in traces:
        if "name" in trace:
            trace["name"] = plain(cut(trace["name"]))
    return {"data": _finite(traces), "minWidth": layout.pop("minWidth", 0), "layout": _finite(layout)}


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if _missing(value) else value


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _script_json(value: Any) -> str:
    """JSON in which nothing can end the script that it stands in."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
