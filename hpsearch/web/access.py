"""Who may come in: one token for all, sessions with signed forms, and a limit on attempts."""

import hashlib
import hmac
import ipaddress
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import itsdangerous

from hpsearch.errors import UsageError

MIN_TOKEN_LENGTH = 12  # characters; a generated token has 32
SESSION_SECONDS = 12 * 3600
MAX_SESSIONS = 1000  # the oldest one ends
ATTEMPT_SECONDS = 60.0  # failed attempts are remembered so long
ATTEMPTS_PER_ADDRESS, ATTEMPTS_IN_ALL = 5, 100

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """What the person who started the dashboard allows: where it listens, with which token, and whether to write.

    Without a `token` everybody comes in. `public_url` is how browsers reach it through a proxy, if there is one.
    """

    host: str
    port: int
    token: str | None = field(default=None, repr=False)
    allow_write: bool = False
    public_url: str | None = None

    @property
    def secure(self) -> bool:
        """Whether browsers come through TLS."""
        return urlsplit(self.public_url or "").scheme == "https"

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies do not tell ports apart, so that two dashboards would sign each other out."""
        return f"__Host-hpsearch-{self.port}" if self.secure else f"hpsearch-{self.port}"

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this dashboard made the request, by the headers Origin and Host."""
        try:
            place, public = urlsplit(origin.lower()), urlsplit((self.public_url or "").lower())
        except ValueError:
            return False
        if public.netloc and (place.scheme, place.netloc) == (public.scheme, public.netloc):
            return True
        return place.netloc == host.lower() and not (self.secure and place.netloc == public.netloc)

    def knows_host(self, name: str) -> bool:
        """Whether a request may call this machine so; another name is a foreign site's that points here."""
        if name in (*LOOPBACK_NAMES, self.host.lower(), urlsplit(self.public_url or "").hostname or ""):
            return True
        if is_loopback(self.host):
            return False
        return name == socket.gethostname().lower() or _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether the address can be reached from its own machine only."""
    if host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def choose_token(host: str, public_url: str | None, given: str | None) -> str | None:
    """The token to start with: the given one, else a new one where other machines can reach the dashboard.

    Raises:
        UsageError: it is so short that it can be guessed, or the public URL is none.
    """
    if public_url is not None and not _is_public(public_url):
        raise UsageError(
            f"--public-url {public_url}: must be https://NAME or http://NAME, with or without a port, without a path; "
            "letters beyond ASCII as browsers send them (xn--...)"
        )
    if given is not None and len(given) < MIN_TOKEN_LENGTH:
        raise UsageError(
            f"HPSEARCH_DASHBOARD_TOKEN: has {len(given)} characters; "
            f"give at least {MIN_TOKEN_LENGTH}, or none and let hpsearch make one"
        )
    return given or (None if is_loopback(host) and public_url is None else secrets.token_urlsafe(24))


class Sessions:
    """The sessions of people who have given the token."""

    def __init__(self, token: str | None, clock: Callable[[], float] = time.time) -> None:
        self.required = token is not None
        self._digest = _digest(token or "")
        self._forms = itsdangerous.Signer(secrets.token_bytes(32), salt="form", digest_method=hashlib.sha256)
        self._live: dict[str, float] = {}  # until when, the oldest first
        self._failures: deque[tuple[float, str]] = deque()
        self._clock, self._lock = clock, threading.Lock()

    def wait_seconds(self, address: str) -> float:
        """How long this address has to wait before its next attempt; 0 if it need not."""
        with self._lock:
            now = self._clock()
            while self._failures and self._failures[0][0] < now - ATTEMPT_SECONDS:
                self._failures.popleft()
            everybody = [at for at, _ in self._failures]
            mine = [at for at, other in self._failures if other == address]
            # Whoever has used up so many attempts waits until the first of the last so many is forgotten.
            limits = ((mine, ATTEMPTS_PER_ADDRESS), (everybody, ATTEMPTS_IN_ALL))
            return max((at[-most] + ATTEMPT_SECONDS - now for at, most in limits if len(at) >= most), default=0.0)

    def is_token(self, token: str, address: str) -> bool:
        """Whether this is the token; if it is not, the attempt counts against the address."""
        if hmac.compare_digest(_digest(token), self._digest) and self.required:
            return True
        with self._lock:
            self._failures.append((self._clock(), address))
        return False

    def open(self, token: str, address: str) -> str | None:
        """The cookie of a new session, or None if the token is wrong."""
        if not self.is_token(token, address):
            return None
        name = secrets.token_urlsafe(24)  # 192 random bits, which nobody guesses
        with self._lock:
            self._live[name] = self._clock() + SESSION_SECONDS
            while len(self._live) > MAX_SESSIONS:
                del self._live[next(iter(self._live))]
        return name

    def name(self, cookie: str | None) -> str | None:
        """The session of a cookie, if it is alive."""
        with self._lock:
            return cookie if self._live.get(cookie or "", 0.0) > self._clock() else None

    def close(self, cookie: str | None) -> None:
        """End a session, for whoever holds its cookie."""
        name = self.name(cookie)
        with self._lock:
            self._live.pop(name or "", None)

    def form_token(self, cookie: str | None) -> str:
        """What a form of this session has to carry, so that no other site can fill it in."""
        return self._forms.sign(self.name(cookie) or "").decode()

    def is_form_token(self, given: str, cookie: str | None) -> bool:
        """Whether a form came from a page of this session."""
        return hmac.compare_digest(given.encode(), self.form_token(cookie).encode())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()  # of one length, so that a comparison tells nothing about the token's


def _is_public(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain and port_is_fine and url.isascii()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
