"""`hpsearch confirm`: the best configurations of a study again from new seeds, and what that says."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from hpsearch.cli.options import complete_recorded, json_option, load, print_json, storage_option
from hpsearch.cli.tables import print_table

if TYPE_CHECKING:
    from hpsearch.confirm import Confirmation
    from hpsearch.statistics import Estimate

MOST_SEEDS = 1000  # of a comparison: each is a trial of every candidate, and their rows are made at once


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@click.option("--top", type=click.IntRange(min=1), help="How many of the best configurations.  [default: 5]")
@click.option(
    "--seeds", type=click.IntRange(min=2, max=MOST_SEEDS), help="How many seeds each is trained from.  [default: 5]"
)
@storage_option
@json_option
def confirm(study: str, top: int | None, seeds: int | None, storage: str | None, as_json: bool) -> None:
    """Confirm the best configurations of STUDY over new seeds.

    The first call creates the study STUDY-confirm, which workers train like any other. Later calls show its result:
    means and intervals, which configurations cannot be told from the best, and how much of what the search reported
    was luck. The study's first and its default configuration take part.
    """
    from hpsearch import confirm as confirming
    from hpsearch.errors import UsageError
    from hpsearch.storage.openings import openings
    from hpsearch.storage.studies import progress

    database, loaded = load(study, storage)
    linked = confirming.find(database, loaded)
    if linked is None:
        now = progress(database, loaded)
        top, seeds = top or confirming.DEFAULT_TOP, seeds or confirming.DEFAULT_SEEDS
        linked = confirming.create(database, loaded, top, seeds)
        if not as_json:
            click.echo(f"study {linked.name}: {linked.spec.summary()}")
        if opened := openings(database, loaded):
            click.echo(
                f"study {study}: its test split was opened on {opened[0]['time']}; what is chosen from now on is "
                "chosen after that",
                err=True,
            )
        if now.unfinished:
            click.echo(
                f"study {study}: {now.finished} of its {now.max_trials} trials have ended; what the others find is not "
                "confirmed",
                err=True,
            )
    elif top is not None or seeds is not None:
        given = "--top" if top is not None else "--seeds"
        raise UsageError(
            f"{given}: {linked.name} exists already, with {len(linked.spec.candidates)} candidates and "
            f"{len(linked.spec.seeds)} seeds, and these are not changed; leave the option out to see the result"
        )
    found = confirming.result(linked)
    if as_json:
        print_json(plain(asdict(found) | {"finished": found.finished}))
        return
    if found.seeds_done:
        show(found)
    if found.lost:
        click.echo(f"no candidate is left, of each a trial diverged or failed; see `hpsearch trials {linked.name}`")
        return
    if not found.finished:
        click.echo(f"{found.seeds_done} of {found.num_seeds} seeds are done; next: hpsearch worker {linked.name}")
        return
    click.echo(f"next: hpsearch final-test {study}")


def show(found: "Confirmation") -> None:
    """The table of candidates, and the sentence about luck."""
    print_table(
        ["candidate", "seeds", "mean, std", "95 % interval", "in search", "luck", ""],
        [
            [
                one.label,
                str(one.over_seeds.num),
                spread(one.over_seeds),
                interval(one.over_seeds, found.metric),
                number(one.origin.value),
                "-" if one.luck is None else f"{one.luck.mean:+.4f}",
                one.verdict,
            ]
            for one in found.standings
        ],
    )
    alike = [one.label for one in found.standings if one.in_set]
    click.echo(f"{found.metric} over seeds; cannot be told from the best: {', '.join(alike) or 'none'}")
    if len(found.standings) > 1 and alike:
        num, best = len(found.standings), found.standings[0].label
        click.echo(f"{best}: the best of {num} on these seeds; its mean is somewhat optimistic")
    promised = found.promised
    if promised is not None and promised.luck is not None:
        click.echo(
            f"luck: the search reported {number(promised.origin.value)} for {promised.label}, new seeds give "
            f"{number(promised.over_seeds.mean)}; {promised.luck.mean:+.4f} ({interval(promised.luck)}) was luck"
        )


def number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def spread(found: "Estimate") -> str:
    """Mean and standard deviation."""
    return number(found.mean) if math.isnan(found.std) else f"{found.mean:.4f} ± {found.std:.4f}"


def interval(found: "Estimate", metric: str = "") -> str:
    """That of a mean of the metric, or of differences."""
    from hpsearch.statistics import shown  # numpy is slow to import

    return "-" if math.isnan(found.low) else f"{shown(found.low, metric):.3f} to {shown(found.high, metric):.3f}"


def plain(value: object) -> object:
    """The value with nan as None, as JSON has none."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
