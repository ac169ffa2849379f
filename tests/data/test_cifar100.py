"""cifar100: official files are checked before they are read, the test file is never opened, nothing is executed."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.data import cifar100
from hpsearch.data.images import Source
from hpsearch.data.load import load
from hpsearch.errors import DataError, DownloadError

NUM_CLASSES, PER_CLASS = 100, 3


def write_files(parent: Path, monkeypatch: pytest.MonkeyPatch, train: Any = None) -> np.ndarray[Any, Any]:
    """A small data set in the official form, without a test file; its checksums replace the published ones."""
    images = np.random.default_rng(0).integers(0, 256, (NUM_CLASSES * PER_CLASS, 3072), dtype=np.uint8)
    labels = np.tile(np.arange(NUM_CLASSES), PER_CLASS).tolist()
    contents = {
        "train": train if train is not None else {"data": images, "fine_labels": labels},
        "meta": {"fine_label_names": [f"class{number}" for number in range(NUM_CLASSES)]},
    }
    folder = parent / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        data = pickle.dumps(content, protocol=3)
        (folder / name).write_bytes(data)
        monkeypatch.setattr(cifar100, f"{name.upper()}_MD5", hashlib.md5(data).hexdigest())
    return images.reshape(-1, 3, 32, 32)


def source(data_dir: Path | None, download_dir: Path, name: str = "cifar100", image_size: int = 32) -> Source:
    return Source(name, name.partition(":")[2], data_dir, download_dir, image_size)


def test_checksums_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR100

    assert CIFAR100.train_list == [["train", cifar100.TRAIN_MD5]]
    assert CIFAR100.meta["md5"] == cifar100.META_MD5
    assert (CIFAR100.url, CIFAR100.tgz_md5) == (cifar100.URL, cifar100.ARCHIVE_MD5)
    assert (CIFAR100.base_folder, CIFAR100.filename) == (cifar100.FOLDER, cifar100.ARCHIVE)


@pytest.mark.parametrize("inside", [False, True])
def test_reads_the_folder_without_a_test_file(inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_files(tmp_path, monkeypatch)
    data_dir = tmp_path / cifar100.FOLDER if inside else tmp_path
    raw = cifar100.read_train(source(data_dir, tmp_path / "downloads"))
    np.testing.assert_array_equal(raw.images, images)
    assert raw.classes[99] == "class99"
    assert raw.labels[99] == 99


def test_reads_the_archive_without_unpacking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_files(tmp_path / "made", monkeypatch)
    place = tmp_path / "downloads"
    place.mkdir()
    with tarfile.open(place / cifar100.ARCHIVE, "w:gz") as archive:
        archive.add(tmp_path / "made" / cifar100.FOLDER, cifar100.FOLDER)
    np.testing.assert_array_equal(cifar100.read_train(source(None, place)).images, images)
    assert [path.name for path in place.iterdir()] == [cifar100.ARCHIVE]


def test_other_sizes_are_resized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, monkeypatch)
    raw = cifar100.read_train(source(tmp_path, tmp_path, image_size=8))
    assert raw.images.shape == (300, 3, 8, 8)
    assert raw.images.dtype == np.uint8


def test_a_damaged_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, monkeypatch)
    with (tmp_path / cifar100.FOLDER / "train").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(DataError, match=r"train from .* has the MD5 sum"):
        cifar100.read_train(source(tmp_path, tmp_path))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_is_executed_even_with_the_right_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, monkeypatch, train={"data": Evil()})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"mkdir.*refused"):
        cifar100.read_train(source(tmp_path, tmp_path))
    assert not Path("executed").exists()


def test_without_files_and_network_one_sentence_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(DownloadError) as caught:
        load("cifar100", data_dir=tmp_path / "mine", cache_dir=tmp_path / "cache")
    message = str(caught.value)
    for part in (str(tmp_path / "mine"), "no route to host", "--data-dir or HPSEARCH_DATA", "cifar-100-python"):
        assert part in message
    assert "\n" not in message


def test_takes_no_argument(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar100 takes nothing after the colon"):
        cifar100.read_train(source(None, tmp_path, "cifar100:coarse"))


@pytest.mark.skipif("HPSEARCH_DATA" not in os.environ, reason="HPSEARCH_DATA does not name the official files")
def test_official_files(tmp_path: Path) -> None:
    dataset = load("cifar100", data_dir=Path(os.environ["HPSEARCH_DATA"]), cache_dir=tmp_path)
    assert dataset.train_images.shape == (45000, 3, 32, 32)
    assert dataset.validation_images.shape == (5000, 3, 32, 32)
    assert np.bincount(dataset.train_labels).tolist() == [450] * 100
    np.testing.assert_allclose(dataset.mean, (0.5071, 0.4865, 0.4409), atol=1e-3)  # published for all 50,000
    np.testing.assert_allclose(dataset.std, (0.2673, 0.2564, 0.2762), atol=1e-3)


def test_pickles_of_both_numpy_generations_are_read() -> None:
    array = np.arange(4, dtype=np.uint8)
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        content = pickle.dumps({"data": array}, protocol=3)
        content = content.replace(b"numpy._core.multiarray", module)
        assert cifar100._ArraysOnly(io.BytesIO(content), encoding="latin1").load()["data"].tolist() == [0, 1, 2, 3]
