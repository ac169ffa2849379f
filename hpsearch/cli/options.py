"""What several commands share: the storage option, study arguments with completion, and JSON output."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from hpsearch.settings import Settings

if TYPE_CHECKING:
    from hpsearch.storage.open import Database
    from hpsearch.storage.studies import LoadedStudy

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def storage_option(function: Decorated) -> Decorated:
    """Add `--storage URL`."""
    return click.option(
        "--storage",
        metavar="URL",
        help="sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE; "
        "default: HPSEARCH_STORAGE, else hpsearch.db in HPSEARCH_HOME, which is storage/.",
    )(function)


def json_option(function: Decorated) -> Decorated:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for a machine to read.")(function)


def settings_from(
    storage: str | None = None, device: str | None = None, data_dir: Path | None = None, storage_to: str | None = None
) -> Settings:
    """The environment's settings, with what the command line says on top."""
    given = {"HPSEARCH_STORAGE": storage, "HPSEARCH_STORAGE_TO": storage_to}
    settings = Settings.from_environment({**os.environ, **{name: url for name, url in given.items() if url}})
    return replace(
        settings,
        device=device or settings.device,
        data_dir=data_dir or settings.data_dir,
    )


def open_database(storage: str | None) -> "Database":
    """The storage of the command, which must exist; closed when the command ends.

    Raises:
        StorageError: see `hpsearch.storage.open.connect`.
    """
    from hpsearch.storage.open import connect

    return click.get_current_context().with_resource(connect(settings_from(storage).storage_url))


def load(study: str, storage: str | None) -> "tuple[Database, LoadedStudy]":
    """`open_database`, and the study of that name in it."""
    from hpsearch.storage.studies import load_study

    database = open_database(storage)
    return database, load_study(database, study)


def print_json(value: object) -> None:
    """Print `value` as indented JSON."""
    click.echo(json.dumps(value, indent=2, allow_nan=False, default=str))


def complete_recorded(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion: the studies of the storage."""
    from hpsearch.errors import HpsearchError
    from hpsearch.storage.open import connect
    from hpsearch.storage.studies import study_names

    try:
        with connect(settings_from(ctx.params.get("storage")).storage_url) as database:
            names = study_names(database)
    except HpsearchError:
        return []  # a shell that completes is no place for messages
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_available(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion: the studies that can be created, and TOML files."""
    from hpsearch.catalogue import study_names

    names = [CompletionItem(name) for name in study_names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]
