"""Commands about studies: create one, list them, and read what is known so far."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hpsearch.cli.options import (
    complete_available,
    complete_recorded,
    json_option,
    load,
    open_database,
    print_json,
    settings_from,
    storage_option,
)
from hpsearch.cli.tables import (
    WORKER_COLUMNS,
    cell,
    configuration,
    event_rows,
    print_best,
    print_table,
    trial_row,
    worker_rows,
)

if TYPE_CHECKING:
    from hpsearch.spec import StudySpec
    from hpsearch.storage.open import Database
    from hpsearch.storage.studies import Progress


# What `list` does not know of a study that it cannot read.
UNKNOWN = ("trials", "budget", "complete", "pruned", "failed", "running", "abandoned", "waiting", "best", "best_trial")


@click.command("create-study")
@click.argument("study", metavar="NAME|FILE", shell_complete=complete_available)
@click.option("--study-name", help="Record the study under another name than its file gives.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the file: --set budget.trials=50.")
@click.option("--trials", type=click.IntRange(1, 10**9), help="The same as --set budget.trials=N.")
@click.option("--if-missing", is_flag=True, help="Do nothing if a study of that name exists.")
@storage_option
def create_study(
    study: str,
    study_name: str | None,
    overrides: tuple[str, ...],
    trials: int | None,
    if_missing: bool,
    storage: str | None,
) -> None:
    """Create a study, by the name of one that comes with hpsearch or from a TOML file.

    The tables of the storage are made here if they are missing; workers only use them.
    """
    from hpsearch import catalogue
    from hpsearch.errors import StorageError, UsageError
    from hpsearch.form import name_complaint
    from hpsearch.settings import redact
    from hpsearch.space import show
    from hpsearch.storage import studies
    from hpsearch.storage.open import create

    if study_name is not None and (complaint := name_complaint(study_name)):
        raise UsageError(f"--study-name {show(study_name)}: {complaint}")
    spec = catalogue.read(study, (*overrides, *([f"budget.trials={trials}"] if trials else [])))
    for caution in spec.cautions():
        click.echo(f"hpsearch: warning: {caution}", err=True)
    name = study_name or spec.name
    settings = settings_from(storage)
    if spec.model.export:
        from hpsearch.export import pinned

        spec = pinned(spec, settings)
    database = click.get_current_context().with_resource(create(settings.storage_url))
    try:
        studies.create_study(database, spec, name, spec.max_trials)
    except StorageError:
        if not if_missing or name not in studies.study_names(database):
            raise
        click.echo(f"study {name} exists already in {redact(settings.storage_url)}")
        if others := _differences(database, name, spec):
            advice = "--study-name records it beside that one"
            click.echo(
                f"hpsearch: warning: it differs from {study} in {', '.join(others)} and stays; {advice}", err=True
            )
        return
    limit = spec.max_trials
    count = f"{limit} trials" if limit == spec.budget.trials else f"{limit} trials, all that there is to try,"
    click.echo(f"study {name}: {count} of up to {spec.max_epochs} epochs, in {redact(settings.storage_url)}")
    click.echo(f"next: hpsearch worker {name}")


def _differences(database: "Database", name: str, spec: "StudySpec") -> list[str]:
    """The sections in which a recorded study is another than `spec`, as far as that changes what is trained."""
    from hpsearch.errors import StorageError, StudyFileError
    from hpsearch.storage.studies import load_study, progress

    try:
        loaded = load_study(database, name)
        extended = progress(database, loaded).max_trials == spec.max_trials
    except (StorageError, StudyFileError):
        return []  # `list` says what is wrong with it
    given, recorded = spec.to_tables(), loaded.spec.to_tables()
    if extended:
        given["budget"] |= {"trials": recorded["budget"]["trials"]}
    keys = dict.fromkeys([*given, *recorded])
    return [key for key in keys if key not in ("name", "description") and given.get(key) != recorded.get(key)]


@click.command("list")
@storage_option
@json_option
def list_studies(storage: str | None, as_json: bool) -> None:
    """List the studies of the storage, and the ones that can be created."""
    from hpsearch.catalogue import study_names as available
    from hpsearch.errors import StorageEmpty
    from hpsearch.storage.studies import study_names

    try:
        database = open_database(storage)
    except StorageEmpty:
        if storage is not None:
            raise
        rows: list[dict[str, Any]] = []  # the default storage before the first study
    else:
        rows = [_summary(database, name) for name in study_names(database)]
    if as_json:
        print_json({"studies": rows, "available": available()})
        return
    if rows:
        columns = ["study", "state", "trials", "complete", "pruned", "failed", "running", "best"]
        print_table(columns, [[cell(row[column]) for column in columns] for row in rows])
        for row in rows:
            if "problem" in row:
                click.echo(row["problem"])
    else:
        click.echo("no study has been created yet")
    click.echo(f"can be created with `hpsearch create-study NAME`: {', '.join(available())}")


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@click.option("--watch", "watching", is_flag=True, help="Keep showing it, until it has ended, was stopped, or Ctrl-C.")
@storage_option
@json_option
def status(study: str, watching: bool, storage: str | None, as_json: bool) -> None:
    """Show how far a study is."""
    from hpsearch.storage import fleet
    from hpsearch.storage.events import events
    from hpsearch.storage.studies import progress

    database, loaded = load(study, storage)
    if watching:
        if as_json:
            raise click.UsageError("--watch is for people and --json for machines: leave out one of them")
        from hpsearch.cli.watch import watch

        watch(database, loaded, settings_from(storage))
        return
    now = progress(database, loaded)
    summary = _counts(study, now)
    workers, happened = fleet.workers(database, loaded.study_id), events(database, loaded.study_id, last=5)
    if as_json:
        said = [{"state": one.does, "answer": one.answer, "images_per_second": one.speed} for one in workers]
        rows = [asdict(one) | more for one, more in zip(workers, said, strict=True)]
        print_json(summary | {"workers": rows, "events": happened})
        return
    spec = loaded.spec
    abandoned = f" ({now.abandoned} abandoned: {now.taken_up})" if now.abandoned else ""
    print_table(
        ["study", "value"],
        [
            ["state", summary["state"] + ("" if now.startable or now.state != "running" else f": {now.reason}")],
            [
                "trials",
                f"{now.finished} of {summary['budget']} ended, {now.running} running{abandoned}, {now.waiting} waiting",
            ],
            ["ended", f"{now.complete} complete, {now.pruned} pruned, {now.failed} failed"],
            ["best", "none yet" if now.best_value is None else f"{now.best_value:.4f} in trial {now.best_number}"],
            ["objective", f"{spec.objective.direction} {spec.objective.metric}"],
            ["model and data", f"{spec.model.name} on {spec.data.name}, up to {spec.max_epochs} epochs"],
            ["sampler and pruner", f"{spec.sampler.name}, {spec.pruner.name}"],
            ["searched", ", ".join(spec.space) or f"nothing; {len(spec.seeds)} seeds"],
        ],
    )
    if workers:
        print_table(WORKER_COLUMNS, worker_rows(workers))
    if happened:
        print_table(["when", "trial", "event", ""], event_rows(happened))


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@storage_option
@json_option
def trials(study: str, storage: str | None, as_json: bool) -> None:
    """Show the trials of a study, in the order of their numbers."""
    _database, loaded = load(study, storage)
    rows = [trial_row(loaded, trial) for trial in loaded.optuna_study.get_trials(deepcopy=False)]
    if as_json:
        print_json(list(map(_finite, rows)))
        return
    print_table(
        ["trial", "state", "epochs", "value", "configuration", "reason"],
        [
            [*(cell(row[key]) for key in ("number", "state", "epochs", "value")), configuration(row), row["reason"]]
            for row in rows
        ],
    )


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many configurations.")
@storage_option
@json_option
def best(study: str, top: int, storage: str | None, as_json: bool) -> None:
    """Show the best configurations of a study, and which hyperparameters mattered."""
    from hpsearch.search.importance import importances
    from hpsearch.storage.studies import ranked

    _database, loaded = load(study, storage)
    rows = [trial_row(loaded, trial) for trial in ranked(loaded)[:top]]
    found = importances(loaded.optuna_study)
    if as_json:
        print_json({"best": list(map(_finite, rows)), "importances": asdict(found)})
        return
    if not rows:
        click.echo(f"study {study}: no trial has completed yet; train some with `hpsearch worker {study}`")
        return
    print_best(loaded, rows)
    if loaded.spec.space:
        click.echo(found.sentence())


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A trial's row as JSON can have it: without a value that is not finite."""
    known = row["value"] is not None and math.isfinite(row["value"])
    return row | {"value": row["value"] if known else None}


def _summary(database: "Database", name: str) -> dict[str, Any]:
    from hpsearch.errors import StorageError, StudyFileError
    from hpsearch.storage.studies import load_study, progress, study_names

    try:
        loaded = load_study(database, name)
    except StorageError:
        return {"study": name, "state": "not made by hpsearch"} | dict.fromkeys(UNKNOWN)
    except StudyFileError as error:
        return {"study": name, "state": "unreadable"} | dict.fromkeys(UNKNOWN) | {"problem": f"study {name}: {error}"}
    try:
        now = progress(database, loaded)
    except StorageError as error:
        state = "damaged" if name in study_names(database) else "deleted"
        return {"study": name, "state": state} | dict.fromkeys(UNKNOWN) | {"problem": str(error)}
    return _counts(name, now)


def _counts(name: str, now: "Progress") -> dict[str, Any]:
    """A study and how far it is, as `list` and `status` give it to machines."""
    return {
        "study": name,
        "state": now.word,
        "trials": f"{now.finished}/{now.max_trials}",
        "budget": now.max_trials,
        "complete": now.complete,
        "pruned": now.pruned,
        "failed": now.failed,
        "running": now.running,
        "abandoned": now.abandoned,
        "waiting": now.waiting,
        "best": now.best_value,
        "best_trial": now.best_number,
    }
