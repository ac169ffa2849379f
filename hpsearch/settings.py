"""What the environment says: storage URL, home folder, data folder and device. Nothing else reads it."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpsearch.errors import UsageError

HIDDEN = "***"

# name=value pairs that carry a secret, in the query of a URL or in a libpq connection string
SECRET_PAIR = re.compile(r"(?i)(\w*(?:password|passwd|pwd|secret|token)\w*\s*=\s*)('[^']*'|[^&;\s]+)")


@dataclass(frozen=True)
class Settings:
    """Where things are on this machine.

    storage_url: where studies are recorded (HPSEARCH_STORAGE; default: hpsearch.db in the home folder).
    storage_to: where `hpsearch storage copy` copies them to (HPSEARCH_STORAGE_TO; empty: the command says it).
    home: everything else that outlives a process (HPSEARCH_HOME; default: ./storage).
    artifacts: where checkpoints are, a folder or s3://BUCKET/PREFIX (HPSEARCH_ARTIFACTS; default: home/checkpoints).
    data_dir: data sets that are already there (HPSEARCH_DATA; None: download or ask).
    device: auto, cpu, cuda:N or all (HPSEARCH_DEVICE; default: auto).
    lease_seconds: how long a worker may be silent before another takes its trial (HPSEARCH_LEASE_SECONDS).
    checkpoint_seconds: how much training a killed worker may lose (HPSEARCH_CHECKPOINT_SECONDS; 0: one epoch).
    lanes: how many trials a worker trains at once (None: one on a CPU, as many as pay on a GPU).
    storage_wait_seconds: how long a worker waits for a storage that is away (HPSEARCH_STORAGE_WAIT_SECONDS).
    dashboard_token: what opens the dashboard (HPSEARCH_DASHBOARD_TOKEN; None: see `hpsearch dashboard --help`).
    """

    storage_url: str
    home: Path
    data_dir: Path | None
    device: str
    lease_seconds: float = 120.0
    checkpoint_seconds: float = 30.0
    storage_wait_seconds: float = 300.0
    lanes: int | None = None
    artifacts: str = ""
    dashboard_token: str | None = field(default=None, repr=False)
    storage_to: str = field(default="", repr=False)

    @property
    def checkpoints(self) -> str:
        """Where checkpoints are."""
        return self.artifacts or str(self.home / "checkpoints")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """The settings of this process; an empty variable counts as not set."""
        home = Path(environment.get("HPSEARCH_HOME") or "storage").expanduser()
        data_dir = environment.get("HPSEARCH_DATA")
        return cls(
            storage_url=environment.get("HPSEARCH_STORAGE") or f"sqlite:///{home.as_posix()}/hpsearch.db",
            home=home,
            data_dir=Path(data_dir).expanduser() if data_dir else None,
            device=environment.get("HPSEARCH_DEVICE") or "auto",
            lease_seconds=_seconds(environment, "HPSEARCH_LEASE_SECONDS", cls.lease_seconds),
            checkpoint_seconds=_seconds(environment, "HPSEARCH_CHECKPOINT_SECONDS", cls.checkpoint_seconds),
            storage_wait_seconds=_seconds(environment, "HPSEARCH_STORAGE_WAIT_SECONDS", cls.storage_wait_seconds),
            artifacts=environment.get("HPSEARCH_ARTIFACTS") or "",
            dashboard_token=environment.get("HPSEARCH_DASHBOARD_TOKEN") or None,
            storage_to=environment.get("HPSEARCH_STORAGE_TO") or "",
        )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{name}={text}: must be a number of seconds, 0 or more")
    return seconds


def redact(url: str) -> str:
    """The URL without its password, for messages and logs.

    A password may itself hold '@', '/', '?' or ':' that should have been percent-encoded, so everything between the
    user's name and the last '@' is hidden: rather too much than a part of a password. A SQLite URL has a path and no
    user. Secrets in the query, or in a libpq string, are hidden too.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if "@" in rest and not scheme.lower().startswith("sqlite"):
        user_and_password, _, place = rest.rpartition("@")
        user, colon, _ = user_and_password.partition(":")
        rest = f"{user}:{HIDDEN}@{place}" if colon else rest
    return SECRET_PAIR.sub(rf"\g<1>{HIDDEN}", f"{scheme}{separator}{rest}")
