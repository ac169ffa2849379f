"""The cache: built once by any number of processes, never half there, rebuilt when damaged."""

import errno
import subprocess
import sys
import tracemalloc
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpsearch.data import DATASETS, PLACES, STAMPS
from hpsearch.data import load as load_module
from hpsearch.data.images import RawImages, Source
from hpsearch.data.load import ARRAYS, DataSet, at_hand, load
from hpsearch.data.split import split_rows
from hpsearch.errors import DataError, exit_code


def digits(cache_dir: Path) -> DataSet:
    return load("digits:0-1", data_dir=None, cache_dir=cache_dir, image_size=8)


def folders(cache_dir: Path) -> list[Path]:
    return sorted(path for path in cache_dir.iterdir() if path.is_dir())


def test_every_table_entry_can_be_imported() -> None:
    assert set(STAMPS) | set(PLACES) <= set(DATASETS)
    for target in [*DATASETS.values(), *PLACES.values(), *STAMPS.values()]:
        assert callable(resolve_name(target))


def test_arrays_are_mapped_and_statistics_are_of_the_training_part(tmp_path: Path) -> None:
    dataset = digits(tmp_path)
    for key in ARRAYS:
        assert isinstance(getattr(dataset, key), np.memmap)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int64
    assert len(dataset.train_images) == len(dataset.train_labels)
    assert dataset.classes == ("0", "1")
    scaled = dataset.train_images / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize(("num_images", "size"), [(3000, 8), (40, 256), (2, 1100)])
def test_statistics_take_little_memory_and_do_not_depend_on_it(num_images: int, size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (num_images, 2, size, size), dtype=np.uint8)
    values, mean, std = np.arange(256) / 255, [], []
    for channel in range(2):
        counts = np.bincount(images[:, channel].reshape(-1), minlength=256)
        mean.append(float(np.average(values, weights=counts)))
        std.append(float(np.sqrt(np.average((values - mean[-1]) ** 2, weights=counts))))
    tracemalloc.start()
    try:
        assert load_module._statistics(images) == (mean, std)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_another_size_is_another_cache(tmp_path: Path) -> None:
    small, large = digits(tmp_path), load("digits:0-1", data_dir=None, cache_dir=tmp_path, image_size=10)
    assert small.train_images.shape[2:] == (8, 8)
    assert large.train_images.shape[2:] == (10, 10)
    assert small.fingerprint != large.fingerprint


def test_the_split_is_stratified_and_fixed() -> None:
    labels = np.repeat(np.arange(4), (3, 10, 25, 100))
    kept, aside = split_rows(labels, 0.1, 0)
    assert np.bincount(labels[aside]).tolist() == [1, 1, 2, 10]
    assert sorted([*kept, *aside]) == list(range(len(labels)))
    assert aside.tolist() == FIXED_ROWS  # another split would make all earlier results incomparable


FIXED_ROWS = [2, 5, 15, 18, 40, 54, 64, 92, 93, 111, 113, 124, 131, 133]

WORKER = """
import sys, time
from pathlib import Path
from hpsearch.data import load as module
build = module._build
def counted(*arguments):
    print("built")
    return build(*arguments)
module._build = counted
home, go = Path(sys.argv[1]), Path(sys.argv[1]) / "go"
print("ready", flush=True)
until = time.monotonic() + 60
while not go.exists() and time.monotonic() < until:
    time.sleep(0.005)
dataset = module.load("digits:0-1", data_dir=None, cache_dir=home / "cache", image_size=8)
print(dataset.fingerprint, int(dataset.train_images.sum()), "torch" in sys.modules)
"""


def test_eight_processes_at_once_build_one_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    try:
        for worker in workers:
            assert worker.stdout
            assert worker.stdout.readline() == "ready\n"
        (tmp_path / "go").touch()
        outputs = [worker.communicate(timeout=60)[0].splitlines() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()  # if it runs still
    assert all(worker.returncode == 0 for worker in workers)
    assert sum("built" in lines for lines in outputs) == 1
    assert len({lines[-1] for lines in outputs}) == 1
    assert outputs[0][-1].endswith("False")
    assert len(folders(tmp_path / "cache")) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change(path: Path) -> None:
    """A digit in the middle of what is text: of a mean or a standard deviation."""
    content = path.read_bytes()
    place = content.index(b'"std"') + 16
    assert content[place : place + 1].isdigit()
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def test_a_damaged_number_in_what_is_known_of_a_cache_is_found(tmp_path: Path) -> None:
    whole = digits(tmp_path)
    (folder,) = folders(tmp_path)
    change(folder / "meta.json")
    assert digits(tmp_path).std == whole.std


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize("file", ["train_images.npy", "meta.json"])
def test_a_damaged_cache_is_rebuilt(file: str, harm: Any, tmp_path: Path) -> None:
    whole = digits(tmp_path)
    labels, fingerprint = whole.train_labels.copy(), whole.fingerprint
    (folder,) = folders(tmp_path)
    harm(folder / file)
    again = digits(tmp_path)
    assert again.fingerprint == fingerprint
    assert (again.train_labels == labels).all()
    assert folders(tmp_path) == [folder]


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    digits(tmp_path)
    (folder,) = folders(tmp_path)
    folder.rename(f"{folder}.abc.tmp")
    digits(tmp_path)
    assert folders(tmp_path) == [folder]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError("9 requested, 4 written")])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is what numpy says of it."""
    save, calls = np.save, []

    def full(path: Path, array: Any, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise error
        save(path, array, **options)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"no space left for the cache in .*; free some or move the cache") as told:
        digits(tmp_path)
    assert exit_code(told.value) == 1
    assert folders(tmp_path) == []
    digits(tmp_path)


def test_a_cache_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"writing its cache to .*failed"):
        digits(tmp_path / "file")


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    for number in range(4):
        for class_name in ("a", "b"):
            path = tmp_path / "images/train" / class_name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), 60 * number).save(path)
    name = f"folder:{tmp_path / 'images'}"
    before = load(name, data_dir=None, cache_dir=tmp_path / "cache")
    assert load(name, data_dir=None, cache_dir=tmp_path / "cache").fingerprint == before.fingerprint
    Image.new("L", (9, 9), 255).save(tmp_path / "images/train/a/new.png")
    after = load(name, data_dir=None, cache_dir=tmp_path / "cache")
    assert len(after.train_images) == len(before.train_images) + 1
    assert after.fingerprint != before.fingerprint


def test_an_unknown_name_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'mnist': no such data set; choose one of cifar100, digits, folder"):
        load("mnist", data_dir=None, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


class Foreign:
    """An entry point of an installed package."""

    name, module, dist = "foreign", __name__, None

    def __init__(self, images: Any, labels: Any) -> None:
        self.raw = RawImages(images, labels, ("x", "y"))

    def load(self) -> Any:
        return lambda source: self.raw if isinstance(source, Source) else None


def install(monkeypatch: pytest.MonkeyPatch, images: Any, labels: Any) -> None:
    monkeypatch.setattr(load_module, "entry_points", lambda **_: [Foreign(images, labels)])


def test_a_data_set_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, np.ones((40, 3, 8, 8), np.uint8), np.tile([0, 1], 20).astype(np.int32))
    dataset = load("foreign:something", data_dir=None, cache_dir=tmp_path)
    assert len(dataset.train_images) == 36
    assert dataset.train_labels.dtype == np.int64
    assert dataset.std == (1.0, 1.0, 1.0)  # a constant channel


def test_what_a_package_is_told_to_read_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file under the same name, or another folder of data sets."""
    file, cache, images = tmp_path / "images.npz", tmp_path / "cache", np.ones((40, 3, 8, 8), np.uint8)

    def fingerprint(value: int, data_dir: Path | None = None) -> str:
        install(monkeypatch, images * value, np.tile([0, 1], 20))
        return load(f"foreign:{file}", data_dir=data_dir, cache_dir=cache).fingerprint

    file.write_text("one")
    first = fingerprint(1)
    assert fingerprint(2) == first  # nothing says that it has changed
    assert fingerprint(2, tmp_path / "other") != first
    file.write_text("another")
    assert fingerprint(2) != first


def test_a_data_set_of_another_package_is_not_said_to_be_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, np.ones((40, 3, 8, 8), np.uint8), np.tile([0, 1], 20))
    assert at_hand("foreign", data_dir=None, cache_dir=tmp_path).startswith("not decoded yet")
    load("foreign", data_dir=None, cache_dir=tmp_path)
    assert at_hand("foreign", data_dir=None, cache_dir=tmp_path).startswith(f"decoded in {tmp_path}")


def test_a_package_without_memory_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, np.ones((40, 3, 8, 8), np.uint8), np.tile([0, 1], 20))

    def full(_self: Foreign) -> None:
        raise MemoryError

    monkeypatch.setattr(Foreign, "load", full)
    with pytest.raises(DataError, match=r"'foreign': its images, 16 pixels .* than there is; choose a smaller"):
        load("foreign", data_dir=None, cache_dir=tmp_path, image_size=16)


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (np.ones((4, 3, 8, 8)), np.array([0, 1, 0, 1]), "images float64"),
        (np.ones((4, 2, 8, 8), np.uint8), np.array([0, 1, 0, 1]), "must be uint8"),
        (np.ones((4, 3, 8, 12), np.uint8), np.array([0, 1, 0, 1]), "8 x 12 pixels; they must be as high as wide"),
        (np.ones((4, 3, 7, 7), np.uint8), np.array([0, 1, 0, 1]), "7 x 7 pixels; .* of 8 to 4096 pixels"),
        (np.ones((4, 3, 8, 8), np.uint8), np.array([0, 1]), "labels int64"),
        (np.ones((4, 3, 8, 8), np.uint8), np.array([0, 1, 2, 1]), "outside 0 to 1"),
        (np.ones((4, 3, 8, 8), np.uint8), np.array([0, 0, 0, 1]), "two or more images"),
        (np.ones((0, 3, 8, 8), np.uint8), np.array([], np.int64), "two or more images"),
    ],
)
def test_unsuited_images_of_another_package_are_refused(
    images: Any, labels: Any, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, images, labels)
    with pytest.raises(DataError, match=problem):
        load("foreign", data_dir=None, cache_dir=tmp_path)
    assert folders(tmp_path) == []
