"""Slurm: the script of an array of batch jobs, each of them one `hpsearch worker`.

A storage URL may hold a password, so it is in no script and no argument: it reaches the workers in the environment.
"""

import hashlib
import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from hpsearch.errors import UsageError
from hpsearch.launch.templates import fill

GRACE_SECONDS = 120  # before the time limit; a worker needs the time of one step of training and of a checkpoint
LEAST_MINUTES = 5  # of a time limit, here and in SCRIPT: shorter turns leave no time to train, and would never end

# What sbatch(1) knows: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]
TIME = re.compile(r"\d{1,6}(:\d{1,2}){0,2}|\d{1,4}-\d{1,2}(:\d{1,2}){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
PARTITION = re.compile(r"[\w.-]+(,[\w.-]+)*", re.ASCII)

# The worker is a child of the script and does not replace it (exec): a job that leaves by itself at the first SIGTERM,
# before the time limit or in the grace time of a pre-emption, counts as ended for Slurm whatever --requeue says, and
# only the script can still ask for another turn. A SIGTERM that comes twice, from here and from Slurm, does no harm.
SCRIPT = """\
#!/bin/bash
# Made by `hpsearch launch slurm`: each task of this array is one `hpsearch worker`.
# The storage comes in the environment ($storage_from); it is in no script and no argument.
#SBATCH --job-name=$name
#SBATCH --array=1-$workers
#SBATCH --chdir=$folder
#SBATCH --output=$logs
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --requeue
#SBATCH --signal=B:TERM@$grace
$directives
$environment
export OMP_NUM_THREADS=$cpus PYTHONUNBUFFERED=1
task="$${SLURM_ARRAY_JOB_ID}_$${SLURM_ARRAY_TASK_ID}"
echo "task $$task on $$SLURMD_NODENAME, restarts: $${SLURM_RESTART_COUNT:-0}"

# SIGTERM comes before the time limit, at pre-emption and from scancel; the worker keeps a checkpoint and exits 75.
trap 'asked=yes; kill -TERM $${worker:-} 2> /dev/null' TERM
$command &
worker=$$!
[ -z "$${asked:-}" ] || kill -TERM "$$worker"
while kill -0 "$$worker" 2> /dev/null; do wait "$$worker"; done  # a signal ends wait before the worker has left
wait "$$worker"
code=$$?
echo "task $$task: exit code $$code"
# 143: it was told to leave before it had begun. Slurm says RUNNING: the task was not cancelled, and Slurm has not put
# it back itself. Then it asks for another turn, unless the time limit of its turns is too short to get anywhere.
if [ -n "$${asked:-}" ] && { [ "$$code" = 75 ] || [ "$$code" = 143 ]; }; then
    case "$$(squeue --noheader --jobs "$$task" --format '%T %l')" in
        "RUNNING "[0-4]:??) echo "task $$task: not queued again, its time limit is below 5 minutes; launch with more" ;;
        "RUNNING "*) scontrol requeue "$$task" ;;
    esac
fi
exit "$$code"
"""


@dataclass(frozen=True)
class Array:
    """Workers of one study, as an array of so many tasks.

    gpus: GPUs of each worker; 0: it trains on its cores. cpus: cores of each worker.
    time, partition: as sbatch has them; None: the site's default.
    folder: where workers run. logs: the folder of their logs. env_file: sets their environment; None: that of sbatch.
    """

    study: str
    num_workers: int
    gpus: int
    cpus: int
    time: str | None
    partition: str | None
    folder: Path
    logs: Path
    env_file: Path | None = None

    def __post_init__(self) -> None:
        if self.time is not None and not TIME.fullmatch(self.time):
            raise UsageError(
                f"--time {self.time!r}: Slurm knows no such time; give minutes, hours:minutes:seconds or "
                "days-hours:minutes, as in 90, 1:30:00 or 2-12:00"
            )
        if self.time is not None and _seconds(self.time) < 60 * LEAST_MINUTES:
            raise UsageError(
                f"--time {self.time}: two minutes before the end a worker is told to leave; "
                f"give {LEAST_MINUTES} minutes or more"
            )
        if self.partition is not None and not PARTITION.fullmatch(self.partition):
            raise UsageError(f"--partition {self.partition!r}: must be names of letters, digits, '_', '-' and '.'")
        named = {"study": self.study, "folder": self.folder, "folder of logs": self.logs, "env file": self.env_file}
        for what, text in ((what, str(name)) for what, name in named.items()):
            if not text.isprintable() or "\\" in text:
                raise UsageError(f"{what} {text!r}: no line of a batch script can hold such a name; use another one")

    def script(self, template: str = SCRIPT, where: str = "built in") -> str:
        """The batch script.

        Raises:
            UsageError: the template has an unknown placeholder.
        """
        return fill(template, self._values(), where)

    def _values(self) -> dict[str, str]:
        file = str(self.env_file and self.env_file.absolute())
        options = {
            "ntasks": 1,
            "cpus-per-task": self.cpus,
            "gres": f"gpu:{self.gpus}" if self.gpus else None,
            "time": self.time,
            "partition": self.partition,
        }
        return {
            "study": shlex.quote(self.study),
            "name": job_name(self.study),
            "workers": str(self.num_workers),
            "gpus": str(self.gpus),
            "cpus": str(self.cpus),
            "time": self.time or "",
            "partition": self.partition or "",
            "folder": directive(str(self.folder)),
            "logs": directive(f"{self.logs}/{job_name(self.study)}".replace("%", "%%") + "-%A_%a.log"),
            "grace": str(GRACE_SECONDS),
            "directives": "\n".join(f"#SBATCH --{key}={value}" for key, value in options.items() if value),
            "storage_from": f"from {file}" if self.env_file else "HPSEARCH_STORAGE, as sbatch found it",
            "environment": f"set -a\n. {shlex.quote(file)} || exit 2\nset +a" if self.env_file else "",
            "command": shlex.join([*worker_command(), "--device", self._device(), "--", self.study]),
        }

    def _device(self) -> str:
        """Of what CUDA_VISIBLE_DEVICES shows, which Slurm sets; never a CPU in place of a GPU that is missing."""
        return "cpu" if self.gpus == 0 else "cuda:0" if self.gpus == 1 else "all"


def worker_command() -> list[str]:
    """`hpsearch worker` of this installation; -P: nothing that lies in the current folder is imported."""
    return [sys.executable, "-P", "-m", "hpsearch", "worker"]


def job_name(study: str) -> str:
    """The name of a study's jobs: without what squeue, scancel or a file name could take for something else.

    A study's name may hold anything; names that differ after the change get different codes.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", study)
    if plain == study:
        return f"hpsearch-{study}"
    return f"hpsearch-{plain}-{hashlib.sha256(study.encode()).hexdigest()[:8]}"


def _seconds(time: str) -> float:
    """A time limit that matches TIME; without end: UNLIMITED, INFINITE and 0."""
    if not time[0].isdigit():
        return math.inf
    days, dash, clock = time.rpartition("-")
    numbers = [int(number) for number in clock.split(":")]
    units = (3600, 60, 1) if dash or len(numbers) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(map(math.prod, zip(numbers, units, strict=False))) or math.inf


def directive(text: str) -> str:
    """A value in a #SBATCH line, which sbatch takes apart as a shell would, a comment's # included."""
    return shlex.quote(text)
