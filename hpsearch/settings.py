"""What the environment says: storage URL, home folder, data folder and device. Nothing else reads it."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from hpsearch.errors import UsageError

HIDDEN = "***"

# name=value pairs that carry a secret, in the query of a URL or in a libpq connection string
SECRET_PAIR = re.compile(r"(?i)(\w*(?:password|passwd|pwd|secret|token)\w*\s*=\s*)('[^']*'|[^&;\s]+)")


@dataclass(frozen=True)
class Settings:
    """Where things are on this machine.

    storage_url: where studies are recorded (HPSEARCH_STORAGE; default: hpsearch.db in the home folder). A password that
        is not in it may be in a file (HPSEARCH_STORAGE_PASSWORD_FILE).
    storage_to: where `hpsearch storage copy` copies them to (HPSEARCH_STORAGE_TO; empty: its argument says so); the
        password likewise (HPSEARCH_STORAGE_TO_PASSWORD_FILE).
    home: everything else that outlives a process (HPSEARCH_HOME; default: ./storage).
    artifacts: where checkpoints, weights and pictures are, a folder that several machines share or s3://BUCKET/PREFIX
        (HPSEARCH_ARTIFACTS; default: folders at home).
    data_dir: data sets that are already there (HPSEARCH_DATA; None: download or ask).
    device: auto, cpu, cuda:N or all (HPSEARCH_DEVICE; default: auto).
    lease_seconds: how long a worker may be silent before another takes its trial (HPSEARCH_LEASE_SECONDS).
    checkpoint_seconds: how much training a killed worker may lose (HPSEARCH_CHECKPOINT_SECONDS; 0: one epoch).
    lanes: how many trials a worker trains at once (None: as many as pay on a GPU, one for each core on a CPU).
    storage_wait_seconds: how long a worker waits for a storage that is away (HPSEARCH_STORAGE_WAIT_SECONDS).
    dashboard_token: what opens the dashboard (HPSEARCH_DASHBOARD_TOKEN, or in the file HPSEARCH_DASHBOARD_TOKEN_FILE;
        None: see `hpsearch dashboard --help`).
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
    def datasets(self) -> Path:
        """Where data sets are that were downloaded or decoded."""
        return self.home / "datasets"

    @property
    def checkpoints(self) -> str:
        """Where checkpoints are."""
        return self.artifacts or str(self.home / "checkpoints")

    @property
    def weights(self) -> str:
        """Where trained weights are that outlive their trial."""
        return f"{self.artifacts.rstrip('/')}/weights" if self.artifacts else str(self.home / "weights")

    @property
    def pictures(self) -> str:
        """Where pictures of trials are."""
        return f"{self.artifacts.rstrip('/')}/pictures" if self.artifacts else str(self.home / "artifacts")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """The settings of this process; an empty variable counts as not set.

        Raises:
            UsageError: a variable holds what it may not, or a file that one names cannot be read.
        """
        home = _folder(environment, "HPSEARCH_HOME") or Path("storage")
        return cls(
            storage_url=with_password(
                environment.get("HPSEARCH_STORAGE") or f"sqlite:///{_in_url(home)}/hpsearch.db",
                _secret(environment, "HPSEARCH_STORAGE_PASSWORD_FILE"),
            ),
            home=home,
            data_dir=_folder(environment, "HPSEARCH_DATA"),
            device=environment.get("HPSEARCH_DEVICE") or "auto",
            lease_seconds=_seconds(environment, "HPSEARCH_LEASE_SECONDS", cls.lease_seconds),
            checkpoint_seconds=_seconds(environment, "HPSEARCH_CHECKPOINT_SECONDS", cls.checkpoint_seconds),
            storage_wait_seconds=_seconds(environment, "HPSEARCH_STORAGE_WAIT_SECONDS", cls.storage_wait_seconds),
            artifacts=environment.get("HPSEARCH_ARTIFACTS") or "",
            dashboard_token=environment.get("HPSEARCH_DASHBOARD_TOKEN")
            or _secret(environment, "HPSEARCH_DASHBOARD_TOKEN_FILE"),
            storage_to=with_password(
                environment.get("HPSEARCH_STORAGE_TO") or "", _secret(environment, "HPSEARCH_STORAGE_TO_PASSWORD_FILE")
            ),
        )


def _folder(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name)
    try:
        return Path(text).expanduser() if text else None
    except RuntimeError as error:
        raise UsageError(f"{name}={text}: there is no such user, or one without a home; give the whole path") from error


def _in_url(path: Path) -> str:
    """A path as a URL holds it, in which `?` would begin the query and `%` a character's number."""
    return path.as_posix().replace("%", "%25").replace("?", "%3F")


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


def _secret(environment: Mapping[str, str], name: str) -> str | None:
    """What stands in the file that a variable names, as Docker and Kubernetes hand secrets over."""
    path = environment.get(name)
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}={path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not text:
        raise UsageError(f"{name}={path}: the file is empty; it must hold the secret and nothing else")
    return text


def with_password(url: str, password: str | None) -> str:
    """A storage URL that names a user but no password, with this one; any other URL as it is."""
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.partition("@")
    if password is None or not separator or not at or not user or set(user) & set(":/?") or scheme.startswith("sqlite"):
        return url
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}"


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
