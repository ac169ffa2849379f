"""`hpsearch launch`: workers of a study on a cluster, by Slurm or Kubernetes."""

import os
import re
from dataclasses import asdict
from pathlib import Path

import click

from hpsearch.cli.options import (
    complete_recorded,
    json_option,
    load,
    print_json,
    settings_from,
    storage_option,
)
from hpsearch.errors import UsageError

# A line of a shell's file that sets the storage, or reads another file that may.
SETS_STORAGE = re.compile(r"^(?!\s*#).*(\bHPSEARCH_STORAGE=|(?<!\S)(\.|source)\s)", re.MULTILINE)

study_argument = click.argument("study", shell_complete=complete_recorded)
workers_option = click.option("--workers", type=click.IntRange(1, 10_000), required=True, help="How many workers.")
gpus_option = click.option(
    "--gpus-per-worker", type=click.IntRange(0, 64), default=1, show_default=True, help="0: workers train on CPUs."
)
cpus_option = click.option("--cpus-per-worker", type=click.IntRange(1, 1024), default=1, show_default=True)
template_option = click.option(
    "--template", type=click.Path(path_type=Path), help="Your site's own template instead of the built-in one."
)


@click.group()
def launch() -> None:
    """Start workers of a study on a cluster: each job or pod is one `hpsearch worker`."""


@launch.command()
@study_argument
@workers_option
@gpus_option
@cpus_option
@click.option(
    "--time",
    metavar="TIME",
    help="Time limit of each start, as sbatch has it: 90, 1:30:00 or 2-12:00; 5 minutes at least.",
)
@click.option("--partition", metavar="NAME", help="Slurm's partition.")
@click.option(
    "--env-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=True),
    help="File of a shell's NAME=value lines that each job reads itself, so that no password passes through Slurm.",
)
@template_option
@click.option("--dry-run", is_flag=True, help="Print the batch script and submit nothing.")
@storage_option
def slurm(
    study: str,
    workers: int,
    gpus_per_worker: int,
    cpus_per_worker: int,
    time: str | None,
    partition: str | None,
    env_file: Path | None,
    template: Path | None,
    dry_run: bool,
    storage: str | None,
) -> None:
    """Submit an array of workers of STUDY to Slurm.

    A worker that is pre-empted, or whose time is up, keeps a checkpoint, exits 75 and is queued again; one that has
    nothing left to train ends with 0. Logs: logs/slurm in HPSEARCH_HOME, one for each task.
    """
    from hpsearch.launch.slurm import SCRIPT, Array
    from hpsearch.launch.slurm_jobs import submit
    from hpsearch.launch.templates import read

    if storage and env_file:
        raise UsageError("--storage and --env-file: give one of them; the file sets HPSEARCH_STORAGE for the workers")
    settings = settings_from(storage)
    folder = _current_folder()
    logs = folder / settings.home / "logs" / "slurm"
    array = Array(study, workers, gpus_per_worker, cpus_per_worker, time, partition, folder, logs, env_file)
    script = array.script(read(template), str(template)) if template else array.script(SCRIPT)
    if env_file:
        _check_env_file(env_file)
    load(study, storage)
    _check_file_system(settings.storage_url)
    if dry_run:
        click.echo(script, nl=False)
        return
    number = submit(script, array, storage)
    click.echo(f"array {number}: {workers} workers of study {study}; logs in {logs}")
    click.echo(f"next: hpsearch launch status {study}")


@launch.command()
@study_argument
@workers_option
@gpus_option
@cpus_option
@click.option("--memory", default="4Gi", show_default=True, help="Of each worker.")
@click.option("--image", default="hpsearch", show_default=True, help="The image that has hpsearch.")
@click.option("--namespace", default="default", show_default=True)
@click.option("--claim", metavar="NAME", help="PersistentVolumeClaim for checkpoints, if they are not in S3.")
@click.option("--public-url", metavar="URL", help="How browsers reach the dashboard: https://search.example.org")
@template_option
@storage_option
def kubernetes(
    study: str,
    workers: int,
    gpus_per_worker: int,
    cpus_per_worker: int,
    memory: str,
    image: str,
    namespace: str,
    claim: str | None,
    public_url: str | None,
    template: Path | None,
    storage: str | None,
) -> None:
    """Print YAML for Kubernetes: a Job of workers of STUDY, and the dashboard; applies nothing.

    A pod that is evicted or interrupted is replaced; exit code 1 counts as a failure, 2 ends the whole Job.
    Checkpoints go to HPSEARCH_ARTIFACTS=s3://BUCKET/PREFIX, or to the claim.
    """
    from hpsearch.launch.kubernetes import Pods
    from hpsearch.launch.templates import read
    from hpsearch.settings import redact
    from hpsearch.storage.open import file_of
    from hpsearch.web.access import choose_token

    settings = settings_from(storage)
    artifacts = settings.artifacts if settings.artifacts.startswith("s3://") else None
    pods = Pods(
        study, workers, image, namespace, gpus_per_worker, cpus_per_worker, memory, artifacts, claim, public_url
    )
    choose_token("0.0.0.0", public_url, given=None)  # noqa: S104 - checks the URL as the dashboard will
    text = pods.text(read(template), str(template)) if template else pods.text()
    load(study, storage)
    if file_of(settings.storage_url) is not None:
        raise UsageError(
            f"storage {redact(settings.storage_url)}: pods do not reach a SQLite file; create the study in a "
            "PostgreSQL that they reach, and name it with HPSEARCH_STORAGE"
        )
    click.echo(text, nl=False)


@launch.command()
@study_argument
@storage_option
@json_option
def status(study: str, storage: str | None, as_json: bool) -> None:
    """Show your Slurm jobs of STUDY: waiting, running, ended, and their exit codes."""
    from hpsearch.cli.tables import print_table
    from hpsearch.launch.slurm_jobs import tasks

    found = tasks(study)
    if not found:
        load(study, storage)
    if as_json:
        print_json([asdict(task) for task in found])
        return
    if not found:
        click.echo(f"study {study}: no jobs in Slurm; start some with `hpsearch launch slurm {study} --workers N`")
        return
    rows = [
        [
            task.task,
            task.state,
            task.slurm_state,
            task.node,
            "" if task.starts is None else str(task.starts),
            "" if task.exit_code is None else str(task.exit_code),
        ]
        for task in found
    ]
    print_table(["task", "state", "Slurm says", "node", "starts", "exit code"], rows)


@launch.command()
@study_argument
@storage_option
def cancel(study: str, storage: str | None) -> None:
    """Cancel your Slurm jobs of STUDY; running trials go back to the queue."""
    from hpsearch.launch import slurm_jobs

    number = slurm_jobs.cancel(study)
    if number == 0:
        load(study, storage)
    click.echo(f"study {study}: {number} jobs cancelled" if number else f"study {study}: no jobs to cancel")


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise UsageError(f"the current folder: {error.strerror}; workers run in it, so go to one that exists") from None


def _check_env_file(file: Path) -> None:
    if file.stat().st_mode & 0o077:
        raise UsageError(f"--env-file {file}: others may read it, and it may hold a password; run `chmod 600 {file}`")
    if os.environ.get("HPSEARCH_STORAGE") and not SETS_STORAGE.search(file.read_text(errors="replace")):
        raise UsageError(
            f"--env-file {file}: sets no HPSEARCH_STORAGE, and that of your environment is not passed on; add the line"
        )


def _check_file_system(url: str) -> None:
    """SQLite is for one machine: refuse a shared file system, warn about any other."""
    from hpsearch.mounts import mount_of
    from hpsearch.settings import redact
    from hpsearch.storage.open import file_of

    file = file_of(url)
    if file is None:
        return
    mount = mount_of(file)
    if mount is not None and mount.network:
        raise UsageError(
            f"storage {redact(url)}: lies on {mount.point} ({mount.kind}), a network file system, where SQLite loses "
            "data when several nodes write; create the study in a PostgreSQL that all nodes reach"
        )
    click.echo(
        f"hpsearch: warning: {file} is a SQLite file, which works only if every worker runs on this very machine; "
        "for several nodes create the study in a PostgreSQL",
        err=True,
    )
