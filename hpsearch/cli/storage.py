"""`hpsearch storage`: make the tables of a storage, and copy all studies into another one."""

import click

from hpsearch.cli.options import settings_from, storage_option
from hpsearch.settings import redact


@click.group()
def storage() -> None:
    """Make the tables of a storage, or copy all its studies into another one."""


@storage.command()
@storage_option
def create(storage: str | None) -> None:
    """Make the tables where they are missing, so that workers can wait for studies; `create-study` does so too."""
    from hpsearch.storage.open import create as make

    url = settings_from(storage).storage_url
    with make(url):
        click.echo(f"{redact(url)} is ready")
