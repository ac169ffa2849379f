"""`hpsearch doctor`: what would go wrong in a long run."""

from dataclasses import asdict
from pathlib import Path

import click

from hpsearch.cli.options import json_option, print_json, settings_from, storage_option
from hpsearch.errors import EXIT_FAILED


@click.command()
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Planned workers, in all.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets; default: HPSEARCH_DATA.")
@storage_option
@json_option
def doctor(workers: int, data_dir: Path | None, storage: str | None, as_json: bool) -> int:
    """Check storage, data, checkpoints, space and GPUs before a long run, on the machine where workers will run.

    Each line is ok, a warning or a failure, and says what to do. Exit code 1 if there is a failure.
    """
    from hpsearch.doctor import FAILURE, examine

    failed, rows = False, []
    for check in examine(settings_from(storage, None, data_dir), workers):
        failed |= check.state == FAILURE
        rows.append(asdict(check))
        if not as_json:
            click.echo(f"{check.state:8} {check.name}: {check.text}")
    if as_json:
        print_json({"ok": not failed, "checks": rows})
    return EXIT_FAILED if failed else 0
