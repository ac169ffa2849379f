"""`hpsearch transfer`: an export on another data set, against training from scratch there."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpsearch.cli.confirm import MOST_SEEDS, interval, plain, spread
from hpsearch.cli.options import json_option, print_json, settings_from, storage_option
from hpsearch.cli.tables import print_table
from hpsearch.sections import FEWEST_PIXELS, MOST_PIXELS

if TYPE_CHECKING:
    from hpsearch.arms import Arm
    from hpsearch.models.takeover import Fate


@click.command()
@click.argument("export", metavar="FOLDER", type=click.Path())
@click.option("--data", required=True, metavar="NAME", help="The target: stl5, folder:PATH, digits:5-9, ...")
@click.option(
    "--image-size",
    "sizes",
    type=click.IntRange(min=FEWEST_PIXELS, max=MOST_PIXELS),
    multiple=True,
    help="Height and width of the target's images, several times to compare; default: that of the export.",
)
@click.option("--seeds", type=click.IntRange(min=2, max=MOST_SEEDS), help="Seeds of each way to train.  [default: 5]")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of every trial; default: those of the export.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets; default: HPSEARCH_DATA.")
@storage_option
@json_option
def transfer(
    export: str,
    data: str,
    sizes: tuple[int, ...],
    seeds: int | None,
    epochs: int | None,
    data_dir: Path | None,
    storage: str | None,
    as_json: bool,
) -> None:
    """Carry the export in FOLDER, or in s3://BUCKET/PREFIX, over to another data set.

    The first call creates a study for each image size, which workers train like any other: the whole network from the
    export's weights, its head alone, its head first and then the rest at a tenth of the rate, and all of it from
    scratch, over the same seeds and epochs. Images larger than the export's are pooled inside the network, so that its
    layers keep their shapes. Later calls show the comparison.
    """
    from hpsearch import transfer as transferring
    from hpsearch.arms import compare
    from hpsearch.confirm import link_of
    from hpsearch.models.takeover import Fate
    from hpsearch.storage import openings
    from hpsearch.storage.open import create
    from hpsearch.storage.studies import progress

    settings = settings_from(storage, None, data_dir)
    plans = [transferring.plan(export, data, size, seeds, epochs, settings) for size in dict.fromkeys(sizes or [None])]
    database = click.get_current_context().with_resource(create(settings.storage_url))
    studies = transferring.create(database, plans, settings)
    arms = compare(studies)
    layers = {study.name: [Fate(**fate) for fate in link_of(study)["layers"]] for study in studies}
    if as_json:
        found = {name: [asdict(fate) for fate in rows] for name, rows in layers.items()}
        print_json(plain({"layers": found, "arms": [asdict(arm) for arm in arms]}))
        return
    for study in studies:
        click.echo(f"study {study.name}: {study.spec.summary()}")
        show_layers(layers[study.name])
    if any(arm.values for arm in arms):
        show_arms(arms)
    wanting = [study for study in studies if not progress(database, study).done]
    for study in wanting:
        click.echo(f"next: hpsearch worker {study.name}")
    for study in studies if not wanting else []:
        show = " --show" if openings.numbered(database, study) else ""  # what was opened is only looked at
        click.echo(f"next: hpsearch final-test {study.name}{show}")


def show_layers(layers: "list[Fate]") -> None:
    """What becomes of each layer, and why."""
    rows = [[fate.layer, f"{fate.num_values:,}", fate.fate, fate.why] for fate in layers]
    print_table(["layer", "values", "", "why"], rows)


def show_arms(arms: "list[Arm]") -> None:
    """Each way to train, and its lead over scratch."""
    from hpsearch.statistics import of_planned  # numpy is slow to import

    rows = [
        [
            f"{arm.image_size} px, {arm.label}",
            of_planned(len(arm.values), arm.planned, arm.lost, ""),
            spread(arm.over_seeds),
            interval(arm.over_seeds, arm.metric),
            "-" if arm.over_scratch is None else f"{arm.over_scratch.mean:+.3f} ({interval(arm.over_scratch)})",
        ]
        for arm in arms
    ]
    print_table(["", "seeds", "mean, std", "95 % interval", "lead over scratch, paired"], rows)
