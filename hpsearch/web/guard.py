"""The guard in front of both applications: what it refuses never reaches them, and every answer has its headers.

optuna-dashboard has neither sign-in nor a read-only mode nor a look at Host and Origin: without this, any web page that
somebody has open could delete a study.
"""

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from werkzeug.sansio.http import parse_cookie
from werkzeug.wrappers import Response

from hpsearch.web.access import Access, Sessions

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
Headers = list[tuple[str, str]]

OWN = "/hpsearch"  # hpsearch's own pages live under it; everything else is optuna-dashboard's
SIGN_IN = f"{OWN}/sign-in"
METRICS = f"{OWN}/metrics"  # read by programs, which give the token as `Authorization: Bearer TOKEN`
OPEN = (SIGN_IN, f"{OWN}/static/style.css")  # what a person sees who has not signed in
READING = ("GET", "HEAD")
SAFE_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")  # SVG can hold scripts

# Plotly sets styles of elements from its script, which a policy without unsafe-inline refuses; scripts stay strict.
OWN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
CLOSED_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """A WSGI application around another one."""

    def __init__(self, application: Application, access: Access, sessions: Sessions) -> None:
        self._application, self._access, self._sessions = application, access, sessions

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Refuse, or let the application answer."""
        respond = with_headers(environ, start_response)
        for check in (self._host, self._method, self._origin, self._signed_in):
            refusal = check(environ)
            if refusal is not None:
                return refusal(environ, respond)
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # without it optuna-dashboard's /static answers 500
        return self._application(environ, respond)

    def _host(self, environ: Environ) -> Response | None:
        name = host_name(environ.get("HTTP_HOST", ""))
        if name is not None and self._access.knows_host(name):
            return None
        return _refusal(
            "403 Forbidden",
            "This dashboard does not answer to the host name of this request; use the address that it printed "
            "when it started, or start it with --public-url.",
        )

    def _method(self, environ: Environ) -> Response | None:
        method, own = environ["REQUEST_METHOD"], is_own(environ["PATH_INFO"])
        if method in READING or (own and method == "POST"):
            return None
        if own or method not in ("POST", "PUT", "DELETE"):
            return _refusal("405 Method Not Allowed", f"Nothing here answers to {method[:20]}.", Allow="GET, HEAD")
        if self._access.allow_write:
            return None
        return _refusal(
            "405 Method Not Allowed",
            "This dashboard is read-only; who may change studies starts it with --allow-write.",
            Allow="GET, HEAD",
        )

    def _origin(self, environ: Environ) -> Response | None:
        """Requests that another site makes in somebody's browser; links from there are fine."""
        site, mode = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_SEC_FETCH_MODE")
        origin, reading = environ.get("HTTP_ORIGIN"), environ["REQUEST_METHOD"] in READING
        if origin is None:
            same = reading or site == "same-origin"
        else:
            same = self._access.is_own_origin(origin, environ["HTTP_HOST"])
        if same and (site in (None, "same-origin", "none") or (reading and mode == "navigate")):
            return None
        return _refusal("403 Forbidden", "This request comes from another site, or does not say from where.")

    def _signed_in(self, environ: Environ) -> Response | None:
        if not self._sessions.required or environ["PATH_INFO"] in OPEN:
            return None
        if self._sessions.name(cookie(environ, self._access.cookie)) is not None:
            return None
        if environ["PATH_INFO"] == METRICS:
            return self._bearer(environ)
        if environ["REQUEST_METHOD"] in READING and "text/html" in environ.get("HTTP_ACCEPT", ""):
            return _refusal("303 See Other", "Sign in first.", Location=SIGN_IN + _wanted(environ))
        return _refusal("401 Unauthorized", f"Sign in at {SIGN_IN} first.")

    def _bearer(self, environ: Environ) -> Response | None:
        address = environ.get("REMOTE_ADDR", "")
        scheme, _, token = _text(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if scheme.lower() != "bearer":
            return _refusal(
                "401 Unauthorized",
                "Metrics want the dashboard's token in the header Authorization: Bearer TOKEN.",
                WWW_Authenticate="Bearer",
            )
        if (seconds := self._sessions.wait_seconds(address)) > 0:
            return _refusal("429 Too Many Requests", "Too many wrong tokens.", Retry_After=f"{seconds:.0f}")
        if self._sessions.is_token(token.strip(), address):
            return None
        return _refusal("401 Unauthorized", "That is not the token that this dashboard was started with.")


def _refusal(status: str, sentence: str, **headers: str) -> Response:
    """An answer instead of the application's: a status line, and a sentence that says what to do."""
    return Response(f"{sentence}\n", status, {key.replace("_", "-"): value for key, value in headers.items()})


def _wanted(environ: Environ) -> str:
    """The query by which the sign-in knows where to go on; empty for the first page and for optuna-dashboard."""
    path, query = quote(environ["PATH_INFO"].encode("latin-1")), environ.get("QUERY_STRING", "")
    if not is_own(path) or path == f"{OWN}/":
        return ""
    return "?" + urlencode({"next": f"{path}?{query}" if query else path})


def with_headers(environ: Environ, start_response: Callable[..., Any]) -> Callable[..., Any]:
    """`start_response`, with what every answer carries and without what none may."""

    def respond(status: str, headers: Headers, exc_info: Any = None) -> Any:
        kept = {name.title(): value for name, value in headers if name.title() != "Set-Cookie"}
        kept.pop("Access-Control-Allow-Origin", None)
        kept |= ALWAYS
        path = environ["PATH_INFO"]
        if path.startswith("/artifacts/"):
            kept |= artifact_headers(kept.get("Content-Type", ""))
        kept.setdefault("Content-Security-Policy", OWN_POLICY if is_own(path) else CLOSED_POLICY)
        kept.setdefault("Cache-Control", "no-store")
        cookies = [(name, value) for name, value in headers if name.title() == "Set-Cookie"]
        return start_response(status, [*kept.items(), *cookies], *([exc_info] if exc_info else []))

    return respond


def artifact_headers(content_type: str) -> dict[str, str]:
    """Artifacts are images or downloads: as a page, one could act in the name of whoever opens it."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in SAFE_IMAGES:
        return {"Content-Type": kind, "Content-Security-Policy": CLOSED_POLICY}
    headers = {"Content-Type": "application/octet-stream", "Content-Disposition": "attachment"}
    return headers | {"Content-Security-Policy": CLOSED_POLICY}


def host_name(host: str) -> str | None:
    """The name of a Host header without its port, in lower case; None if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return None
    plain = not (parts.path or parts.query or parts.fragment or parts.username)
    return parts.hostname if plain and port_is_fine else None


def _text(header: str) -> str:
    """A header whose bytes are UTF-8, as programs send it; WSGI gives every byte as a character."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def is_own(path: str) -> bool:
    """Whether a path belongs to hpsearch's own pages."""
    return path == OWN or path.startswith(f"{OWN}/")


def cookie(environ: Environ, name: str) -> str | None:
    """One cookie of a request, read as Flask reads it: cookies of other programs on the same host have any form."""
    return parse_cookie(environ.get("HTTP_COOKIE", "")).get(name)
