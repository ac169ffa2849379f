"""Last words: what the interpreter says when a worker dies of a segmentation fault, kept for who comes next."""

import contextlib
import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFT_SECONDS = 30 * 24 * 3600.0  # after which a worker is taken to have ended; a crash later than that tells nothing


@contextmanager
def kept(folder: Path, owner: str) -> Iterator[None]:
    """Write the Python stack of a crash inside the block to a file in `folder`; without a crash nothing stays."""
    path = _path(folder, owner)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        file = path.open("w")
    except OSError:  # a full or read-only disk: the worker can do without
        yield
        return
    with file:
        before = faulthandler.is_enabled()
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if before:
                faulthandler.enable()
            with contextlib.suppress(OSError):
                path.unlink()


def last_words(folder: Path, owner: str) -> str:
    """What is known of the crash of a worker that shared this folder; empty if nothing is (kill -9, elsewhere)."""
    with contextlib.suppress(OSError):
        return _path(folder, owner).read_text(errors="replace")[-10_000:]
    return ""


def _sweep(folder: Path) -> None:
    """Delete what killed workers left, who had nothing to say."""
    for path in folder.glob("*.txt"):
        with contextlib.suppress(OSError):
            known = path.stat()
            if not known.st_size and time.time() - known.st_mtime > LEFT_SECONDS:
                path.unlink()


def _path(folder: Path, owner: str) -> Path:
    return folder / f"{owner.replace(':', '-')}.txt"
