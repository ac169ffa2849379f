"""docker-compose.yml without a container engine: accepted by docker-compose, and every service as a plain process.

Each service runs the file's own command with the file's own environment; only what a container would provide is
replaced: names of hosts, ports, and the places of volumes and secrets.
"""

import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from hpsearch.settings import Settings
from hpsearch.storage.open import connect
from hpsearch.storage.studies import load_study, progress
from tests.cli.running import environment
from tests.postgres import as_plain_user, binary, die_with_parent, free_port

ROOT = Path(__file__).parent.parent
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
PATIENCE_SECONDS = 120
Config = dict[str, Any]

needs_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="no docker-compose: run tests/install.sh"
)
needs_caddy = pytest.mark.skipif(shutil.which("caddy") is None, reason="no caddy: run tests/install.sh")


def config(folder: Path, *files: str, **variables: str) -> Config:
    """What docker-compose makes of the files, in a copy of the project's folder that has its secrets."""
    for name in (*FILES, "storage/caddy", "storage/postgres"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    (folder / "storage/secrets").mkdir(parents=True, exist_ok=True)
    for name in ("postgres_password", "dashboard_token"):
        (folder / "storage/secrets" / name).write_text(f"a-secret:for/{name}\n")
    command = ["docker-compose", *(word for file in files for word in ("-f", file)), "config"]
    done = subprocess.run(
        command, cwd=folder, env={"PATH": os.environ["PATH"]} | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: Config = yaml.safe_load(done.stdout)
    return found


@needs_compose
def test_docker_compose_accepts_the_files(tmp_path):
    plain = config(tmp_path, FILES[0])["services"]
    assert set(plain) == {"postgres", "schema", "worker", "dashboard", "proxy"}
    assert [name for name, service in plain.items() if "ports" in service] == ["proxy"]  # nothing else is reachable
    for name in ("schema", "worker", "dashboard", "proxy"):
        assert plain[name]["read_only"]
        assert plain[name]["cap_drop"] == ["ALL"]
    with_gpus = config(tmp_path, *FILES)["services"]["worker"]
    assert with_gpus["environment"]["HPSEARCH_DEVICE"] == "all"
    assert with_gpus["environment"].items() >= plain["schema"]["environment"].items()
    assert with_gpus["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@needs_compose
def test_no_secret_stands_in_the_file(tmp_path):
    shown = str(config(tmp_path, *FILES, HPSEARCH_DOMAIN="search.example.org"))
    assert "a-secret" not in shown
    assert "--public-url', 'https://search.example.org'" in shown


def test_images_are_pinned():
    text = (ROOT / FILES[0]).read_text() + (ROOT / "Dockerfile").read_text()
    images = re.findall(r"(?:image:|FROM) (\S+)", text)
    assert len(images) == 5
    assert all(re.search(r":\d+\.\d+", image) for image in images if image != "hpsearch"), images


def test_the_dockerfile():
    lint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([lint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = " ".join(copied).split()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all((ROOT / source).exists() and f"!{source}" in ignored for source in sources)


class Stack:
    """The services of a configuration as processes on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"postgres:5432": free_port(), "dashboard:8080": free_port()}
        self.domain = f"localhost:{free_port()}"
        self.config = config(folder, FILES[0], HPSEARCH_DOMAIN=self.domain)
        self._places = {f"/run/secrets/{name}": one["file"] for name, one in self.config["secrets"].items()}

    def words(self, service: str, words: list[str]) -> list[str]:
        """Words of a command or values of an environment, with what a container would provide replaced."""
        places = dict(self._places)
        for volume in self.config["services"][service].get("volumes", ()):
            source, target = volume.split(":")[:2]
            places[target] = source if source.startswith("/") else str(self.folder / "volumes" / source)
        found = []
        for word in words:
            for place, ours in sorted(places.items(), reverse=True):  # the longer ones first
                word = re.sub(rf"(?<![\w/]){re.escape(place)}(?![\w])", ours, word)  # noqa: PLW2901
            for name, port in self.ports.items():
                word = word.replace(name, f"127.0.0.1:{port}")  # noqa: PLW2901
            found.append(word)
        return found

    def environment(self, service: str) -> dict[str, str]:
        """What the service's processes see."""
        given = self.config["services"][service].get("environment", {})
        given = {name: str(value) for name, value in given.items() if value is not None}
        own = dict(zip(given, self.words(service, list(given.values())), strict=True))
        return environment(self.folder) | own

    def hpsearch(self, service: str, *arguments: str) -> list[str]:
        """The command line of a service of the image hpsearch, or of another command in its place."""
        words = list(arguments) or self.words(service, self.config["services"][service]["command"])
        if "--port" in words:
            words[words.index("--port") + 1] = str(self.ports["dashboard:8080"])
        return [sys.executable, "-m", "hpsearch", *words]

    @contextmanager
    def running(self, name: str, command: list[str], service: str, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
        """A process of a service, its output in a file; killed at the end."""
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(service) | more, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def postgres(self) -> Iterator[None]:
        """The database, made as the image's entry point makes it, then started by the file's command."""
        given, data = self.environment("postgres"), self.folder / "database"
        secret = ["--pwfile", given["POSTGRES_PASSWORD_FILE"], "--auth-local=trust"]
        initdb = [binary("initdb"), "-D", str(data), "-U", given["POSTGRES_USER"], *secret, "--no-sync"]
        run([*as_plain_user(), *initdb, *given["POSTGRES_INITDB_ARGS"].split()])
        command = self.words("postgres", self.config["services"]["postgres"]["command"])
        assert command[0] == "postgres"
        place = ["-D", str(data), "-k", str(self.folder), "-p", str(self.ports["postgres:5432"])]
        start = [*as_plain_user(), *die_with_parent(), binary("postgres"), *command[1:], *place]
        with self.running("postgres", start, "postgres"):
            socket = ["-h", str(self.folder), "-p", str(self.ports["postgres:5432"]), "-U", given["POSTGRES_USER"]]
            wait(lambda: run([binary("pg_isready"), *socket], check=False) == 0)
            run([binary("createdb"), *socket, given["POSTGRES_DB"]])
            yield

    @contextmanager
    def proxy(self) -> Iterator[None]:
        """Caddy with the file's routes."""
        command = self.words("proxy", self.config["services"]["proxy"]["command"])
        routes = Path(command[-1])
        [adapted] = self.words("proxy", [routes.read_text()])
        routes.write_text(adapted.replace("{\n", f"{{\n\thttp_port {free_port()}\n", 1))  # 80 may be taken here
        with self.running("proxy", command, "proxy", XDG_DATA_HOME=str(self.folder), XDG_CONFIG_HOME=str(self.folder)):
            wait(self.authority.is_file)
            yield

    @property
    def authority(self) -> Path:
        """The certificate that browsers have to trust."""
        return self.folder / "caddy/pki/authorities/local/root.crt"

    def ask(self, path: str, body: dict[str, str] | None = None, **headers: str) -> tuple[int, str, str]:
        """One request through the proxy: status, body, cookie."""
        trusting = ssl.create_default_context(cafile=str(self.authority))
        connection = http.client.HTTPSConnection(self.domain, context=trusting, timeout=30)
        given = {"Accept": "text/html", "Origin": f"https://{self.domain}"} | headers
        if body is not None:
            given["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request("GET" if body is None else "POST", path, urlencode(body) if body else None, given)
        answer = connection.getresponse()
        found = answer.status, answer.read().decode(), (answer.getheader("Set-Cookie") or "").partition(";")[0]
        connection.close()
        return found


def run(command: list[str], *, check: bool = True, **options: Any) -> int:
    """The exit code of a command that says nothing unless it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
    return done.returncode


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.2)


@needs_caddy
def test_an_address_in_the_place_of_a_name(tmp_path):
    """Caddy is asked at another address than the browser's, as behind Docker's NAT, and no name is in the handshake."""
    asked, routes, port = "127.0.0.2", tmp_path / "Caddyfile", free_port()
    ports = f"{{\n\thttp_port {free_port()}\n\thttps_port {port}\n"
    routes.write_text((ROOT / "storage/caddy/Caddyfile").read_text().replace("{\n", ports, 1))
    places = {"HPSEARCH_DOMAIN": asked, "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    authority = tmp_path / "caddy/pki/authorities/local/root.crt"
    with open(tmp_path / "log", "wb") as log:
        caddy = subprocess.Popen(
            ["caddy", "run", "--config", str(routes)], env=os.environ | places, stdout=log, stderr=log
        )

    def answers() -> bool:
        trusting = ssl.create_default_context(cafile=str(authority))
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
                trusting.wrap_socket(plain, server_hostname=asked) as secure,
            ):
                return ("IP Address", asked) in secure.getpeercert()["subjectAltName"]
        except OSError:  # the certificate is not loaded yet
            return False

    try:
        wait(authority.is_file)
        wait(answers)
    finally:
        caddy.kill()
        caddy.wait()


@needs_compose
@needs_caddy
def test_the_whole_stack(tmp_path):
    stack = Stack(tmp_path)
    token = "a-secret:for/dashboard_token"
    with ExitStack() as started:
        started.enter_context(stack.postgres())
        run(stack.hpsearch("schema"), env=stack.environment("schema"), cwd=tmp_path)
        dashboard = started.enter_context(stack.running("dashboard", stack.hpsearch("dashboard"), "dashboard"))
        started.enter_context(stack.proxy())
        workers = [
            started.enter_context(stack.running(f"worker-{number}", stack.hpsearch("worker"), "worker"))
            for number in range(2)
        ]

        def answers() -> bool:
            assert dashboard.poll() is None
            return stack.ask("/hpsearch/sign-in")[0] == 200

        wait(answers)
        assert stack.ask("/hpsearch/")[0] == 303  # sign in first
        assert stack.ask("/hpsearch/sign-in", {"token": "a-wrong-token"})[0] == 403
        status, _, cookie = stack.ask("/hpsearch/sign-in", {"token": token})
        assert (status, cookie[:16]) == (303, "__Host-hpsearch-")
        small = ("--set", "budget.trials=8", "--set", "training.epochs=2")
        create = stack.hpsearch("worker", "create-study", "quickstart", *small)
        run(create, env=stack.environment("worker"), cwd=tmp_path)
        settings = Settings.from_environment(stack.environment("worker"))
        with connect(settings.storage_url) as database:
            study = load_study(database, "quickstart")
            wait(lambda: progress(database, study).finished == 8)
            assert [trial.number for trial in study.optuna_study.trials] == list(range(8))
        assert "quickstart" in stack.ask("/hpsearch/", Cookie=cookie)[1]
        assert stack.ask("/hpsearch/metrics", Authorization=f"Bearer {token}")[1].count('study="quickstart"') > 8
        for worker in workers:
            assert worker.poll() is None  # it waits for the next study
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(PATIENCE_SECONDS) for worker in workers] == [75, 75]
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "for/postgres_password" not in logs
    assert token not in logs
