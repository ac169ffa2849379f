"""Several hosts on one machine: network namespaces with addresses and host names of their own, joined by a bridge.

It needs root and Linux. Every host has a file of host names of its own; processes see it as /etc/hosts.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# $0: its /etc/hosts; $1: its name; the rest: the command.
ENTER = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'
LOSS = 0.05  # of the packets that reach a bad link's host
DELAY_SECONDS = 0.2


def why_not() -> str:
    """Why there can be no such network here; empty if there can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    missing = [name for name in ("ip", "iptables", "unshare") if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: run tests/install.sh"
    name = f"hp{os.getpid()}-try"
    if _ip("netns", "add", name, check=False):
        return "this kernel or container makes no network namespaces"
    _ip("netns", "del", name)
    return ""


class Network:
    """Hosts in 10.77.0.0/24; `names` is what their /etc/hosts says."""

    def __init__(self, folder: Path) -> None:
        self._prefix = f"hp{os.getpid()}-"
        self._hosts = folder / "hosts"
        self._hosts.write_text("127.0.0.1 localhost\n")
        self._made = ["switch"]
        _ip("netns", "add", f"{self._prefix}switch")
        _ip("-n", f"{self._prefix}switch", "link", "add", "bridge", "type", "bridge")
        _ip("-n", f"{self._prefix}switch", "link", "set", "bridge", "up")

    def add(self, name: str, address: str) -> None:
        """A host with this address and a link to the bridge."""
        space, switch = f"{self._prefix}{name}", f"{self._prefix}switch"
        _ip("netns", "add", space)
        self._made.append(name)
        _ip("-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("-n", switch, "link", "set", name, "master", "bridge", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "link", "set", "eth0", "up")
        self.move(name, address)

    def move(self, name: str, address: str) -> None:
        """Give the host this address instead of what it had."""
        _ip("-n", f"{self._prefix}{name}", "address", "flush", "dev", "eth0")
        _ip("-n", f"{self._prefix}{name}", "address", "add", f"{address}/24", "dev", "eth0")

    def know(self, name: str, address: str) -> None:
        """Let every host find this name at this address; the file is written in place, as the hosts have it open."""
        lines = [line for line in self._hosts.read_text().splitlines() if not line.endswith(f" {name}")]
        self._hosts.write_text("".join(f"{line}\n" for line in [*lines, f"{address} {name}"]))

    def plug(self, name: str, *, into: bool) -> None:
        """Pull the host's cable, or put it back."""
        _ip("-n", f"{self._prefix}switch", "link", "set", name, "up" if into else "down")

    def spoil(self, name: str) -> bool:
        """Lose LOSS of what the host gets, and delay what it sends; False if this kernel cannot delay."""
        space = ["ip", "netns", "exec", f"{self._prefix}{name}"]
        dropping = ["-m", "statistic", "--mode", "random", "--probability", str(LOSS), "-j", "DROP"]
        subprocess.run([*space, "iptables", "-A", "INPUT", "-i", "eth0", *dropping], check=True)
        delay = ["netem", "delay", f"{DELAY_SECONDS * 1000:.0f}ms"]
        shaping = [*space, "tc", "qdisc", "add", "dev", "eth0", "root", *delay]
        return subprocess.run(shaping, check=False, capture_output=True).returncode == 0

    def command(self, name: str, words: list[str]) -> list[str]:
        """What runs these words on that host; the process keeps its number, so that signals reach it."""
        space = ["ip", "netns", "exec", f"{self._prefix}{name}", "unshare", "--mount", "--uts"]
        return [*space, "sh", "-c", ENTER, str(self._hosts), name, *words]

    def close(self) -> None:
        """Delete every host."""
        for name in self._made:
            _ip("netns", "del", f"{self._prefix}{name}", check=False)


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network, deleted at the end."""
    made = Network(folder)
    try:
        yield made
    finally:
        made.close()


def _ip(*words: str, check: bool = True) -> int:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {' '.join(words)}: {done.stderr}"
    return done.returncode
