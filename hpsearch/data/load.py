"""Load a data set by name: decoded once, split, and memory-mapped from a cache that all workers of a machine share."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from filelock import FileLock

from hpsearch.data import DATASETS, PLACES, STAMPS
from hpsearch.data.images import Images, Labels, RawImages, Source, split_name
from hpsearch.data.split import VALIDATION_SEED, VALIDATION_SHARE, split_rows
from hpsearch.errors import DataError, NoRoom, no_room
from hpsearch.sections import FEWEST_PIXELS, MOST_PIXELS

FORMAT = 1  # of the cache; a higher number leaves the caches of older versions aside
ARRAYS = ("train_images", "train_labels", "validation_images", "validation_labels")
CHUNK_BYTES = 2**20  # of one channel, counted at a time for the statistics, which takes 8 times that; one image or more


@dataclass(frozen=True)
class DataSet:
    """The training images of one data set, split into training and validation part, memory-mapped and read-only.

    Images are uint8 (N, C, H, W), labels int64 (N,). `mean` and `std` are per channel over the pixels of the training
    part, on the scale 0..1. `fingerprint` is a SHA-256 over classes, images, labels and split.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Images
    train_labels: Labels
    validation_images: Images
    validation_labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str


def load(name: str, *, data_dir: Path | None, cache_dir: Path, image_size: int = 32) -> DataSet:
    """The data set `name` ("cifar100", "folder:PATH", an entry point), from the cache or decoded into it.

    Any number of processes may call this at once: one decodes, the others wait and map its files. Raises DataError.
    """
    base, argument = split_name(name)
    read, stamp = _functions(base, name)
    source = Source(name, argument, data_dir, cache_dir / "downloads", image_size)
    key = _key(source, base, stamp)
    place = cache_dir / key
    cached = _open(place, name)
    if cached:
        return cached
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            cached = _open(place, name)  # another process may have built it meanwhile
            return cached or _build(place, name, _checked(read(source), name))
    except OSError as error:
        raise _write_problem(name, cache_dir, error) from error
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        raise DataError(
            f"data.name = {name!r}: its images, {image_size} pixels high and wide, need more memory than there is"
            f"{reason}; choose a smaller data.image_size, or a machine with more."
        ) from error


def at_hand(name: str, *, data_dir: Path | None, cache_dir: Path, image_size: int = 32) -> str:
    """Where `load` would find the data set without a network, in words; empty if it would have to download it.

    Nothing is downloaded or decoded; what the reader of an installed package needs is not known. Raises DataError.
    """
    base, argument = split_name(name)
    _, stamp = _functions(base, name)
    source = Source(name, argument, data_dir, cache_dir / "downloads", image_size)
    place = cache_dir / _key(source, base, stamp)
    if _open(place, name):
        return f"decoded in {place}"
    if base in PLACES:
        found = resolve_name(PLACES[base])(source)
        return f"in {found}" if found else ""
    if base not in DATASETS:
        return "not decoded yet, and only its package knows whether its images are here"
    return f"in {argument}" if argument and base == "folder" else "comes with its package"


def _functions(base: str, name: str) -> tuple[Callable[[Source], RawImages], Callable[[Source], str]]:
    """The reader of a data set and the function that tells whether its source has changed."""
    if base in DATASETS:
        return resolve_name(DATASETS[base]), resolve_name(STAMPS[base]) if base in STAMPS else lambda _source: ""
    for entry in entry_points(group="hpsearch.data", name=base):
        return partial(_foreign, entry), partial(_entry_stamp, entry)
    others = sorted({entry.name for entry in entry_points(group="hpsearch.data")})
    known = ", ".join([*DATASETS, *others])
    raise DataError(f"data.name = {name!r}: no such data set; choose one of {known} (folder as folder:PATH).")


def _foreign(entry: EntryPoint, source: Source) -> RawImages:
    """What an installed package reads; whatever it raises becomes one sentence that names it."""
    try:
        raw = entry.load()(source)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(_foreign_problem(entry, error)) from error
    if not isinstance(raw, RawImages):
        raise DataError(f"data.name = {source.name!r}: {entry.value} gives {type(raw).__name__}, must give RawImages.")
    return raw


def _foreign_problem(entry: EntryPoint, error: Exception) -> str:
    package = entry.dist.name if entry.dist else "an installed package"
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"data.name = {entry.name!r}: {entry.value} of {package} failed ({reason}); repair or uninstall it."


def _entry_stamp(entry: EntryPoint, source: Source) -> str:
    """Version of the package, its code, as a package under development keeps its version, and what it is told to read.

    Of a file behind the colon of `data.name` size and times; of a folder no more than when its entries changed.
    """
    try:
        code = import_module(entry.module).__file__
    except Exception as error:
        raise DataError(_foreign_problem(entry, error)) from error
    content = Path(code).read_bytes() if code else b""
    state = os.stat(place) if os.path.exists(place := os.path.expanduser(source.argument)) else None
    told = (state.st_size, state.st_mtime_ns, state.st_ctime_ns) if state else ()
    version = entry.dist.version if entry.dist else ""
    return f"{version} {hashlib.sha256(content).hexdigest()} {source.data_dir} {told}"


def _key(source: Source, base: str, stamp: Callable[[Source], str]) -> str:
    """Name of the cache folder: readable, and different for whatever may give different images."""
    try:
        parts = json.dumps([FORMAT, source.name, source.image_size, stamp(source)])
    except OSError as error:
        raise DataError(f"data.name = {source.name!r}: cannot be read ({error}); make that possible.") from error
    return f"{re.sub('[^A-Za-z0-9_-]', '_', base)}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def _checked(raw: RawImages, name: str) -> RawImages:
    """The reader's answer, which may come from foreign code; DataError unless it can be split and trained on."""
    num_images, num_classes = len(raw.images), len(raw.classes)
    if raw.images.dtype != np.uint8 or raw.images.ndim != 4 or raw.images.shape[1] not in (1, 3):
        raise DataError(
            f"data.name = {name!r}: its reader gave images {raw.images.dtype} {raw.images.shape}; they must be uint8 "
            "(N, 1 or 3, H, W)."
        )
    height, width = raw.images.shape[2:]
    if height != width or not FEWEST_PIXELS <= height <= MOST_PIXELS:
        raise DataError(
            f"data.name = {name!r}: its reader gave images of {height} x {width} pixels; they must be as high as wide, "
            f"of {FEWEST_PIXELS} to {MOST_PIXELS} pixels, as source.image_size is: resize them in the reader."
        )
    if raw.labels.shape != (num_images,) or not np.issubdtype(raw.labels.dtype, np.integer):
        raise DataError(
            f"data.name = {name!r}: its reader gave labels {raw.labels.dtype} {raw.labels.shape}; they must be "
            f"integers ({num_images},)."
        )
    if num_images and (raw.labels.min() < 0 or raw.labels.max() >= num_classes):
        raise DataError(f"data.name = {name!r}: a label lies outside 0 to {num_classes - 1}, the rows of its classes.")
    counts = np.bincount(raw.labels, minlength=num_classes)
    if num_classes < 2 or counts.min() < 2:
        raise DataError(f"data.name = {name!r}: two or more classes with two or more images each are needed.")
    return raw


def _build(place: Path, name: str, raw: RawImages) -> DataSet:
    """Write the cache beside its place, then rename it: nobody ever sees half of it. The caller holds the lock."""
    for leftover in place.parent.glob(f"{place.name}.*.tmp"):  # of builders that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{place.name}.", suffix=".tmp", dir=place.parent))
    try:
        _write(work, raw)
        if place.exists():  # damaged; os.replace refuses a folder that is not empty
            os.replace(place, work / "damaged")
            shutil.rmtree(work / "damaged", ignore_errors=True)
        os.replace(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    built = _open(place, name)
    if not built:
        raise DataError(
            f"data.name = {name!r}: what was just written to {place} reads back differently; check the disk."
        )
    return built


def _write(work: Path, raw: RawImages) -> None:
    train, validation = split_rows(raw.labels, VALIDATION_SHARE, VALIDATION_SEED)
    labels = raw.labels.astype(np.int64)
    images = raw.images[train]
    contents: tuple[Images | Labels, ...] = (images, labels[train], raw.images[validation], labels[validation])
    for key, array in zip(ARRAYS, contents, strict=True):
        np.save(work / f"{key}.npy", array, allow_pickle=False)
    mean, std = _statistics(images)
    hashes = {key: _sha256(work / f"{key}.npy") for key in ARRAYS}
    meta = {"classes": raw.classes, "mean": mean, "std": std, "sha256": hashes}
    (work / "meta.json").write_text(json.dumps(meta | {"check": _check_of(meta)}, indent=1))
    work.chmod(0o755)  # mkdtemp's 0700 would keep out the other users of a shared machine


def _open(place: Path, name: str) -> DataSet | None:
    """The cache at `place`, its content verified; None if there is none or it is damaged."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        if meta.pop("check", None) not in (None, _check_of(meta)):  # None: an earlier version wrote it
            return None
        if any(_sha256(place / f"{key}.npy") != meta["sha256"][key] for key in ARRAYS):
            return None
        arrays = {key: np.load(place / f"{key}.npy", mmap_mode="r", allow_pickle=False) for key in ARRAYS}
        content = json.dumps([meta["classes"], meta["sha256"]], sort_keys=True)
        return DataSet(
            name=name,
            classes=tuple(meta["classes"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            fingerprint=hashlib.sha256(content.encode()).hexdigest(),
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_of(meta: dict[str, Any]) -> str:
    """A hash of what is known of the cache."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    """About 0.1 s for the 138 MB of CIFAR-100, which then lie in the page cache for the copy to come."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _statistics(images: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, 0..1, from exact counts: the same on every machine."""
    values = np.arange(256) / 255
    length = max(1, CHUNK_BYTES // images[0, 0].size)
    mean, std = [], []
    for channel in range(images.shape[1]):
        blocks = (images[start : start + length, channel] for start in range(0, len(images), length))
        counts = sum(np.bincount(block.reshape(-1), minlength=256) for block in blocks)
        mean.append(float(np.average(values, weights=counts)))
        spread = float(np.sqrt(np.average((values - mean[-1]) ** 2, weights=counts)))
        std.append(spread or 1.0)  # a constant channel must not divide by zero
    return mean, std


def _write_problem(name: str, cache_dir: Path, error: OSError) -> DataError:
    if no_room(error) or error.errno is None:  # numpy, which writes less than it should
        return NoRoom(
            f"data.name = {name!r}: no space left for the cache in {cache_dir} ({error}); free some or move the cache."
        )
    return DataError(
        f"data.name = {name!r}: reading it, or writing its cache to {cache_dir}, failed ({error}); make both possible."
    )
