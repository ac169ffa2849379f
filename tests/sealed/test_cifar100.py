"""The test images of cifar100: from the official file, checked, with their superclasses."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.data import cifar100 as training
from hpsearch.data.images import Source
from hpsearch.errors import DataError
from hpsearch.sealed import cifar100
from hpsearch.sealed.images import open_seal

NUM_CLASSES, NUM_SUPERCLASSES, PER_CLASS = 100, 20, 2
CLASSES = tuple(f"class{number}" for number in range(NUM_CLASSES))
# Which superclass each class belongs to: no order of the one is an order of the other.
OF = np.random.default_rng(1).permutation(np.arange(NUM_CLASSES) % NUM_SUPERCLASSES)


def write_files(parent: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """A small test part in the official form, and what it holds; its checksums replace the published ones."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.tile(np.arange(NUM_CLASSES), PER_CLASS))
    images = generator.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    test = {"data": images, "fine_labels": labels.tolist(), "coarse_labels": OF[labels].tolist()} | changes
    names = {"fine_label_names": list(CLASSES), "coarse_label_names": [f"super{n}" for n in range(NUM_SUPERCLASSES)]}
    folder = parent / training.FOLDER
    folder.mkdir()
    (folder / "train").touch()  # by which the folder is found; nobody reads it here
    for name, content in (("test", test), ("meta", names)):
        data = pickle.dumps(content, protocol=3)
        (folder / name).write_bytes(data)
        monkeypatch.setattr(cifar100, f"{name.upper()}_MD5", hashlib.md5(data).hexdigest())
    return test


def source(folder: Path, image_size: int = 32) -> Source:
    return Source("cifar100", "", folder, folder, image_size)


def test_checksum_is_that_of_torchvision() -> None:
    from torchvision.datasets import CIFAR100

    assert CIFAR100.test_list == [["test", cifar100.TEST_MD5]]


def test_images_labels_and_superclasses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test = write_files(tmp_path, monkeypatch)
    sealed = open_seal(source(tmp_path), CLASSES)
    assert sealed.images.dtype == np.uint8
    np.testing.assert_array_equal(sealed.images, test["data"].reshape(-1, 3, 32, 32))
    assert sealed.labels.tolist() == test["fine_labels"]
    assert sealed.superclasses is not None
    assert sealed.superclasses.of.tolist() == OF.tolist()
    assert sealed.superclasses.names == tuple(f"super{number}" for number in range(NUM_SUPERCLASSES))
    assert open_seal(source(tmp_path, 8), CLASSES).images.shape == (NUM_CLASSES * PER_CLASS, 3, 8, 8)


def test_a_class_without_a_test_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recall would be no number."""
    labels = np.tile(np.arange(NUM_CLASSES), PER_CLASS)
    labels[labels == 7] = 8
    write_files(tmp_path, monkeypatch, fine_labels=labels.tolist(), coarse_labels=OF[labels].tolist())
    with pytest.raises(DataError, match="must hold images of every class"):
        open_seal(source(tmp_path), CLASSES)


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, monkeypatch)
    with (tmp_path / training.FOLDER / "test").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"test from .* has the MD5 sum"):
        open_seal(source(tmp_path), CLASSES)
