"""`hpsearch dashboard`: optuna-dashboard on this machine, for reading only."""

import socket
from collections.abc import Callable, Iterable
from typing import Any

import click

from hpsearch.cli.options import open_database, storage_option

LOOPBACK = "127.0.0.1"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@storage_option
def dashboard(port: int, storage: str | None) -> None:
    """Browse the studies with optuna-dashboard, on this machine and read-only."""
    import optuna_dashboard
    import waitress

    from hpsearch.errors import UsageError

    application = optuna_dashboard.wsgi(open_database(storage).storage)
    try:
        listener = socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror}; choose another port") from error
    server = waitress.create_server(read_only(application, port), sockets=[listener])
    click.echo(f"http://{LOOPBACK}:{port}/ (read-only; Ctrl-C ends it)")
    server.run()


def read_only(application: Application, port: int) -> Application:
    """The application without its writing half, and for this machine's browsers only.

    optuna-dashboard has neither sign-in nor Host check: without this, any web page could delete a study.
    """
    hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _refuse(start_response, "405 Method Not Allowed", "this dashboard is read-only")
        if environ.get("HTTP_HOST") not in hosts:
            return _refuse(start_response, "403 Forbidden", "this dashboard answers to its own machine only")
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # without it optuna-dashboard's /static answers 500
        return application(environ, start_response)

    return guarded


def _refuse(start_response: Callable[..., Any], status: str, sentence: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [sentence.encode()]
