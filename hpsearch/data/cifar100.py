"""cifar100: 50,000 training images of 100 classes from torchvision's official files; the test file is never opened.

Source: https://www.cs.toronto.edu/~kriz/cifar.html and torchvision.datasets.CIFAR100.
"""

import hashlib
import io
import lzma
import os
import pickle
import shutil
import socket
import tarfile
import tempfile
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from hpsearch.data.images import RawImages, Source, refuse_argument, resized
from hpsearch.errors import DataError, DownloadError

FOLDER = "cifar-100-python"
ARCHIVE = "cifar-100-python.tar.gz"
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
TRAIN_MD5 = "16019d7e3df5f24257cddd939b257f8d"  # these as in torchvision.datasets.CIFAR100; a test compares them
META_MD5 = "7973b15100ade9c7d40fb424638fde48"
DOWNLOAD_TIMEOUT_SECONDS = 30.0  # per connection: a network that swallows packets must not hang a worker
ARRAY_NAMES: dict[tuple[str, str], Any] = {  # what a pickled array names, by NumPy 1 (the official files) and 2
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_train(source: Source) -> RawImages:
    """The 50,000 training images (N, 3, image_size, image_size), from `data_dir`, `download_dir` or the network."""
    refuse_argument(source)
    train = official_file(source, "train", TRAIN_MD5)
    meta = official_file(source, "meta", META_MD5)
    images = np.asarray(train["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    labels = np.asarray(train["fine_labels"], dtype=np.int64)
    return RawImages(resized(images, source.image_size), labels, tuple(meta["fine_label_names"]))


def official_file(source: Source, name: str, md5: str) -> dict[str, Any]:
    """The dictionary in one of the official files; DataError if it is missing or its MD5 is another."""
    return _unpickle(_checked(find(source) or _download(source), name, md5))


def find(source: Source) -> Path | None:
    """The folder cifar-100-python, or the archive of that name, in one of the two places."""
    for parent in source.folders:
        candidates = [parent / FOLDER, *([parent] if parent.name == FOLDER else []), parent / ARCHIVE]
        for place in candidates:
            if (place / "train").is_file() or place.is_file():
                return place
    return None


def _download(source: Source) -> Path:
    """The archive, downloaded by one process while others wait; DownloadError says where to put the files."""
    try:
        source.download_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(source.download_dir / f"{ARCHIVE}.lock"):
            return find(source) or _fetch(source.download_dir)  # another process may have fetched it meanwhile
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # ValueError: a host's name that cannot be one
        raise DownloadError(
            f"cifar100: no folder {FOLDER} in {' or '.join(map(str, source.folders))}, and downloading {URL} failed "
            f"({_reason(error)}); put the folder {FOLDER} (files train and meta) or {ARCHIVE} into a folder and name "
            "that folder with --data-dir or HPSEARCH_DATA."
        ) from error


def _fetch(folder: Path) -> Path:
    """Download through torchvision, which checks the MD5, then rename: nobody ever sees half of the archive.

    The caller holds the lock.
    """
    from torchvision.datasets.utils import download_url  # imports torch; only needed without files

    for leftover in folder.glob(f"{ARCHIVE}.*.tmp"):  # of processes that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{ARCHIVE}.", suffix=".tmp", dir=folder))
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        download_url(URL, str(work), filename=ARCHIVE, md5=ARCHIVE_MD5)
        os.replace(work / ARCHIVE, folder / ARCHIVE)
    finally:
        socket.setdefaulttimeout(timeout)
        shutil.rmtree(work, ignore_errors=True)
    return folder / ARCHIVE


def _reason(error: Exception) -> str:
    """What an error says, in one line; its kind if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _checked(place: Path, member: str, md5: str) -> bytes:
    """One file of the folder or archive; DataError unless its MD5 is the published one."""
    try:
        content = _read(place, member)
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"cifar100: cannot read {member} from {place} ({_reason(error)}); unpack {ARCHIVE} again, or remove "
            f"{place} to have it downloaded."
        ) from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(
            f"cifar100: {member} from {place} has the MD5 sum {found}, the official file {md5}; it is damaged or "
            "another data set: unpack the official archive again."
        )
    return content


def _read(place: Path, member: str) -> bytes:
    """The bytes of one file; out of the archive, no other file is unpacked."""
    if place.is_dir():
        return (place / member).read_bytes()
    with tarfile.open(place) as archive:
        extracted = archive.extractfile(f"{FOLDER}/{member}")
        if extracted is None:
            raise tarfile.ReadError(f"{FOLDER}/{member} is no file in it")
        return extracted.read()


def _unpickle(content: bytes) -> dict[str, Any]:
    """The dictionary that an official file holds."""
    result: dict[str, Any] = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    return result


class _ArraysOnly(pickle.Unpickler):
    """Unpickles containers, numbers, text and arrays; any other name is refused, so nothing can be executed."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in ARRAY_NAMES:
            raise DataError(f"cifar100: the file names {module_name}.{global_name}, which is no array; it is refused.")
        return ARRAY_NAMES[module_name, global_name]
