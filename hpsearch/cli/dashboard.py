"""`hpsearch dashboard`: the studies in a browser, for reading unless it is started with --allow-write."""

import signal
import socket
import sys

import click

from hpsearch.cli.options import settings_from, storage_option

LOOPBACK = "127.0.0.1"


@click.command()
@click.option("--host", default=LOOPBACK, show_default=True, help="The address to listen at; others need a token.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--allow-write", is_flag=True, help="Let people pause, resume and stop studies, and change them.")
@click.option("--public-url", metavar="URL", help="How browsers reach it through a proxy: https://search.example.org")
@click.option("--open", "open_browser", is_flag=True, help="Open it in this machine's browser.")
@storage_option
def dashboard(
    host: str, port: int, allow_write: bool, public_url: str | None, open_browser: bool, storage: str | None
) -> None:
    """Browse the studies: hpsearch's own pages, and optuna-dashboard.

    On this machine alone it needs no sign-in. At any other address people give a token: that in
    HPSEARCH_DASHBOARD_TOKEN, or one that is made and printed when it starts.
    """
    from hpsearch.web.access import Access, choose_token
    from hpsearch.web.server import application, listen, make_server

    settings = settings_from(storage)
    token = choose_token(host, public_url, settings.dashboard_token)
    access = Access(host, port, token, allow_write, public_url)
    both = click.get_current_context().with_resource(application(settings, access))
    server = make_server(both, listen(host, port), access)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a container's first process would ignore it
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
    address = public_url or f"http://{name}:{port}"
    what = "changes allowed" if allow_write else "read-only"
    click.echo(f"{address.rstrip('/')}/hpsearch/ ({what}; optuna-dashboard at {address.rstrip('/')}/; Ctrl-C ends it)")
    if token is not None and token != settings.dashboard_token:
        click.echo(f"token: {token}")
    if open_browser:
        click.launch(f"{address.rstrip('/')}/hpsearch/")
    server.run()
