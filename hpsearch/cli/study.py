"""Commands about studies: create one, list them, and read what is known so far."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from hpsearch.cli.options import (
    complete_available,
    complete_recorded,
    json_option,
    print_json,
    settings_from,
    storage_option,
)

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hpsearch.storage.open import Database
    from hpsearch.storage.studies import LoadedStudy, Progress


@click.command("create-study")
@click.argument("study", metavar="NAME|FILE", shell_complete=complete_available)
@click.option("--study-name", help="Record the study under another name than its file gives.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the file: --set budget.trials=50.")
@click.option("--if-missing", is_flag=True, help="Do nothing if a study of that name exists.")
@storage_option
def create_study(
    study: str, study_name: str | None, overrides: tuple[str, ...], if_missing: bool, storage: str | None
) -> None:
    """Create a study, by the name of one that comes with hpsearch or from a TOML file.

    The tables of the storage are made here if they are missing; workers only use them.
    """
    from hpsearch import catalogue
    from hpsearch.search.samplers import max_trials
    from hpsearch.settings import redact
    from hpsearch.storage import studies
    from hpsearch.storage.open import create

    spec = catalogue.read(study, overrides)
    name = study_name or spec.name
    settings = settings_from(storage)
    database = create(settings.storage_url)
    if if_missing and name in studies.study_names(database):
        click.echo(f"study {name} exists already in {redact(settings.storage_url)}")
        return
    studies.create_study(database, spec, name)
    click.echo(
        f"study {name}: {max_trials(spec)} trials of up to {spec.max_epochs} epochs, in {redact(settings.storage_url)}"
    )
    click.echo(f"next: hpsearch worker {name}")


@click.command("list")
@storage_option
@json_option
def list_studies(storage: str | None, as_json: bool) -> None:
    """List the studies of the storage, and the ones that can be created."""
    from hpsearch.catalogue import study_names as available
    from hpsearch.errors import StorageError
    from hpsearch.storage.open import connect
    from hpsearch.storage.studies import study_names

    try:
        database = connect(settings_from(storage).storage_url)
    except StorageError:
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
        _print_table(columns, [[_cell(row[column]) for column in columns] for row in rows])
    else:
        click.echo("no study has been created yet")
    click.echo(f"can be created with `hpsearch create-study NAME`: {', '.join(available())}")


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@storage_option
@json_option
def status(study: str, storage: str | None, as_json: bool) -> None:
    """Show how far a study is."""
    database, loaded, now = _open(study, storage)
    summary = _summary(database, study)
    if as_json:
        print_json(summary)
        return
    spec = loaded.spec
    _print_table(
        ["study", "value"],
        [
            ["state", summary["state"]],
            ["trials", f"{now.finished} of {summary['budget']} ended, {now.running} running, {now.waiting} waiting"],
            ["ended", f"{now.complete} complete, {now.pruned} pruned, {now.failed} failed"],
            ["best", "none yet" if now.best_value is None else f"{now.best_value:.4f} in trial {now.best_number}"],
            ["objective", f"{spec.objective.direction} {spec.objective.metric}"],
            ["model and data", f"{spec.model.name} on {spec.data.name}, up to {spec.max_epochs} epochs"],
            ["sampler and pruner", f"{spec.sampler.name}, {spec.pruner.name}"],
            ["searched", ", ".join(spec.space) or f"nothing; {len(spec.seeds)} seeds"],
        ],
    )


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@storage_option
@json_option
def trials(study: str, storage: str | None, as_json: bool) -> None:
    """Show the trials of a study, in the order of their numbers."""
    _database, loaded, _now = _open(study, storage)
    rows = [trial_row(loaded, trial) for trial in loaded.optuna_study.get_trials(deepcopy=False)]
    if as_json:
        print_json(rows)
        return
    names = list(loaded.spec.space)
    _print_table(
        ["trial", "state", "epochs", "value", *names, "reason"],
        [
            [*(_cell(row[key]) for key in ("number", "state", "epochs", "value")),
             *(_cell(row["searched"].get(name)) for name in names), row["reason"]]
            for row in rows
        ],
    )  # fmt: skip


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="How many configurations.")
@storage_option
@json_option
def best(study: str, top: int, storage: str | None, as_json: bool) -> None:
    """Show the best configurations of a study, and which hyperparameters mattered."""
    from hpsearch.search.importance import importances
    from hpsearch.storage.studies import ranked

    _database, loaded, _now = _open(study, storage)
    rows = [trial_row(loaded, trial) for trial in ranked(loaded)[:top]]
    found = importances(loaded.optuna_study)
    if as_json:
        print_json({"best": rows, "importances": asdict(found)})
        return
    if not rows:
        click.echo(f"study {study}: no trial has completed yet; train some with `hpsearch worker {study}`")
        return
    print_best(loaded, rows)
    click.echo(found.sentence())


def print_best(loaded: "LoadedStudy", rows: list[dict[str, Any]]) -> None:
    """A table with one column per configuration and one line per hyperparameter that the study searches."""
    names = [name for name in loaded.spec.space if any(name in row["searched"] for row in rows)]
    lines = [[name, *(_cell(row["searched"].get(name)) for row in rows)] for name in names]
    lines.append(["seed", *(_cell(row["recipe"].get("seed")) for row in rows)])
    values = [loaded.spec.objective.metric, *(_cell(row["value"]) for row in rows)]
    _print_table(["", *(f"trial {row['number']}" for row in rows)], [values, *lines])


def _open(study: str, storage: str | None) -> "tuple[Database, LoadedStudy, Progress]":
    from hpsearch.storage.open import connect
    from hpsearch.storage.studies import load_study, progress

    database = connect(settings_from(storage).storage_url)
    loaded = load_study(database, study)
    return database, loaded, progress(database, loaded)


def _summary(database: "Database", name: str) -> dict[str, Any]:
    from hpsearch.errors import StorageError
    from hpsearch.search.samplers import max_trials
    from hpsearch.storage.studies import load_study, progress

    try:
        loaded = load_study(database, name)
    except StorageError:
        return {"study": name, "state": "not made by hpsearch"} | dict.fromkeys(
            ["trials", "budget", "complete", "pruned", "failed", "running", "waiting", "best", "best_trial"]
        )
    now = progress(database, loaded)
    budget = max_trials(loaded.spec)
    state = "finished" if now.finished >= budget else "running" if now.running else "waiting for workers"
    return {
        "study": name,
        "state": state,
        "trials": f"{now.finished}/{budget}",
        "budget": budget,
        "complete": now.complete,
        "pruned": now.pruned,
        "failed": now.failed,
        "running": now.running,
        "waiting": now.waiting,
        "best": now.best_value,
        "best_trial": now.best_number,
    }


def trial_row(loaded: "LoadedStudy", trial: "FrozenTrial") -> dict[str, Any]:
    """One trial as plain values; `searched` holds the hyperparameters that the study searches and this trial has."""
    from hpsearch.space import recorded_name
    from hpsearch.storage.studies import REASON_KEY, RECIPE_KEY, TRACEBACK_KEY

    recipe = trial.user_attrs.get(RECIPE_KEY, {})
    space = loaded.spec.space.items()
    searched = [name for name, parameter in space if recorded_name(name, parameter) in trial.params]
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value,
        "epochs": len(trial.intermediate_values),
        "searched": {name: recipe[name] for name in searched if name in recipe},
        "recipe": recipe,
        "reason": trial.user_attrs.get(REASON_KEY, ""),
        "traceback": trial.user_attrs.get(TRACEBACK_KEY, ""),
    }


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
