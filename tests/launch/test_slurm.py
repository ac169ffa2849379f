"""Workers as an array of a real Slurm: pre-empted, moved off a drained node, cancelled; afterwards nothing shows."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpsearch.launch.slurm import SCRIPT
from hpsearch.storage import fleet, ledger
from hpsearch.storage.open import connect
from hpsearch.storage.studies import load_study
from tests.cli.inside import hpsearch
from tests.launch.cluster import Cluster
from tests.postgres import PostgresServer
from tests.studies import create_as

NUM_TRIALS, NUM_WORKERS, EPOCHS = 20, 4, 40
PASSWORD = "s3cret-of-the-tests"

STUDY = f"""
name = "array"
[model]
name = "lenet"
[data]
name = "digits"
[training]
epochs = {EPOCHS}
augmentation = "none"
[space]
learning_rate = {{ low = 1e-3, high = 1e-1, log = true }}
momentum = {{ low = 0.5, high = 0.9 }}
[sampler]
name = "random"
[pruner]
name = "asha"
min_epochs = 10
[budget]
trials = {NUM_TRIALS}
"""


class Site:
    """A person's folder and environment on the cluster."""

    def __init__(self, cluster: Cluster, folder: Path, url: str) -> None:
        self.cluster, self.folder, self.url = cluster, folder, url
        root = Path(__file__).parents[2]
        self._variables = {
            **cluster.variables,
            "HPSEARCH_STORAGE": url.replace("hpsearch@", f"hpsearch:{PASSWORD}@"),  # trust: any password will do
            "HPSEARCH_CHECKPOINT_SECONDS": "0.5",
            "HPSEARCH_LEASE_SECONDS": "30",
            "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
        }

    def hpsearch(self, *arguments: str, code: int = 0) -> str:
        """What hpsearch prints."""
        return hpsearch(self.folder, *arguments, code=code, **self._variables).stdout

    def launch(self, study: str, *options: str) -> str:
        """Submit workers on CPUs and return the number of their array."""
        limit = () if "--partition" in options else ("--time", "60")
        said = self.hpsearch("launch", "slurm", study, "--gpus-per-worker", "0", *limit, *options)
        return said.partition("array ")[2].partition(":")[0]

    def tasks(self, study: str) -> dict[str, dict[str, Any]]:
        """What `hpsearch launch status` says, by task."""
        return {task["task"]: task for task in json.loads(self.hpsearch("launch", "status", study, "--json"))}

    def trials(self, study: str, *states: str) -> int:
        """How many trials are in one of these states."""
        with connect(self.url) as database:
            trials = load_study(database, study).optuna_study.get_trials(deepcopy=False)
        return sum(trial.state.name in states for trial in trials)

    def workers(self, study: str) -> int:
        """How many workers are there."""
        with connect(self.url) as database:
            return len(fleet.workers(database, load_study(database, study).study_id))

    def logs(self) -> str:
        """All that the tasks have written."""
        return "\n".join(f"{log}\n{log.read_text()}" for log in self.folder.glob("storage/logs/slurm/*.log"))

    def wait_until(self, happened: Callable[[], bool], seconds: float = 240) -> None:
        """Wait, and show the logs if it does not happen."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"{self.cluster.run('squeue', '--states=all')}\n{self.logs()}"
            time.sleep(0.3)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, postgres: PostgresServer) -> Site:
    """An empty folder and an empty PostgreSQL."""
    return Site(cluster, tmp_path, postgres.new_database())


@pytest.mark.timeout(600)  # on a busy machine; else less than two minutes
def test_twenty_trials_among_pre_emption_and_a_drained_node(site: Site) -> None:
    (site.folder / "array.toml").write_text(STUDY)
    site.hpsearch("create-study", "array.toml")
    site.hpsearch("pause", "array")  # until all are there: the first ones could finish the study before the last begins
    array = site.launch("array", "--workers", str(NUM_WORKERS))
    site.wait_until(lambda: site.workers("array") == NUM_WORKERS)
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "hpsearch worker" in processes
    assert PASSWORD not in processes
    assert PASSWORD not in site.cluster.run("scontrol", "write", "batch_script", f"{array}_1", "-")
    before = site.tasks("array")
    assert {task["state"] for task in before.values()} == {"running"}
    site.hpsearch("resume", "array")
    site.wait_until(lambda: site.trials("array", "RUNNING") == NUM_WORKERS)
    on = {name: [task for task in before.values() if task["node"] == name] for name in ("node1", "node2")}
    site.cluster.run("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    try:
        moved, timed_out = on["node2"][0]["task"], on["node1"][0]["task"]
        site.cluster.run("scontrol", "requeue", moved)  # as pre-emption without a grace time does
        site.cluster.run("scancel", "--batch", "--signal=TERM", timed_out)  # as two minutes before the time limit
        site.wait_until(lambda: all(task["state"] == "ended" for task in site.tasks("array").values()))
    finally:
        site.cluster.run("scontrol", "update", "nodename=node2", "state=resume")
    after = site.tasks("array")
    assert sorted(after) == [f"{array}_{number}" for number in range(1, NUM_WORKERS + 1)]
    assert {task["exit_code"] for task in after.values()} == {0}, site.logs()
    assert {name for name, task in after.items() if task["starts"] == 2} == {moved, timed_out}
    assert after[moved]["node"] == "node1"
    check(site, moved, timed_out)


def check(site: Site, *interrupted: str) -> None:
    """Exactly the budget, nothing failed, every curve whole, and logs that hold both starts of who was interrupted."""
    with connect(site.url) as database:
        trials = load_study(database, "array").optuna_study.get_trials()
        assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
        for trial in trials:
            last = EPOCHS if trial.state.name == "COMPLETE" else trial.last_step
            epochs = [row["epoch"] for row in ledger.epochs(database, trial._trial_id)]
            assert epochs == sorted(trial.intermediate_values) == list(range(1, last + 1)), trial.number
    site.hpsearch("fsck", "array")
    assert PASSWORD not in site.logs()
    for task in interrupted:
        log = (site.folder / "storage" / "logs" / "slurm" / f"hpsearch-array-{task}.log").read_text()
        assert log.count(f"task {task} on node") == 2
        assert log.index("restarts: 0") < log.index("exit code 75") < log.index("restarts: 1"), log
        assert log.rstrip().endswith(f"task {task}: exit code 0")


@pytest.mark.timeout(600)
def test_pre_empted_in_the_grace_time_then_cancelled(site: Site) -> None:
    (site.folder / "long.toml").write_text(
        STUDY.replace(f"epochs = {EPOCHS}", "epochs = 100000").replace("min_epochs", "#")
    )
    name = "long; touch $(pwned) 'é"  # no part of it is ever run, and jobs and logs have a plain name
    create_as(name, site.url, site.folder / "long.toml", "pruner.name=none")
    template, secrets = site.folder / "site.sh", site.folder / "my.env"
    template.write_text(SCRIPT.replace("\n$directives", "\n#SBATCH --comment=of-the-site\n$directives"))
    secrets.write_text(f"HPSEARCH_STORAGE='{site.url.replace('hpsearch@', f'hpsearch:{PASSWORD}@')}'\n")
    secrets.chmod(0o600)
    array = site.launch(name, "--workers", "1", "--template", str(template), "--env-file", str(secrets))
    task = f"{array}_1"
    site.wait_until(lambda: site.trials(name, "RUNNING") == 1)
    assert site.cluster.run("squeue", "--noheader", "--jobs", array, "--format=%k").strip() == "of-the-site"
    kept = [file for file in (site.cluster.folder / "state").rglob(f"job.{array}/*") if file.is_file()]
    assert any(b"hpsearch worker" in file.read_bytes() for file in kept)
    assert not any(PASSWORD.encode() in file.read_bytes() for file in kept)  # Slurm never had it
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--time=1", "--output=/dev/null", "--wrap=sleep 1"]
    site.cluster.run("sbatch", *urgent)
    site.wait_until(lambda: site.tasks(name)[task]["state"] == "waiting")
    assert site.trials(name, "WAITING") == 1
    site.wait_until(lambda: site.trials(name, "RUNNING") == 1)
    assert site.tasks(name)[task]["starts"] == 2
    assert "1 jobs cancelled" in site.hpsearch("launch", "cancel", name)
    site.wait_until(lambda: site.tasks(name)[task]["state"] == "ended")
    time.sleep(7)  # longer than a task that is put back waits
    ended = site.tasks(name)[task]
    assert (ended["state"], ended["starts"], ended["exit_code"]) == ("ended", 2, 75), site.logs()
    assert "CANCELLED" in ended["slurm_state"]
    assert site.trials(name, "WAITING") == 1
    assert "no jobs to cancel" in site.hpsearch("launch", "cancel", name)
    assert list(site.folder.rglob("pwned*")) == []


@pytest.mark.timeout(600)
def test_a_partition_whose_limit_leaves_no_time(site: Site) -> None:
    """SIGTERM comes at once: another turn would end as this one, and so on without end."""
    (site.folder / "array.toml").write_text(STUDY)
    site.hpsearch("create-study", "array.toml")
    site.hpsearch("pause", "array")
    array = site.launch("array", "--workers", "1", "--partition", "brief")
    site.wait_until(lambda: "exit code" in site.logs())
    site.wait_until(lambda: site.tasks("array")[f"{array}_1"]["state"] != "running")
    ended = site.tasks("array")[f"{array}_1"]
    assert (ended["state"], ended["starts"]) == ("ended", 1), site.logs()
    assert f"task {array}_1: not queued again, its time limit is below 5 minutes" in site.logs()
