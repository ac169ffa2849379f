"""A file system of a megabyte or two, which tests fill up and make read-only. Only root can mount it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BLOCK = b"\0" * 4096


class SmallDisk:
    """A mounted file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, *, leave: int = 0) -> None:
        """Take all of its room, but for so many bytes."""
        handle = os.open(self.folder / "filling", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            while os.write(handle, BLOCK) == len(BLOCK):
                pass
        except OSError:
            pass  # full
        finally:
            os.ftruncate(handle, max(0, os.fstat(handle).st_size - leave))
            os.close(handle)

    def make_room(self) -> None:
        """Give back what `fill` took."""
        (self.folder / "filling").unlink()

    def set_read_only(self, read_only: bool) -> None:
        """Refuse every write from now on, or no more."""
        option = f"remount,{'ro' if read_only else 'rw'}"
        subprocess.run(["mount", "-o", option, str(self.folder)], check=True, capture_output=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """Mount one at `folder`; skips the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"needs a small file system, which only root may mount: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
