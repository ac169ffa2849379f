"""Commands that reach running workers: pause, resume and stop a study, and allow it more trials."""

import click

from hpsearch.cli.options import complete_recorded, load, storage_option


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@storage_option
def pause(study: str, storage: str | None) -> None:
    """Let the workers of STUDY give their trials back within two epochs, and wait until it is resumed."""
    _set(study, storage, "paused", "workers keep a checkpoint and wait; go on with `hpsearch resume {study}`")


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@storage_option
def resume(study: str, storage: str | None) -> None:
    """Let STUDY go on after `pause` or `stop`."""
    _set(study, storage, "running", "workers that wait go on; start others with `hpsearch worker {study}`")


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@storage_option
def stop(study: str, storage: str | None) -> None:
    """Let the workers of STUDY give their trials back within two epochs, and leave."""
    _set(study, storage, "stopped", "workers keep a checkpoint and leave; go on with `hpsearch resume {study}`")


@click.command()
@click.argument("study", shell_complete=complete_recorded)
@click.option("--trials", type=click.IntRange(1, 10**9), required=True, help="How many more.")
@storage_option
def extend(study: str, trials: int, storage: str | None) -> None:
    """Allow STUDY more trials, also after it has used them up; its other limits stay."""
    from hpsearch.errors import UsageError
    from hpsearch.sections import MOST_TRIALS
    from hpsearch.storage import fleet
    from hpsearch.storage.studies import progress

    database, loaded = load(study, storage)
    if loaded.spec.candidates:
        raise UsageError(
            f"study {study}: its trials are its candidates over {len(loaded.spec.seeds)} seeds, and more would count "
            "nowhere; for more seeds delete it and make it again by `hpsearch confirm` or `hpsearch transfer --seeds N`"
        )
    points = loaded.spec.configurations
    most = None if points is None else len(points)
    before = progress(database, loaded).max_trials
    left = None if most is None else most - before + fleet.num_without_point(database, loaded.study_id)
    if left is not None and trials > left:
        raise UsageError(
            f"--trials {trials}: study {study} has {before} trials and {most} configurations in all; "
            f"give at most {left}, or create a study with a larger space"
            if left > 0
            else f"--trials {trials}: study {study} tries all of its {most} configurations already; "
            "create a study with a larger space"
        )
    if before + trials > MOST_TRIALS:
        raise UsageError(f"--trials {trials}: study {study} has {before} trials, and {MOST_TRIALS} at most; give fewer")
    total = fleet.extend(database, loaded.study_id, trials)
    click.echo(f"study {study}: {total} trials instead of {before}")
    now = progress(database, loaded)
    if now.state == "running" and not now.startable:
        click.echo(f"none of them can start: {now.reason}; this limit cannot be raised")
    else:
        resume = "" if now.state == "running" else f"hpsearch resume {study} && "  # else workers leave, or wait
        click.echo(f"next: {resume}hpsearch worker {study}")


def _set(study: str, storage: str | None, state: str, sentence: str) -> None:
    from hpsearch.storage import fleet

    database, loaded = load(study, storage)
    before = fleet.control(database, loaded.study_id, state)
    if before == state:
        click.echo(f"study {study} is {state} already")
    else:
        click.echo(f"study {study}: {state}; {sentence.format(study=study)}")
