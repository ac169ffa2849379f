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
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

MIN_PERIOD_SECONDS = 2.0  # between two looks of one browser
SHARE = 0.02  # of one core that making one page anew may take, whoever looks
MAX_PERIOD_SECONDS = 30.0  # however long it takes
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
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock, self._clock = threading.Lock(), clock

    def answer(self, page: Hashable, make: Callable[[], Content]) -> Answer:
        """The answer for a page; everybody who looks within its period gets the same one."""
        with self._lock:
            lock = self._locks.setdefault(page, threading.Lock())
        with lock:
            known = self._answers.get(page)
            if known is not None and self._clock() - known.made < known.period_seconds - 0.5:
                return known
            began = self._clock()
            try:
                content = make()
            except BaseException:  # a page that is not there, perhaps
                with self._lock:
                    self._locks.pop(page, None)
                raise
            answer = _pack(content, self._clock(), began)
            self._keep(page, answer)
        return answer

    def _keep(self, page: Hashable, answer: Answer) -> None:
        with self._lock:
            self._answers[page] = answer
            self._answers.move_to_end(page)
            while len(self._answers) > MAX_KEPT:
                old, _ = self._answers.popitem(last=False)
                self._locks.pop(old, None)


def _pack(content: Content, now: float, began: float) -> Answer:
    parts = {name: json.dumps(text) for name, text in content.parts.items()}
    figures = {name: json.dumps(one, separators=(",", ":"), allow_nan=False) for name, one in content.figures.items()}
    period = min(MAX_PERIOD_SECONDS, max(MIN_PERIOD_SECONDS, (now - began) / SHARE))
    body = f'{{"parts":{_digested(parts)},"figures":{_digested(figures)},"period_seconds":{period:.1f}}}'
    tag = _digest("".join((*parts.values(), *figures.values())))
    return Answer(gzip.compress(body.encode(), compresslevel=4), tag, now, period)


def _digested(texts: dict[str, str]) -> str:
    """JSON of each text, which is JSON itself, with its digest."""
    rows = [f'{json.dumps(name)}:{{"content":{text},"digest":"{_digest(text)}"}}' for name, text in texts.items()]
    return f"{{{','.join(rows)}}}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
