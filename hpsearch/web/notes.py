"""What optuna-dashboard shows of a study beside its own pages: a note and figures, added to what it reads.

Nothing is written for that: note and figures are as new as the look at them, a reading dashboard stays a reading one,
and a note that a person has written is shown as it is.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study._frozen import FrozenStudy

from hpsearch.errors import StorageError
from hpsearch.storage.studies import LoadedStudy, progress
from hpsearch.web import figures, queries
from hpsearch.web.queries import Listed
from hpsearch.web.source import Source, rungs_of
from hpsearch.web.words import metric, number, spoken

NOTE_VERSION, NOTE_TEXT = "dashboard:note_ver", "dashboard:note_str:"  # optuna-dashboard's keys
FIGURE = "dashboard:plot_data:"
KEPT_SECONDS, REST = 5.0, 20  # how long an addition counts as new: at least so long, and so many times as it took

# optuna-dashboard does not repaint figures for its dark page, so these are colours for both.
COLOURS = {"faint": "#9aa4b0", "plain": "#5b87bd", "running": "#d07a1f", "best": "#1f77d0"}

Attributes = dict[str, Any]


class AnnotatedStorage(_CachedStorage):
    """A cached storage that adds to the system attributes of the study that this thread looks at."""

    def __init__(self, storage: BaseStorage, annotate: Callable[[int], Attributes]) -> None:
        super().__init__(storage._backend)  # type: ignore[attr-defined]
        self._annotate, self._looked_at = annotate, threading.local()

    def look_at(self, study_id: int | None) -> None:
        """Add to this study, in this thread, from now on."""
        self._looked_at.study_id = study_id

    def get_all_studies(self) -> list[FrozenStudy]:
        """As the storage gives them, one with its additions."""
        studies = super().get_all_studies()
        for study in studies:
            if study._study_id == getattr(self._looked_at, "study_id", None):
                study.system_attrs = _merged(self._annotate(study._study_id), study.system_attrs)
        return studies


class Notes:
    """Notes and figures of studies, kept for a little while."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kept: dict[Listed, tuple[float, Attributes]] = {}  # until when, what

    def of(self, study_id: int) -> Attributes:
        """What is added to the study; nothing if hpsearch did not make it, or if it is damaged."""
        with contextlib.suppress(StorageError):
            listed = self._source.find(study_id)
            study = self._source.load(listed) if listed is not None else None
            if listed is not None and study is not None:
                return self._of(listed, study)
        return {}

    def _of(self, listed: Listed, study: LoadedStudy) -> Attributes:
        until, known = self._kept.get(listed, (0.0, {}))
        began = time.monotonic()
        if began < until:
            return known
        made = _additions(self._source, listed, study)
        now = time.monotonic()
        self._kept = {listed: (now + max(KEPT_SECONDS, REST * (now - began)), made)}
        return made


def note(listed: Listed, study: LoadedStudy, state: str, summary: str) -> str:
    """The study's question, state, space and commands, as Markdown."""
    rows = [f"| {spoken(name)} | {_range(table)} |" for name, table in study.spec.to_tables()["space"].items()]
    space = "\n".join(["| hyperparameter | values |", "| --- | --- |", *rows]) if rows else "Nothing is searched."
    return f"""**Question.** {study.spec.description or "none given"}

**State.** {state}: {summary}. [The live page of this study](/hpsearch/study/{listed.study_id})

**Space.** {study.spec.summary()}

{space}

**Commands.**

    hpsearch worker {listed.name}
    hpsearch status {listed.name}
    hpsearch best {listed.name}
"""


def _additions(source: Source, listed: Listed, study: LoadedStudy) -> Attributes:
    now = progress(source.database, study)
    name, maximize = study.spec.objective.metric, study.spec.objective.maximize
    with source.database.engine.connect() as connection:
        trials = queries.trials(connection, listed.study_id)
        drawn, best = figures.chosen(trials, maximize)
        values = queries.epochs(connection, [trial.trial_id for trial in drawn], figures.CURVES)
    best_so_far = f", best {spoken(name)} {metric(now.best_value, name)} in trial {now.best_number}" if best else ""
    summary = f"{now.finished} of {now.max_trials} trials ended{best_so_far}"
    added: Attributes = {NOTE_VERSION: 0, f"{NOTE_TEXT}0": note(listed, study, now.word, summary)}
    for column, of in enumerate(figures.CURVES, start=1):
        added |= _slot(of, figures.curves(drawn, best, values, column, of))
    if rungs := rungs_of(study):
        added |= _slot("rung_survival", figures.rungs(trials, rungs, study.spec.max_epochs))
    return added


def _slot(name: str, figure: figures.Figure) -> Attributes:
    """A figure where optuna-dashboard looks for one."""
    if not figure["traces"]:
        return {}
    return {f"{FIGURE}{name.replace('_', '-')}:0": json.dumps(painted(name, figure), separators=(",", ":"))}


def painted(name: str, figure: figures.Figure) -> figures.Figure:
    """A figure with colours and a title, as any Plotly shows it."""
    traces = []
    for trace in figure["traces"]:
        colour = COLOURS[trace["meta"]["role"]]
        thick = {"color": colour, "width": 1 if trace["meta"]["role"] == "faint" else 2}
        filled = trace["type"] == "bar" or trace["mode"] == "markers"
        traces.append(trace | ({"marker": {"color": colour}} if filled else {"line": thick}))
    title = {"text": spoken(name).capitalize()}
    return {"data": traces, "layout": figure["layout"] | {"title": title, "showlegend": True}}


def _merged(added: Attributes, known: Attributes) -> Attributes:
    if any(key.startswith(NOTE_TEXT) and text for key, text in known.items()):  # a person's own note
        added = {key: value for key, value in added.items() if key.startswith(FIGURE)}
    return added | {key: value for key, value in known.items() if key not in added or key == NOTE_VERSION}


def _range(table: dict[str, Any]) -> str:
    if "choices" in table:
        return ", ".join(number(choice) for choice in table["choices"])
    times = f"{spoken(table['times'])} times " if table.get("times") else ""
    log = ", on a log scale" if table.get("log") else ""
    return f"{times}{number(table['low'])} to {number(table['high'])}{log}"
