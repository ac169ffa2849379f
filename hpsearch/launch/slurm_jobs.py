"""The jobs of a study in Slurm: hand them over, see how they are, cancel them."""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hpsearch.errors import HpsearchError, UsageError
from hpsearch.launch.slurm import Array, job_name

ANSWER_SECONDS = 60  # a controller that is busy may take long
WIDTH = 60  # characters of each of squeue's columns, which it cuts without a sign
SECRETS = (
    "HPSEARCH_STORAGE",
    "HPSEARCH_STORAGE_TO",
    "HPSEARCH_DASHBOARD_TOKEN",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
SECRET = re.compile("KEY|TOKEN|PASS|SECRET|CREDENTIAL|STORAGE", re.IGNORECASE)
ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=", re.MULTILINE)  # a line of a file for a shell
STATES = {
    "PENDING": "waiting",
    "REQUEUED": "waiting",
    "SUSPENDED": "waiting",
    "CONFIGURING": "running",
    "RUNNING": "running",
    "COMPLETING": "running",
}


@dataclass(frozen=True)
class Task:
    """One worker as Slurm sees it.

    state: waiting, running or ended; slurm_state: Slurm's own word, with its reason.
    starts: None where Slurm does not tell. exit_code: None until it has ended; negative: the signal that ended it.
    """

    task: str
    state: str
    slurm_state: str
    node: str
    starts: int | None
    exit_code: int | None


def submit(script: str, array: Array, storage_url: str | None) -> str:
    """Hand the script to sbatch and return the number of the array.

    storage_url: for the workers' environment; None: as it is here.

    Raises:
        UsageError: there is no sbatch here, or it refuses the script; or there is no place for logs.
    """
    program = _program("sbatch")
    environment = {**os.environ, **({"HPSEARCH_STORAGE": storage_url} if storage_url else {})}
    if array.env_file:
        told = ASSIGNMENT.findall(array.env_file.read_text(errors="replace"))
        secret = {*SECRETS, *(name for name in told if SECRET.search(name))}  # not PATH, which a line may extend
        environment = {name: value for name, value in environment.items() if name not in secret}
    # By argument as well: SBATCH_JOB_NAME and the like in the environment are stronger than the script.
    options = {"job-name": job_name(array.study), "export": "ALL", "time": array.time, "partition": array.partition}
    arguments = ["--parsable", *(f"--{key}={value}" for key, value in options.items() if value)]
    with _folder(array.logs):
        done = _run([program, *arguments], environment, script)
        if done.returncode != 0:
            raise UsageError(f"sbatch refused the workers, and nothing was submitted: {_reason(done)}")
    return done.stdout.strip().partition(";")[0]


@contextmanager
def _folder(logs: Path) -> Iterator[None]:
    """The folder of logs is there inside; what was made of it goes again if the block ends with a UsageError."""
    made: list[Path] = []
    try:
        try:
            made = [folder for folder in (logs, *logs.parents) if not folder.exists()]
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the folder of logs {logs} cannot be made: {error.strerror}; mend that, or name another HPSEARCH_HOME"
            ) from None
        yield
    except UsageError:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def tasks(study: str) -> list[Task]:
    """The tasks of this user's arrays of the study; those that ended long ago only where Slurm keeps accounts.

    Raises:
        UsageError: there is no Slurm here.
        HpsearchError: Slurm does not answer.
    """
    fields = ("JobArrayID", "State", "Reason", "NodeList", "RestartCnt", "exit_code")
    layout = ",".join(f"{field}:{WIDTH}" for field in fields)
    command = [_program("squeue"), "--noheader", "--array", "--states=all", *_own(study), f"--Format={layout}"]
    done = _run(command)
    if done.returncode != 0:
        raise HpsearchError(f"squeue does not answer: {_reason(done)}; try again later")
    found = {}
    for line in done.stdout.splitlines():
        values = (line[start : start + WIDTH].strip() for start in range(0, WIDTH * len(fields), WIDTH))
        task, state, reason, node, restarts, code = values
        shown = state if reason in ("", "None") else f"{state} ({reason})"
        mine = STATES.get(state, "ended")
        starts = int(restarts) + (mine != "waiting") if restarts.isdigit() else None
        found[task] = Task(task, mine, shown, node, starts, _exit_code(code) if mine == "ended" else None)
    return sorted([*_accounted(study, found), *found.values()], key=lambda task: _order(task.task))


def cancel(study: str) -> int:
    """Cancel this user's jobs of the study; how many tasks were waiting or running.

    Raises:
        UsageError: there is no Slurm here.
        HpsearchError: Slurm does not answer.
    """
    alive = [task for task in tasks(study) if task.state != "ended"]
    if alive:
        done = _run([_program("scancel"), *_own(study)])
        if done.returncode != 0:
            raise HpsearchError(f"scancel failed: {_reason(done)}; try again later")
    return len(alive)


def _accounted(study: str, known: Mapping[str, Task]) -> Iterator[Task]:
    """What squeue has forgotten, from Slurm's accounts; nothing where the site keeps none."""
    program = shutil.which("sacct")
    if program is None:
        return
    fields = "JobID,State,ExitCode,NodeList"
    options = ["--noheader", "--parsable2", "--allocations", "--array", "--starttime=now-30days", f"--format={fields}"]
    done = _run([program, *options, *_own(study)])
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        task, state, code, node = line.split("|")
        mine = STATES.get(state, "ended")
        if task not in known and mine == "ended":  # what lives, squeue knows
            yield Task(task, mine, state, node, None, _exit_code(code))


def _exit_code(text: str) -> int | None:
    """An exit code from 75:0 (code and signal) or from 19200 (what wait(2) gives); versions of Slurm differ."""
    code, colon, number = text.partition(":")
    if not code.isdigit():
        return None
    if not colon:
        return os.waitstatus_to_exitcode(int(code))
    return -int(number) if number.isdigit() and int(number) else int(code)


def _order(task: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else 0, part) for part in task.split("_")]


def _own(study: str) -> list[str]:
    return [f"--name={job_name(study)}", f"--user={pwd.getpwuid(os.getuid()).pw_name}"]


def _program(name: str) -> str:
    program = shutil.which(name)
    if program is None:
        raise UsageError(f"{name} is not on the PATH: run this where Slurm's commands are, as on a login node")
    return program


def _run(
    command: list[str], environment: Mapping[str, str] = os.environ, text: str | None = None
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command,
            env=environment,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be run: {error.strerror}; is Slurm installed as it should be?") from None
    except subprocess.TimeoutExpired:
        name = os.path.basename(command[0])
        raise HpsearchError(f"{name} has not answered for {ANSWER_SECONDS} s: try again later") from None


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """The last thing that a command of Slurm's said."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].partition("error: ")[2] or lines[-1]
