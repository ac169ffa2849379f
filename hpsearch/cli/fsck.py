"""`hpsearch fsck`: check what is recorded about a study, and repair what can be repaired."""

from typing import TYPE_CHECKING, Any

import click

from hpsearch.cli.options import (
    complete_recorded,
    json_option,
    load,
    print_json,
    settings_from,
    storage_option,
)
from hpsearch.errors import EXIT_FAILED

if TYPE_CHECKING:
    from hpsearch.storage.checks.findings import Finding


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@click.option("--repair", is_flag=True, help="Repair what can be repaired without making anything up.")
@storage_option
@json_option
def fsck(study: str, repair: bool, storage: str | None, as_json: bool) -> int:
    """Check all that is recorded about a study: numbers, budget, leases, curves, values, recipes, checkpoints.

    One line for each finding. Trials that are being trained are never changed. Exit code 1 if something is wrong, or
    is left wrong; notes do not count.
    """
    from hpsearch.storage.fsck import run

    database, loaded = load(study, storage)
    report = run(database, loaded, settings_from().checkpoints, mend=repair)
    if as_json:
        findings = [_row(one, True) for one in report.repaired] + [_row(one, False) for one in report.left]
        print_json({"study": study, "trials": report.num_trials, "ok": report.ok, "findings": findings})
        return 0 if report.ok else EXIT_FAILED
    for one in report.repaired:
        click.echo(f"repaired: {one.sentence}: {one.does}")
    for one in report.left:
        remedy = one.why_not or (f"--repair {one.does}" if one.does else "")
        click.echo(f"{'damage' if one.damage else 'note'}: {one.sentence}{f' ({remedy})' if remedy else ''}")
    damage = sum(one.damage for one in report.left)
    click.echo(f"study {study}: {report.num_trials} trials, {len(report.repaired)} repaired, {damage} damaged")
    return 0 if report.ok else EXIT_FAILED


def _row(finding: "Finding", repaired: bool) -> dict[str, Any]:
    names = ("kind", "trial", "text", "does", "why_not", "damage")
    return {name: getattr(finding, name) for name in names} | {"repaired": repaired}
