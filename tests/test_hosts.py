"""Three hosts and a database: one is cut off for a while, one has a bad link, the database moves to a new address."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select

from hpsearch.spec import parse
from hpsearch.storage import events, fleet, ledger
from hpsearch.storage.fsck import run as fsck
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import create_study, load_study, progress
from hpsearch.storage.tables import EPOCHS, LEASES
from tests.cli.running import environment
from tests.network import DELAY_SECONDS, Network, network, why_not
from tests.postgres import PostgresServer, as_plain_user, binary, die_with_parent
from tests.studies import quick

OLD, NEW = "10.77.0.10", "10.77.0.20"
PORT = 5432
LEASE_SECONDS = 10.0
NUM_TRIALS, NUM_EPOCHS = 24, 20
PATIENCE_SECONDS = 240

STUDY = quick("hosts", NUM_TRIALS, NUM_EPOCHS)


class Place:
    """The database's host: PostgreSQL listens there, and the tests ask it through a socket."""

    def __init__(self, folder: Path, hosts: Network) -> None:
        self._server, self._hosts = PostgresServer(folder), hosts
        with open(folder / "data/pg_hba.conf", "a") as rules:
            rules.write("host all all 10.77.0.0/24 trust\n")
        self.url = f"postgresql+psycopg://hpsearch@/postgres?host={folder}&port={PORT}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """The server, until it is stopped as by a power cut."""
        folder = self._server.folder
        place = ["-D", str(folder / "data"), "-k", str(folder), "-p", str(PORT), "-c", "listen_addresses=*"]
        words = [*as_plain_user(), *die_with_parent(), binary("postgres"), *place]
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen(self._hosts.command("database", words), stdout=log, stderr=log)
        try:
            wait(self._answers, "the database starts")
            yield
        finally:
            process.terminate()  # "smart" waits for its clients, so a second signal follows
            process.send_signal(3)
            process.wait()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url.replace("+psycopg", "")).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def process(words: list[str], folder: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with its output in a file there; killed at the end."""
    folder.mkdir(exist_ok=True)
    with open(folder / "output", "wb") as output:
        started = subprocess.Popen(
            words, env=environment(folder) | variables, cwd=Path(__file__).parent.parent, stdout=output, stderr=output
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def epochs_of(database: Database, owners: list[str]) -> list[int]:
    """The last recorded epoch of each trial that these workers hold."""
    last = select(func.max(EPOCHS.c.epoch)).join(LEASES, LEASES.c.trial_id == EPOCHS.c.trial_id)
    with database.engine.connect() as connection:
        return list(connection.scalars(last.where(LEASES.c.owner.in_(owners)).group_by(EPOCHS.c.trial_id)))


def adopted(database: Database, study_id: int) -> int:
    """How many trials have been taken over from a worker that was silent."""
    return sum(event["kind"] == "adopted" for event in events.events(database, study_id, last=1000))


def wait(until: Callable[[], bool], what: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        assert time.monotonic() < deadline, f"did not come: {what}"
        meanwhile()
        time.sleep(0.2)


@pytest.mark.timeout(3 * PATIENCE_SECONDS)
def test_hosts_come_and_go(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as started:
        hosts = started.enter_context(network(tmp_path))
        for number, name in enumerate(("cut", "slow", "fine"), 31):
            hosts.add(name, f"10.77.0.{number}")
        hosts.add("database", OLD)
        hosts.know("database", OLD)
        (tmp_path / "pg").mkdir()
        place = Place(tmp_path / "pg", hosts)
        server = started.enter_context(ExitStack())
        server.enter_context(place.running())
        with create(place.url) as database:
            create_study(database, parse(STUDY, "hosts.toml"), "hosts")
        slow_port = PORT
        if not hosts.spoil("slow"):  # no netem in this kernel: a relay delays what its iptables rule has not dropped
            slow_port = PORT + 1
            relay = [sys.executable, "-m", "tests.relay", str(slow_port), "database", str(PORT), str(DELAY_SECONDS)]
            started.enter_context(process(hosts.command("slow", relay), tmp_path / "relay"))
        workers = {}
        for name, address in {"cut": f"database:{PORT}", "slow": f"127.0.0.1:{slow_port}", "fine": "database"}.items():
            home = tmp_path / name
            home.mkdir()
            words = [sys.executable, "-m", "hpsearch", "worker", "hosts", "--device", "cpu"]
            given = {
                "HPSEARCH_STORAGE": f"postgresql+psycopg://hpsearch@{address}/postgres",
                "HPSEARCH_HOME": str(home),
                "HPSEARCH_ARTIFACTS": str(tmp_path / "shared"),
                "HPSEARCH_LEASE_SECONDS": str(LEASE_SECONDS),
                "HPSEARCH_CHECKPOINT_SECONDS": "0",
            }
            workers[name] = started.enter_context(process(hosts.command(name, words), home, **given))
        with create(place.url) as database:
            study = load_study(database, "hosts")

            def held_by(name: str) -> list[str]:
                found = fleet.workers(database, study.study_id)
                return [worker.owner for worker in found if worker.host == name and worker.trials]

            def keep_busy() -> None:
                """However fast this machine is, there is something left to train."""
                if progress(database, study).startable < NUM_TRIALS // 2:
                    fleet.extend(database, study.study_id, NUM_TRIALS)

            wait(lambda: all(held_by(name) for name in workers), "every host has a trial", keep_busy)
            wait(lambda: any(n >= 2 for n in epochs_of(database, held_by("cut"))), "the first has trained", keep_busy)
            hosts.plug("cut", into=False)
            wait(lambda: adopted(database, study.study_id) >= 1, "somebody takes over its trial", keep_busy)
            hosts.plug("cut", into=True)
            ended = progress(database, study).finished
            wait(lambda: bool(held_by("cut")), "the first host works again", keep_busy)

            server.close()
            database.close()
            hosts.move("database", NEW)
            hosts.know("database", NEW)
            time.sleep(2)
            server.enter_context(place.running())
            wait(lambda: progress(database, study).finished > ended, "work goes on at the new address", keep_busy)
            num_trials = progress(database, study).max_trials
            wait(lambda: progress(database, study).done, "all trials have ended")
            codes = {name: worker.wait(PATIENCE_SECONDS) for name, worker in workers.items()}
            outputs = {name: (tmp_path / name / "output").read_text() for name in workers}
            assert codes == dict.fromkeys(workers, 0), outputs
            trials = study.optuna_study.get_trials()
            assert [trial.number for trial in trials] == list(range(num_trials))
            for trial in trials:
                assert trial.state.name == "COMPLETE", trial
                recorded = [row["epoch"] for row in ledger.epochs(database, trial._trial_id)]
                assert recorded == sorted(trial.intermediate_values) == list(range(1, NUM_EPOCHS + 1)), trial.number
            assert all(f"trial {number} " in "".join(outputs.values()) for number in range(num_trials))
            assert f"{num_trials} of {num_trials} trials ended" in "".join(outputs.values())
            assert fsck(database, study, str(tmp_path / "shared"), mend=False).ok
