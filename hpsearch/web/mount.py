"""optuna-dashboard at `/`: as it is, but for what would cost gigabytes, and with a way to hpsearch's own pages."""

import json
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import optuna_dashboard
from optuna.trial import TrialState
from sqlalchemy import Connection, String, cast, func, select
from werkzeug.wrappers import Response

from hpsearch.storage.open import FAULTS, connect
from hpsearch.storage.studies import CREATED_KEY
from hpsearch.storage.tables import PARAMS, STUDIES, STUDY_USER_ATTRIBUTES, TRIALS
from hpsearch.web.ended import EndedTrials
from hpsearch.web.guard import OWN, Application, Environ
from hpsearch.web.notes import AnnotatedStorage, Notes

MAX_CONTOUR_CELLS = 2_000_000  # about 20 bytes each in the answer, three times that in memory
MAX_RANK_POINTS = 500_000  # about 60 bytes each in the answer
NO_TRIALS = 10**9  # the first trial that optuna-dashboard writes itself
AFTER = re.compile(r"[0-9]{1,9}")  # the application answers whatever else is asked for
PLOT = re.compile(r"/api/studies/(\d+)/plot/(contour|rank)")
NO_STUDY = re.compile(r"/(api|csv|artifacts)/(.*/)?\d{10,}(/|$)")  # more than a database's integer holds
STUDY = re.compile(r"/api/studies/(\d+)")
RENAME = re.compile(r"/api/studies/(\d+)/rename")
PAGE = re.compile(r"/dashboard(/.*)?")


class OptunaDashboard:
    """optuna-dashboard over a cached storage of its own.

    Optuna's cache goes by study ids, which SQLite gives again after a study has been deleted: then the storage and
    everything that was cached of it is opened anew.
    """

    def __init__(self, url: str, artifact_store: Any, notes: Notes, *, allow_write: bool) -> None:
        self._url, self._artifact_store, self._allow_write = url, artifact_store, allow_write
        self._notes, self._lock = notes, threading.Lock()
        self._open()
        self._known: dict[int, str] = {}

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request; HEAD as GET, without the body, or its length would be another one."""
        if environ["REQUEST_METHOD"] == "HEAD":
            body = self({**environ, "REQUEST_METHOD": "GET"}, start_response)
            getattr(body, "close", lambda: None)()
            return []
        try:
            return self._respond(environ, start_response)
        except FAULTS:  # what a driver says can hold user names and addresses
            return _reason("503 Service Unavailable", "The storage does not answer; try again soon.")(
                environ, start_response
            )

    def _respond(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/")
        if NO_STUDY.match(path):
            return _reason("404 Not Found", "There is no study or trial of that number.")(environ, start_response)
        if path.startswith(("/api/", "/csv/")):
            self._renew()
            if (sentence := self._too_costly(path) or self._not_renamed(path)) is not None:
                return _reason("422 Unprocessable Content", sentence)(environ, start_response)
        shown = STUDY.fullmatch(path)
        self._storage.look_at(int(shown[1]) if shown else None)
        if environ["REQUEST_METHOD"] == "GET":
            if PAGE.fullmatch(path):
                return self._page(environ, start_response)
            after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[0]
            if shown and AFTER.fullmatch(after):
                return self._study(environ, start_response, int(shown[1]), int(after))
        return self._application(environ, start_response)

    def close(self) -> None:
        """Close the database's connections."""
        self._database.close()

    def _open(self) -> None:
        self._database = connect(self._url)
        self._storage = AnnotatedStorage(self._database.storage, self._notes.of)
        self._ended = EndedTrials(self._storage)
        self._application: Application = optuna_dashboard.wsgi(self._storage, self._artifact_store)

    def _renew(self) -> None:
        with self._lock:
            with self._database.engine.connect() as connection:
                now = _identities(connection)
            if any(now.get(study_id) != created for study_id, created in self._known.items()):
                self._database.close()
                self._open()
            self._known = now

    def _too_costly(self, path: str) -> str | None:
        """Why a figure is not drawn, if it would be too large for a browser, and for this server."""
        found = PLOT.fullmatch(path)
        if found is None:
            return None
        with self._database.engine.connect() as connection:
            distinct = _distinct_values(connection, int(found[1]))
        names, num = len(distinct), max(distinct, default=0)
        if found[2] == "contour":
            cells = sum(distinct) ** 2 - sum(count**2 for count in distinct)
            too_many, what = cells > MAX_CONTOUR_CELLS, f"{cells:,} cells"
        else:
            too_many, what = names**2 * num > MAX_RANK_POINTS, f"{names**2 * num:,} points"
        if not too_many:
            return None
        instead = f"see {OWN}/study/{found[1]} for parallel coordinates and importances, or Slice"
        return f"The {found[2]} plot of this study would have {what}, more than a browser can draw; {instead}."

    def _not_renamed(self, path: str) -> str | None:
        """Why a study of hpsearch is not renamed: its copy would have its trials, and nothing that hpsearch adds."""
        found = RENAME.fullmatch(path)
        if found is None:
            return None
        of_study, made = STUDY_USER_ATTRIBUTES.c.study_id == int(found[1]), STUDY_USER_ATTRIBUTES.c.key == CREATED_KEY
        with self._database.engine.connect() as connection:
            ours = connection.scalar(select(func.count()).select_from(STUDY_USER_ATTRIBUTES).where(of_study, made))
        if not ours:
            return None
        return (
            "A study of hpsearch keeps its name: optuna-dashboard would copy it and delete the original, and with it "
            "epochs, budget and events; `hpsearch create-study --study-name` gives a new study another name."
        )

    def _page(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The page that all of optuna-dashboard runs in, with a link to hpsearch's pages."""
        answer = self._answer(environ)
        if answer.status_code == 200:
            answer.set_data(answer.get_data().replace(b"</body>", self._links().encode() + b"</body>"))
        for name in ("Last-Modified", "ETag"):
            answer.headers.pop(name, None)
        return answer(environ, start_response)

    def _study(
        self, environ: Environ, start_response: Callable[..., Any], study_id: int, after: int
    ) -> Iterable[bytes]:
        """A study with its trials from number `after` on; the application writes all else."""
        answer = self._answer({**environ, "QUERY_STRING": f"after={NO_TRIALS}"})
        if answer.status_code == 200:
            rest = json.loads(answer.get_data())
            del rest["trials"]
            trials = self._ended.trials(study_id, after)
            answer.set_data(b"".join((b'{"trials": ', trials, b", ", json.dumps(rest).encode()[1:])))
        return answer(environ, start_response)

    def _answer(self, environ: Environ) -> Response:
        """What the application answers, as a whole; Response.from_app would raise what its page of an error tells."""
        started: list[Any] = []

        def collect(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            started[:] = [status, headers]

        parts = self._application(environ, collect)
        try:
            return Response(b"".join(parts), *started)
        finally:
            getattr(parts, "close", lambda: None)()

    def _links(self) -> str:
        sheets = ["optuna.css"] if self._allow_write else ["optuna.css", "optuna-read-only.css"]
        links = [f'<link rel="stylesheet" href="{OWN}/static/{sheet}">' for sheet in sheets]
        return "".join([*links, f'<script defer src="{OWN}/static/optuna.js"></script>'])


def _identities(connection: Connection) -> dict[int, str]:
    """Every study's id, with what tells it apart from another one that had the same id."""
    of_study, created = STUDY_USER_ATTRIBUTES, STUDY_USER_ATTRIBUTES.c.key == CREATED_KEY
    first = select(cast(TRIALS.c.datetime_start, String)).where(TRIALS.c.study_id == STUDIES.c.study_id)
    begun = first.order_by(TRIALS.c.trial_id).limit(1).scalar_subquery()  # of one that hpsearch did not create
    joined = select(STUDIES.c.study_id, STUDIES.c.study_name, func.coalesce(of_study.c.value_json, begun))
    joined = joined.outerjoin(of_study, (of_study.c.study_id == STUDIES.c.study_id) & created)
    return {study_id: f"{name} {text}" for study_id, name, text in connection.execute(joined)}


def _distinct_values(connection: Connection, study_id: int) -> list[int]:
    """How many values of each parameter the complete trials have."""
    joined = select(func.count(PARAMS.c.param_value.distinct())).join(TRIALS, TRIALS.c.trial_id == PARAMS.c.trial_id)
    complete = joined.where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.COMPLETE)
    return list(connection.scalars(complete.group_by(PARAMS.c.param_name)))


def _reason(status: str, sentence: str) -> Response:
    return Response(json.dumps({"reason": sentence}), status, mimetype="application/json")
