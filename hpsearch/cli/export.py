"""`hpsearch export` and `hpsearch verify`."""

from pathlib import Path

import click

from hpsearch.cli.options import complete_recorded, load, settings_from, storage_option


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@click.option("--rank", type=click.IntRange(min=1), default=1, show_default=True, help="1 is the best configuration.")
@click.option("-o", "--output", "folder", type=click.Path(), required=True, help="A new folder, or s3://BUCKET/PREFIX.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets; default: HPSEARCH_DATA.")
@storage_option
def export(study: str, rank: int, folder: str, data_dir: Path | None, storage: str | None) -> None:
    """Write the best configuration of STUDY and its weights, with the evidence for them.

    Ranks are those of the confirmation, if there is one, else of the search; the model card says which. The weights
    are those of the seed with the median value.
    """
    from hpsearch.export import export as write
    from hpsearch.statistics import of_planned

    database, loaded = load(study, storage)
    settings = settings_from(storage, None, data_dir)
    metrics = write(database, loaded, rank, folder, settings, lambda text: click.echo(text, err=True))
    click.echo(
        f"{folder}: {metrics.model.name} on {metrics.data.name}, {metrics.label}, "
        f"validation accuracy {metrics.weights.validation_accuracy:.4f}"
    )
    if metrics.confirmation is None:
        click.echo(f"not confirmed over seeds: the model card says so; `hpsearch confirm {study}` would")
    elif (over := metrics.confirmation).planned not in (None, over.value.num):
        num = of_planned(over.value.num, over.planned, over.lost)
        click.echo(f"the mean that is stated is over {num}; the model card says so")
    click.echo(f"next: hpsearch verify {folder}")


@click.command()
@click.argument("folder", type=click.Path())
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets; default: HPSEARCH_DATA.")
def verify(folder: str, data_dir: Path | None) -> None:
    """Check what the export in FOLDER claims, without the storage; it may be s3://BUCKET/PREFIX.

    Checksums, schema, study file, that the weights fit the network, that they give the validation accuracy and loss
    that are stated, and that the model card says the same. The test split is not read.
    """
    from hpsearch.verify import UNCHECKED
    from hpsearch.verify import verify as check

    for sentence in check(folder, settings_from(None, None, data_dir)):
        click.echo(f"ok  {sentence}")
    click.echo(f"not checked: {UNCHECKED}")
