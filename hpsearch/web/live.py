"""Live pages: one answer for all who look, made anew when it is old, and sent only to those who do not have it.

A page is a template with named parts, and figures. The page itself comes with its parts filled in; then its script asks
for the same address with `?live=1` and gets the parts and figures as JSON, each with a digest, so that what has not
changed is not drawn again.
"""

import gzip
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIN_PERIOD_SECONDS = 2.0  # between two looks of one browser
SHARE = 0.05  # of one core that making one page anew may take, whoever looks
MAX_KEPT = 64  # answers


@dataclass(frozen=True)
class Content:
    """A page's parts as HTML and its figures, by name."""

    parts: dict[str, str]
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What is sent: JSON, packed; its tag; and how long it counts as new."""

    packed: bytes
    tag: str
    made: float
    period_seconds: float


class Live:
    """The last answers, by page."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._locks: dict[str, threading.Lock] = {}
        self._lock, self._clock = threading.Lock(), clock

    def answer(self, page: str, make: Callable[[], Content]) -> Answer:
        """The answer for a page; everybody who looks within its period gets the same one."""
        with self._lock:
            lock = self._locks.setdefault(page, threading.Lock())
        with lock:
            known = self._answers.get(page)
            if known is not None and self._clock() - known.made < known.period_seconds - 0.5:
                return known
            began = self._clock()
            content = make()
            answer = _pack(content, self._clock(), began)
        with self._lock:
            self._answers[page] = answer
            self._answers.move_to_end(page)
            while len(self._answers) > MAX_KEPT:
                old, _ = self._answers.popitem(last=False)
                self._locks.pop(old, None)
        return answer


def _pack(content: Content, now: float, began: float) -> Answer:
    parts = {name: {"html": text, "digest": _digest(text)} for name, text in content.parts.items()}
    figures = {}
    for name, figure in content.figures.items():
        text = json.dumps(figure, separators=(",", ":"), allow_nan=False)
        figures[name] = {"figure": figure, "digest": _digest(text)}
    tag = _digest("".join(one["digest"] for one in (*parts.values(), *figures.values())))
    period = max(MIN_PERIOD_SECONDS, (now - began) / SHARE)
    body = {"parts": parts, "figures": figures, "period_seconds": round(period, 1)}
    packed = gzip.compress(json.dumps(body, separators=(",", ":")).encode(), compresslevel=4)
    return Answer(packed, tag, now, period)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
