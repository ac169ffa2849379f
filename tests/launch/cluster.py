"""A real Slurm for the tests: munged, slurmctld and two slurmd of this machine, in a temporary folder, without systemd.

Debian's packages slurm-wlm and munge have what it takes: `tests/launch/install.sh`. slurmd wants to be root.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
NODES = ("node1", "node2")

CONFIGURATION = """
ClusterName=hpsearch
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=1,sched_interval=2
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP LLN=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
PartitionName=brief Nodes=ALL MaxTime=2 State=UP PriorityTier=1
"""


def missing() -> str | None:
    """Why no Slurm can be started here, or None if it can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)} not found): run tests/launch/install.sh"
    return None if os.geteuid() == 0 else "slurmd wants to be root, and this is not"


class Cluster:
    """A controller and two nodes with so many CPUs each."""

    def __init__(self, folder: Path, num_cpus: int = 4) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        host = socket.gethostname()
        ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={num_cpus} State=UNKNOWN"
            for name, port in zip(NODES, ports[1:], strict=True)
        ]
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(
            CONFIGURATION.format(host=host, controller=ports[0], folder=folder, nodes="\n".join(nodes))
        )
        for name in ("munge", "state", *NODES):
            (folder / name).mkdir(mode=0o700)

    @property
    def variables(self) -> dict[str, str]:
        """What the clients of this cluster need in their environment."""
        return {"SLURM_CONF": str(self.configuration), "PATH": _path()}

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        munge = self.folder / "munge"
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge.chmod(0o711)
        places = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
        self._start("munged", "--foreground", "--force", *(f"--{name}={munge / file}" for name, file in places.items()))
        self._await((munge / "socket").exists, "munged")
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        self._await(lambda: set(self._nodes()) == {"idle"}, "Slurm")

    def stop(self) -> None:
        """Cancel all jobs and stop the daemons."""
        self.run("scancel", "--user", "root", check=False)
        for _ in range(100):
            if not self.run("squeue", "--noheader", check=False).strip():
                break
            time.sleep(0.1)
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *command: str, check: bool = True) -> str:
        """What a command of Slurm's prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.variables}, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, *command: str) -> None:
        with open(self.folder / "output", "ab") as output:
            self._processes.append(
                subprocess.Popen(
                    [*_die_with_parent(), *command],
                    env={**os.environ, **self.variables},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )

    def _nodes(self) -> list[str]:
        return self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()

    def _await(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not happened():
            gone = [process for process in self._processes if process.poll() is not None]
            if gone or time.monotonic() > deadline:
                logs = [self.folder / "output", *self.folder.glob("*.log")]
                raise RuntimeError(
                    f"{what} did not start: " + "\n".join(log.read_text()[-2000:] for log in logs if log.is_file())
                )
            time.sleep(0.1)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A started cluster in a temporary folder; stopped and deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-slurm-"))  # short: a socket's path has at most 107 characters
    folder.chmod(0o755)  # munged's clients must be able to enter it
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _die_with_parent() -> list[str]:
    return ["setpriv", "--pdeathsig", "TERM"]


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
