"""hpsearch's own pages as a Flask application: routes, sign-in, and what people may set."""

import gzip
import importlib.resources
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from flask import Flask, Response, abort, redirect, render_template, request, send_file, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from hpsearch.errors import StorageError
from hpsearch.storage import fleet
from hpsearch.storage.open import FAULTS
from hpsearch.storage.studies import LoadedStudy
from hpsearch.web import evidence, metrics, study_pages, trial_pages, words
from hpsearch.web.access import SESSION_SECONDS, Access, Sessions
from hpsearch.web.guard import METRICS, OWN, SIGN_IN, is_own
from hpsearch.web.live import Content, Live
from hpsearch.web.queries import Listed
from hpsearch.web.source import Source

DAY_SECONDS = 86_400
Context = dict[str, Any]
Make = Callable[[bool], tuple[Context, Context]]  # with figures or without: the values of the parts, the figures


def make_app(source: Source, access: Access, sessions: Sessions) -> Flask:
    """The application; it answers under OWN."""
    app = Flask("hpsearch.web", static_url_path=f"{OWN}/static")
    app.jinja_env.filters |= {
        name: getattr(words, name)
        for name in ("number", "brief", "metric", "share", "spoken", "duration", "moment", "plural", "size")
    }
    app.jinja_env.filters["interval"] = evidence.interval
    app.url_map.merge_slashes = False  # or a path with %2f in it would be sent elsewhere
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    pages = Pages(source, Live())
    routes: dict[str, Callable[..., AnyResponse]] = {
        "/": pages.studies,
        "/study/<int:study_id>": pages.study,
        "/study/<int:study_id>/trials": pages.trials,
        "/study/<int:study_id>/best": pages.best,
        "/study/<int:study_id>/export.zip": pages.export,
        "/study/<int:study_id>/trial/<int:number>": pages.trial,
        "/compare": pages.compare,
        "/workers": pages.workers,
        "/plotly.js": plotly_script,
    }
    for path, view in routes.items():
        app.add_url_rule(f"{OWN}{path}", view.__name__, view)
    app.add_url_rule(
        METRICS, "metrics", lambda: Response(metrics.exposed(source), content_type=metrics.CONTENT_TYPE_LATEST)
    )
    app.add_url_rule(OWN, "home", lambda: redirect(url_for("studies")))
    _add_doors(app, access, sessions)
    _add_controls(app, pages, access)
    _add_errors(app)
    return app


class Pages:
    """The pages: each finds its study, and answers with HTML or, if asked for what is new, with JSON."""

    def __init__(self, source: Source, live: Live) -> None:
        self.source, self.live = source, live

    def studies(self) -> AnyResponse:
        """All studies."""
        return self._respond("studies", ("studies",), lambda _: (study_pages.all_studies(self.source), {}))

    def study(self, study_id: int) -> AnyResponse:
        """One study, as it runs."""
        listed, study = self.find(study_id)
        if study is None:
            return _html("foreign", listed=listed, title=listed.name)
        parts = ("summary", "importances", "top", "running", "study-workers", "budget", "events")

        def make(drawn: bool) -> tuple[Context, Context]:
            return study_pages.one_study(self.source, listed, study, drawn)

        return self._respond("study", parts, make, listed)

    def trials(self, study_id: int) -> AnyResponse:
        """The table of a study's trials."""
        listed, study = self.ours(study_id)
        sort, page = request.args.get("sort", "number"), request.args.get("page", 1, type=int)

        def make(_: bool) -> tuple[Context, Context]:
            return study_pages.trials_table(self.source, listed, study, sort, page), {}

        return self._respond("trials", ("trials",), make, listed)

    def best(self, study_id: int) -> AnyResponse:
        """The best configurations of a study."""
        listed, study = self.ours(study_id)
        return self._respond("best", ("best",), lambda _: (study_pages.best_of(self.source, listed, study), {}), listed)

    def export(self, study_id: int) -> AnyResponse:
        """The study's export as a ZIP archive, if `hpsearch export` has put one where the page says."""
        _, study = self.ours(study_id)
        folder = evidence.export_folder(self.source.home, study)
        if evidence.export_size(folder, study) is None:
            abort(404, f"There is no export of {study.name} yet; the page Best names the command that writes one.")
        return send_file(
            evidence.packed(folder), "application/zip", as_attachment=True, download_name=f"{study.name}.zip"
        )

    def trial(self, study_id: int, number: int) -> AnyResponse:
        """One trial."""
        listed, study = self.ours(study_id)

        def make(drawn: bool) -> tuple[Context, Context]:
            found = trial_pages.one_trial(self.source, listed, study, number, drawn)
            return found or abort(404, f"Study {listed.name} has no trial {number}.")

        return self._respond("trial", ("trial", "neighbours", "configuration", "lineage", "confused"), make, listed)

    def compare(self) -> AnyResponse:
        """Two to four trials side by side."""
        wanted, odd = _wanted(request.args.getlist("t"), request.args.get("study", type=int))

        def make(drawn: bool) -> tuple[Context, Context]:
            context, drawings = trial_pages.compared(self.source, wanted, drawn)
            return context | {"odd": odd}, drawings

        compared = {study_id for study_id, _ in wanted}
        shown = [listed for listed in self.source.listed() if listed.study_id in compared]
        return self._respond("compare", ("compared",), make, *shown)

    def workers(self) -> AnyResponse:
        """All workers."""
        return self._respond("workers", ("workers", "control"), lambda _: (study_pages.all_workers(self.source), {}))

    def find(self, study_id: int) -> tuple[Listed, LoadedStudy | None]:
        """A study of the database, whoever made it, or an answer that there is none."""
        listed = self.source.find(study_id) or abort(404, f"There is no study {study_id} in this storage.")
        return listed, self.source.load(listed)

    def ours(self, study_id: int) -> tuple[Listed, LoadedStudy]:
        """A study that this hpsearch made, or an answer that it did not."""
        listed, study = self.find(study_id)
        return listed, study or abort(404, f"Study {listed.name} was {listed.maker}.")

    def _respond(self, page: str, parts: tuple[str, ...], make: Make, *shown: Listed) -> AnyResponse:
        """The page, or what is new of it; of the studies `shown` another one may have had the id a moment ago."""
        if request.args.get("live") is None:
            context, _ = make(False)
            return _html(page, **context)

        def content() -> Content:
            context, figures = make(True)
            return Content({name: render_template(f"parts/{name}.html", **context) for name in parts}, figures)

        answer = self.live.answer((request.full_path, *shown), content)
        response = Response(answer.packed, mimetype="application/json", headers={"Content-Encoding": "gzip"})
        response.set_etag(answer.tag)
        response.cache_control.no_cache = True
        return response.make_conditional(request)


def plotly_script() -> AnyResponse:
    """plotly.js, as the installed plotly package brings it."""
    packed, tag = _plotly()
    response = Response(packed, mimetype="text/javascript", headers={"Content-Encoding": "gzip"})
    response.set_etag(tag)
    response.cache_control.private, response.cache_control.max_age = True, DAY_SECONDS
    return response.make_conditional(request)


@cache
def _plotly() -> tuple[bytes, str]:
    text = (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    found = re.search(rb"plotly\.js v([\w.-]+)", text[:500])
    return gzip.compress(text), f"plotly-{found[1].decode() if found else len(text)}"


def _add_doors(app: Flask, access: Access, sessions: Sessions) -> None:
    """Sign-in, sign-out, and the tokens of forms."""

    def session_cookie() -> str | None:
        return request.cookies.get(access.cookie)

    @app.before_request
    def check_form() -> None:
        if request.method == "POST" and request.path != SIGN_IN:
            given = request.form.get("form_token", "")
            if not sessions.is_form_token(given, session_cookie()):
                abort(403, "This form is out of date: go back, reload the page and try again.")

    @app.context_processor
    def everywhere() -> Context:
        cookie = session_cookie()
        return {
            "form_token": sessions.form_token(cookie),
            "signed_in": sessions.required and sessions.name(cookie) is not None,
            "allow_write": access.allow_write,
            "own": OWN,
        }

    def wanted() -> str:
        """Where to go on after the sign-in: the page that was asked for before it, if it is one of ours."""
        page = request.values.get("next", "")
        return page if page.isprintable() and is_own(page.partition("?")[0]) else url_for("studies")

    @app.get(SIGN_IN)
    def sign_in() -> AnyResponse:
        if not sessions.required or sessions.name(session_cookie()):
            return redirect(wanted())
        return _html("sign_in", problem="")

    @app.post(SIGN_IN)
    def try_to_sign_in() -> AnyResponse:
        address = request.remote_addr or ""
        if (seconds := sessions.wait_seconds(address)) > 0:
            response = _html("sign_in", problem=f"Too many wrong tokens; try again in {seconds:.0f} seconds.")
            response.status_code, response.headers["Retry-After"] = 429, f"{seconds:.0f}"
            return response
        cookie = sessions.open(request.form.get("token", ""), address)
        if cookie is None:
            response = _html("sign_in", problem="That is not the token that this dashboard was started with.")
            response.status_code = 403
            return response
        answer = redirect(wanted(), 303)
        answer.set_cookie(
            access.cookie, cookie, SESSION_SECONDS, path="/", secure=access.secure, httponly=True, samesite="Lax"
        )
        return answer

    @app.post(f"{OWN}/sign-out")
    def sign_out() -> AnyResponse:
        sessions.close(session_cookie())
        answer = redirect(SIGN_IN, 303)
        answer.delete_cookie(access.cookie, path="/", secure=access.secure, httponly=True, samesite="Lax")
        return answer


def _add_controls(app: Flask, pages: Pages, access: Access) -> None:
    @app.post(f"{OWN}/study/<int:study_id>/control")
    def control(study_id: int) -> AnyResponse:
        if not access.allow_write:
            abort(403, "This dashboard is read-only; who may change studies starts it with --allow-write.")
        listed, _ = pages.ours(study_id)
        state = request.form.get("state", "")
        if not study_pages.may_be(state):
            abort(400, "A study can be running, paused or stopped.")
        fleet.control(pages.source.database, listed.study_id, state)
        return redirect(
            url_for("workers" if request.form.get("from") == "workers" else "study", study_id=study_id), 303
        )


def _add_errors(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> AnyResponse:
        response = _html("error", title=error.name, sentence=error.description)
        response.status_code = error.code or 500
        return response

    def away(_: Exception) -> AnyResponse:
        # What a driver says can hold user names and addresses; the worker's terminal shows it, this page does not.
        response = _html("error", title="The storage is away", sentence="The storage does not answer; try again soon.")
        response.status_code, response.headers["Retry-After"] = 503, "5"
        return response

    @app.errorhandler(StorageError)
    def unreadable(error: StorageError) -> AnyResponse:
        response = _html("error", title="This study cannot be shown", sentence=str(error))
        response.status_code = 409  # as the storage stands; nothing is wrong with the request or the server
        return response

    for fault in FAULTS:
        app.register_error_handler(fault, away)


def _html(template: str, **context: Any) -> Response:
    return Response(render_template(f"{template}.html", **context), mimetype="text/html")


def _wanted(given: list[str], study_id: int | None) -> tuple[list[tuple[int, int]], list[str]]:
    """Trials as the address names them, t=STUDY-NUMBER or t=NUMBER of the study `study`; and what is none."""
    found: list[tuple[int, int]] = []
    odd: list[str] = []
    for text in " ".join(given).replace(",", " ").split():
        study, dash, number = text.rpartition("-")
        if (
            number.isdecimal()
            and len(number) < 10
            and (study.isdecimal() and len(study) < 10 if dash else study_id is not None)
        ):
            found.append((int(study) if dash else study_id or 0, int(number)))
        else:
            odd.append(text)
    return list(dict.fromkeys(found)), odd
