"""`hpsearch final-test`: the test split, opened once."""

from pathlib import Path
from typing import Any

import click

from hpsearch.cli.options import (
    complete_recorded,
    json_option,
    load,
    print_json,
    settings_from,
    storage_option,
)
from hpsearch.cli.tables import print_table


@click.command("final-test")
@click.argument("study", shell_complete=complete_recorded)
@click.option("--again", metavar="REASON", help="Open it once more; the reason is recorded.")
@click.option("--show", is_flag=True, help="Show what was recorded; open nothing.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of data sets; default: HPSEARCH_DATA.")
@storage_option
@json_option
def final_test(
    study: str, again: str | None, show: bool, data_dir: Path | None, storage: str | None, as_json: bool
) -> None:
    """Open the test split of STUDY's data once, for the confirmed winner.

    Accuracy, macro F1, precision and recall of every class, confusions and calibration, over all seeds of the winner.
    That it was opened is recorded with the study. Of a transfer study, all candidates are tested together.
    """
    from hpsearch import final_test as testing
    from hpsearch.confirm import orphaned, searched
    from hpsearch.errors import UsageError
    from hpsearch.storage.openings import openings

    if again is not None and not again.strip():
        raise UsageError("--again: is empty; give the reason for which the test split is opened once more")
    database, loaded = load(study, storage)
    if show and again is not None:
        raise UsageError("--again opens the test split and --show does not: leave out one of them")
    if show:
        opened = searched(database, loaded)  # for both, if this one confirms it
        records = openings(database, opened)
        if not records:
            raise UsageError(
                orphaned(database, loaded)
                or f"study {study}: its test split has not been opened; `hpsearch final-test {opened.name}` does it"
            )
    else:
        settings = settings_from(storage, None, data_dir)
        say = lambda text: click.echo(text, err=True)  # noqa: E731
        records = [testing.final_test(database, loaded, settings, again, say)]
    if as_json:
        print_json(records if show else records[0])
        return
    for record in records:
        _show(record)


def _show(record: dict[str, Any]) -> None:
    from hpsearch.statistics import in_words, of_planned  # numpy is slow to import

    click.echo(f"test split of {record['data']}, {record.get('num_images', '?')} images, opened {record['time']}")
    if record["again"]:
        click.echo(f"opened again, because: {record['again']}")
    if record.get("other_images"):
        click.echo(f"other test images than at the opening on {record['other_images']}: do not compare the two")
    if "results" not in record:
        click.echo("no result was recorded: the process ended while it was open")
        return
    rows = [
        [
            result["label"],
            of_planned(len(result["seeds"]), result.get("planned"), 0, ""),
            *(in_words(result[key], key) for key in ("accuracy", "macro_f1", "calibration_error", "log_loss")),
        ]
        for result in record["results"]
    ]
    print_table(["configuration", "seeds", "accuracy", "macro F1", "ECE", "log loss"], rows)
    for result in record["results"]:
        if result.get("lost"):
            click.echo(f"{result['label']}: {of_planned(len(result['seeds']), result['planned'], result['lost'])}")
    result = record["result"]
    if "superclasses" in result:
        found = result["superclasses"]
        click.echo(f"{len(found['names'])} superclasses: accuracy {in_words(found['accuracy'], 'accuracy')}")
    order = sorted(zip(result["recall"], result["precision"], record["classes"], strict=True))
    shown = order if len(order) <= 10 else [*order[:5], *order[-5:]]
    print_table(
        ["class" if shown == order else "class (worst and best five)", "accuracy (recall)", "precision"],
        [[name, f"{recall:.4f}", f"{precision:.4f}"] for recall, precision, name in shown],
    )
    click.echo("confusion matrix and reliability: --json, or `hpsearch report`")
