"""doctor: each check with a real cause where the machine allows it: small disks, servers that are down, far or full."""

import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from hpsearch import doctor
from hpsearch.data.stl5 import CLASSES
from hpsearch.doctor import FAILURE, OK, WARNING, Check
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage import fleet, health
from hpsearch.storage.open import connect, create
from hpsearch.storage.studies import create_study
from hpsearch.worker import Limits, serve
from tests.cli.running import hpsearch
from tests.disks import small_disk
from tests.postgres import PostgresServer, running_server
from tests.s3 import BUCKET, running_s3
from tests.studies import TINY

# A machine may be good enough for tests and not for a long run: by where temporary files lie, and how much is free.
OF_THE_MACHINE = ("file system", "space", "speed")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home of its own, and a SQLite database there that does not exist yet."""
    return Settings(f"sqlite:///{tmp_path / 'home' / 'study.db'}", tmp_path / "home", None, "cpu")


def new_study(url: str, text: str = TINY) -> None:
    """Create the study `tiny`."""
    with create(url) as database:
        create_study(database, parse(text, "tiny.toml"), "tiny")


def database(url: str, workers: int = 1, *, s3: bool = False) -> dict[str, Check]:
    """The checks of a database by name; the last of each."""
    return {check.name: check for check in doctor.check_database(url, doctor.file_of(url), workers, s3=s3)}


def sql(url: str, statement: str) -> None:
    """Run one statement on PostgreSQL."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement.encode())


def test_all_is_well(storage_url: str, settings: Settings) -> None:
    new_study(storage_url)
    checks = list(doctor.examine(replace(settings, storage_url=storage_url), 2))
    assert {check.state for check in checks if check.name not in OF_THE_MACHINE} == {OK}, checks
    assert {check.state for check in checks} <= {OK, WARNING}, checks
    names = {check.name for check in checks}
    assert {"version", "speed", "data", "checkpoints", "space", "gpu"} <= names
    assert names >= ({"file system", "folder"} if storage_url.startswith("sqlite") else {"connections", "clock"})
    with create(storage_url) as opened, opened.engine.connect() as connection:
        assert fleet.workers(opened, 1) == []
        assert connection.exec_driver_sql("SELECT count(*) FROM hpsearch_workers").scalar() == 0  # nothing stays


def test_before_the_first_study_nothing_is_made(settings: Settings) -> None:
    checks = list(doctor.examine(settings, 1))
    assert [check.state for check in checks if check.name == "database"] == [WARNING]
    assert not settings.home.exists()


def test_an_empty_postgresql_database(postgres: PostgresServer) -> None:
    found = database(postgres.new_database())
    assert {check.state for check in found.values()} == {OK}


@pytest.mark.parametrize(
    ("kind", "state"), [("nfs4", FAILURE), ("fuse.what", WARNING), ("ext4", OK), ("tmpfs", WARNING)]
)
def test_file_systems(kind: str, state: str, tmp_path: Path) -> None:
    check = doctor.check_file_system(tmp_path / "x.db", f"device / {kind} rw 0 0")
    assert (check.state, kind in check.text) == (state, True)
    assert doctor.check_file_system(tmp_path / "x.db", "").state == WARNING


def test_a_disk_in_memory(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        check = doctor.check_file_system(disk.folder / "x.db")
    assert (check.state, "in memory" in check.text) == (WARNING, True)


def test_a_read_only_disk(tmp_path: Path, settings: Settings) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        url = f"sqlite:///{disk.folder / 'study.db'}"
        new_study(url)
        disk.set_read_only(True)
        assert doctor.check_writable(disk.folder / "study.db").state == FAILURE
        assert "make it a writable folder" in doctor.check_writable(disk.folder / "new.db").text
        assert database(url)["database"].state == FAILURE
        checks = {
            check.name: check for check in doctor.examine(replace(settings, home=disk.folder, storage_url=url), 1)
        }
        assert checks["checkpoints"].state == FAILURE
        disk.set_read_only(False)
        assert doctor.check_writable(disk.folder / "study.db").state == OK


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a text")
    check = doctor.check_writable(tmp_path / "text" / "study.db")
    assert (check.state, "is no folder" in check.text) == (FAILURE, True)


@pytest.mark.parametrize(("size", "state"), [("50m", FAILURE), ("500m", WARNING), ("1100m", OK)])
def test_space(size: str, state: str, tmp_path: Path, settings: Settings) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        home = replace(settings, home=disk.folder / "not there yet")
        checks = list(doctor.check_space(home, disk.folder / "study.db"))
        assert [check.state for check in checks] == [state] * 3
        in_s3 = list(doctor.check_space(replace(home, artifacts="s3://bucket"), None))
        assert [check.state for check in in_s3] == [state]


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        url = f"sqlite:///{disk.folder / 'study.db'}"
        new_study(url)
        disk.fill()
        check = database(url)["database"]
        assert check.state == FAILURE
        assert doctor.check_checkpoints(str(disk.folder / "checkpoints")).state == FAILURE
        disk.make_room()
        assert database(url)["speed"].state == OK


def test_a_server_that_is_down() -> None:
    with running_server() as server:
        url = server.new_database()
        assert database(url)["speed"].state == OK
        server.stop()
        check = database(url)["database"]
        server.start()
    assert (check.state, "start it" in check.text) == (FAILURE, True)


def test_passwords_are_not_shown() -> None:
    checks = [*doctor.check_database("postgresql+psycopg://me:s3cret@127.0.0.1:1/db", None, 1)]
    assert checks[0].state == FAILURE
    assert "s3cret" not in str(checks)


def test_connections(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    assert database(url, 50)["connections"].state == OK
    check = database(url, 150)["connections"]
    assert check.state == FAILURE
    assert "150 workers need up to 300 connections" in check.text
    assert "that the server allows" in check.text
    sql(url, f"ALTER DATABASE {url.rpartition('/')[2]} CONNECTION LIMIT 5")
    check = database(url, 4)["connections"]
    assert check.state == FAILURE
    assert check.text.endswith(
        "5 of the 5 that this database allows are free: raise that limit, or start fewer workers, 2 at most"
    )
    with psycopg.connect(url.replace("+psycopg", "")):
        assert "4 of the 5" in database(url, 3)["connections"].text


def test_the_limit_of_an_ordinary_user(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    sql(url, "DROP ROLE IF EXISTS limited")
    sql(url, "CREATE ROLE limited LOGIN CONNECTION LIMIT 3")
    try:
        check = database(url.replace("hpsearch@", "limited@"), 2)["connections"]
        assert (check.state, "3 of the 3 that this user allows" in check.text) == (FAILURE, True)
        assert database(url.replace("hpsearch@", "limited@"), 1)["connections"].state == OK
    finally:
        sql(url, "DROP ROLE limited")


def test_a_worker_holds_no_more_connections_than_doctor_counts(postgres: PostgresServer, settings: Settings) -> None:
    url, peak, done = postgres.new_database(), 0, threading.Event()
    new_study(url)

    def work() -> None:
        with connect(url) as opened:
            list(serve(opened, "tiny", replace(settings, storage_url=url), Interruption(), Limits()))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{url.rpartition('/')[2]}'"
    count += " AND backend_type = 'client backend'"  # not the server's own cleaning
    with psycopg.connect(postgres.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
        while not done.wait(0.002):
            row = connection.execute(count.encode()).fetchone()
            assert row is not None
            peak = max(peak, int(str(row[0])))
    thread.join()
    assert 1 <= peak <= health.CONNECTIONS_PER_WORKER


def test_a_server_that_refuses_to_write(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    new_study(url)
    sql(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_read_only = on")
    check = database(url)["database"]
    assert (check.state, "default_transaction_read_only" in check.text) == (FAILURE, True)


@contextmanager
def far_away(port: int, seconds: float) -> Iterator[int]:
    """A port of this machine behind which that other port is so far away, each way."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                time.sleep(seconds)
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                end.close()

    def accept() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_is_far_away(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with far_away(postgres.port, 0.02) as port:
        found = database(url.replace(f":{postgres.port}/", f":{port}/"))
    assert (found["speed"].state, "bring the database nearer" in found["speed"].text) == (WARNING, True)
    assert found["clock"].state == OK


def test_a_clock_that_is_wrong(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url, right = postgres.new_database(), time.time
    for seconds, s3, state in ((60.0, False, WARNING), (-3600.0, False, WARNING), (3600.0, True, FAILURE)):
        monkeypatch.setattr("hpsearch.storage.health.time.time", lambda ahead=seconds: right() + ahead)
        check = database(url, s3=s3)["clock"]
        assert check.state == state
        assert f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'}" in check.text


def test_versions() -> None:
    assert doctor._check_version("SQLite", (3, 34, 1)).state == FAILURE
    assert doctor._check_version("PostgreSQL", (12, 5)).state == WARNING
    assert doctor._check_version("PostgreSQL", (18, 0)) == Check("version", OK, "PostgreSQL 18.0")


def test_data(settings: Settings, tmp_path: Path) -> None:
    for name, data in (("a", "digits"), ("b", "cifar100"), ("c", f"folder:{tmp_path / 'none'}")):
        with create(settings.storage_url) as opened:
            create_study(opened, parse(TINY.replace('"digits"', f'"{data}"'), "x.toml"), name)
    by_data = {check.text.partition(" ")[0].strip(":"): check for check in doctor.check_data(settings)}
    assert by_data["digits"].state == OK
    assert (by_data["cifar100"].state, "--data-dir" in by_data["cifar100"].text) == (WARNING, True)
    assert by_data["data.name"].state == FAILURE  # the folder is not there
    files = tmp_path / "data" / "cifar-100-python"
    files.mkdir(parents=True)
    (files / "train").write_bytes(b"")
    found = [
        check for check in doctor.check_data(replace(settings, data_dir=tmp_path / "data")) if "cifar" in check.text
    ]
    assert [check.state for check in found] == [OK]


def test_where_a_data_set_lies_is_told_as_a_whole_path(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in CLASSES:
        (tmp_path / "stl5" / "train" / name).mkdir(parents=True)
        for number in (0, 1):
            (tmp_path / "stl5" / "train" / name / f"{number}.png").touch()
    for data in ("cifar100", "stl5"):
        with create(settings.storage_url) as opened:
            create_study(opened, parse(TINY.replace('"digits"', f'"{data}"'), "x.toml"), data)
    monkeypatch.chdir(tmp_path)
    cifar100, stl5 = doctor.check_data(replace(settings, data_dir=Path()))
    assert cifar100.text.startswith(f"cifar100 is not in {tmp_path} and ")
    assert stl5 == Check("data", OK, f"stl5: in {tmp_path / 'stl5'}")


def test_a_decoded_data_set_is_found_in_the_cache(settings: Settings) -> None:
    from hpsearch.data.load import load

    new_study(settings.storage_url)
    load("digits", data_dir=None, cache_dir=settings.datasets, image_size=8)
    check = next(iter(doctor.check_data(settings)))
    assert (check.state, "decoded in" in check.text) == (OK, True)


def test_a_study_whose_network_is_not_installed(settings: Settings) -> None:
    new_study(settings.storage_url, TINY.replace('"2lp"', '"their-net"'))
    checks = [check for check in doctor.check_data(settings) if check.name == "study"]
    assert [check.state for check in checks] == [FAILURE]
    assert "their-net" in checks[0].text


def test_checkpoints_in_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_s3(monkeypatch) as server:
        assert doctor.check_checkpoints(f"s3://{BUCKET}/x").state == OK
        assert server.names() == []
        assert "NoSuchBucket" in doctor.check_checkpoints("s3://elsewhere").text
        server.stop()
        assert doctor.check_checkpoints(f"s3://{BUCKET}/x").state == FAILURE
        server.start()
    assert doctor.check_checkpoints("gs://bucket").state == FAILURE


needs_no_gpu = pytest.mark.skipif(bool(doctor.gpu_signs()), reason="this machine has a GPU")


@needs_no_gpu
def test_no_gpu() -> None:
    assert [check.state for check in doctor.check_gpu("auto")] == [OK]
    assert [check.state for check in doctor.check_gpu("cuda:0")] == [FAILURE]


@needs_no_gpu
def test_a_gpu_that_pytorch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"  # as a driver installs it
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA Test (UUID: GPU-1)'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    check = next(iter(doctor.check_gpu("auto")))
    assert check.state == FAILURE
    assert "nvidia-smi lists GPU 0: NVIDIA Test" in check.text
    assert [check.state for check in doctor.check_gpu("cpu")] == [OK]


FAKE_TORCH = """
__version__ = "9.9"
class version: cuda = "99"
class cuda:
    device_count = staticmethod(lambda: 2)
    get_device_name = staticmethod(lambda index: f"card {index}")
    mem_get_info = staticmethod(lambda index: [(80 << 30, 80 << 30), (100 << 20, 80 << 30)][index])
"""


@pytest.mark.parametrize(
    ("text", "states", "said"),
    [
        (FAKE_TORCH, [OK, WARNING], "cuda:1 is card 1 with 100 MiB of 80.0 GiB free: something else uses it"),
        ("raise ImportError('libcudart.so.99: cannot open shared object file')", [FAILURE], "libcudart.so.99"),
        ("import time; time.sleep(60)", [FAILURE], "the driver hangs"),
    ],
    ids=["two cards", "broken", "hangs"],
)
def test_another_pytorch(
    text: str, states: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("hpsearch.doctor.GPU_SECONDS", 5)
    checks = list(doctor.check_gpu("auto"))
    assert [check.state for check in checks] == states
    assert said in checks[-1].text


@pytest.mark.parametrize(("device", "state"), [("cuda:1", OK), ("cuda", OK), ("cuda:2", FAILURE), ("tpu", FAILURE)])
def test_a_device_that_is_not_there(device: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert next(doctor.check_gpu(device)).state == state


def test_the_command(tmp_path: Path) -> None:
    hpsearch(tmp_path, "create-study", "quickstart")
    lines = hpsearch(tmp_path, "doctor", "--workers", "4").stdout.splitlines()
    assert all(line.startswith(("ok", "warning")) for line in lines)
    found = json.loads(hpsearch(tmp_path, "doctor", "--json", HPSEARCH_ARTIFACTS="gs://x", code=1).stdout)
    assert not found["ok"]
    assert [check["name"] for check in found["checks"] if check["state"] == FAILURE] == ["checkpoints"]
    assert "mysql" in hpsearch(tmp_path, "doctor", "--storage", "mysql://host/db", code=1).stdout
