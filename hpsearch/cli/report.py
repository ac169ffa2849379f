"""`hpsearch report`: studies on one page."""

from pathlib import Path

import click

from hpsearch.cli.options import complete_recorded, open_database, settings_from, storage_option


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...", shell_complete=complete_recorded)
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HTML file."
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets; default: HPSEARCH_DATA.")
@storage_option
def report(studies: tuple[str, ...], path: Path, data_dir: Path | None, storage: str | None) -> None:
    """Write one page about the studies: every figure, with the numbers behind it as CSV.

    The page is a single file that needs no network; folders above it are made. It may be written while a study runs.
    Test results are shown where `hpsearch final-test` has recorded some; nothing is tested here.
    """
    from hpsearch.report.page import write

    figures = write(open_database(storage), studies, path, settings_from(storage, None, data_dir))
    size = path.stat().st_size / 1e6
    click.echo(f"{path}: {len(figures)} figures about {', '.join(dict.fromkeys(studies))}, {size:.1f} MB")
