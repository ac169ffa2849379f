"""stl5: the five classes, from the official binaries and from class folders alike; the test part stays shut."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import STL10

from hpsearch.data import stl5
from hpsearch.data.images import RawImages, Source
from hpsearch.data.load import load
from hpsearch.data.stl5 import CLASSES, OFFICIAL, SIDE, read_train
from hpsearch.errors import DataError
from hpsearch.sealed.images import open_seal
from hpsearch.sealed.stl5 import TEST_MD5

NUM = 3  # images of each class


def pictures(seed: int) -> dict[str, np.ndarray]:
    """Class -> (NUM, 3, 96, 96), smooth enough for resizing to say something."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (len(CLASSES), NUM, 3, 12, 12), dtype=np.uint8)
    return {name: small[place].repeat(8, 2).repeat(8, 3) for place, name in enumerate(CLASSES)}


def write_tree(folder: Path) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        for name, images in pictures(seed).items():
            place = folder / "stl5" / part / name
            place.mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{number:05d}.png")


def write_binaries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images in the official form, among those of other classes; with their own MD5 sums."""
    place = folder / "stl10_binary"
    place.mkdir(parents=True)
    for part, seed, sums in (("train", 0, stl5.TRAIN_MD5), ("test", 1, TEST_MD5)):
        found = pictures(seed)
        rows = [(OFFICIAL[name], image) for number in range(NUM) for name in CLASSES for image in [found[name][number]]]
        rows.insert(2, (1, np.zeros((3, SIDE, SIDE), np.uint8)))  # an aeroplane
        images = np.stack([image for _, image in rows]).transpose(0, 1, 3, 2)  # columns first, as in the files
        labels = np.array([label for label, _ in rows], np.uint8)
        for name, array in ((f"{part}_X.bin", images), (f"{part}_y.bin", labels)):
            (place / name).write_bytes(array.tobytes())
            monkeypatch.setitem(sums, name, hashlib.md5(array.tobytes()).hexdigest())


def source(folder: Path, size: int = 32) -> Source:
    return Source("stl5", "", folder, folder / "none", size)


def same(one: RawImages, other: RawImages) -> None:
    assert one.classes == other.classes == ("car", "deer", "horse", "monkey", "truck")
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.images, other.images)


@pytest.mark.parametrize("size", [32, 96])
def test_binaries_and_folders_give_the_same(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path / "a")
    write_binaries(tmp_path / "b", monkeypatch)
    tree, binaries = (read_train(source(tmp_path / name, size)) for name in "ab")
    assert tree.images.shape == (5 * NUM, 3, size, size)
    same(tree, binaries)
    if size == 96:
        np.testing.assert_array_equal(tree.images[NUM], pictures(0)["deer"][0])
    for name in "ab":
        sealed = open_seal(source(tmp_path / name, size), CLASSES)
        assert np.bincount(sealed.labels).tolist() == [NUM] * 5
        assert not np.array_equal(sealed.images, tree.images)


def test_the_sums_are_those_of_torchvision() -> None:
    assert dict(STL10.train_list[:2]) == stl5.TRAIN_MD5
    assert dict(STL10.test_list) == TEST_MD5


def test_the_folder_itself_may_be_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    same(read_train(source(tmp_path)), read_train(source(tmp_path / "stl5")))


def test_a_folder_named_by_a_dot_is_found_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"no folder stl10_binary or stl5 in {tmp_path} or "):
        read_train(source(Path()))
    write_tree(tmp_path)
    monkeypatch.chdir(tmp_path / "stl5")
    same(read_train(source(Path())), read_train(source(tmp_path)))


def test_images_without_memory_are_one_sentence(tmp_path: Path) -> None:
    write_tree(tmp_path)
    with pytest.raises(DataError) as error:
        load("stl5", data_dir=tmp_path, cache_dir=tmp_path / "cache", image_size=2**21)  # no machine addresses as much
    for part in ("'stl5'", "2097152 pixels", "180. TiB", "choose a smaller data.image_size"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_training_does_not_need_the_test_part(tmp_path: Path) -> None:
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "stl5" / "test")
    dataset = load("stl5", data_dir=tmp_path, cache_dir=tmp_path / "cache", image_size=8)
    assert len(dataset.train_labels) + len(dataset.validation_labels) == 5 * NUM
    with pytest.raises(DataError, match="there is no folder"):
        open_seal(source(tmp_path), CLASSES)


@pytest.mark.parametrize("what", ["nothing", "class", "empty class", "damaged image", "damaged binary", "argument"])
def test_what_is_missing_or_damaged_is_named(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"nothing": "stl10_binary", "class": "monkey", "empty class": "monkey", "damaged image": "00001.png"}
    name = "stl5:x" if what == "argument" else "stl5"
    if what == "damaged binary":
        write_binaries(tmp_path, monkeypatch)
        path = tmp_path / "stl10_binary" / "train_X.bin"
        content = bytearray(path.read_bytes())
        content[1000] ^= 1
        path.write_bytes(content)
    elif what != "nothing":
        write_tree(tmp_path)
    if what in ("class", "empty class"):
        shutil.rmtree(tmp_path / "stl5" / "train" / "monkey")
    if what == "empty class":
        (tmp_path / "stl5" / "train" / "monkey").mkdir()
    if what == "damaged image":
        (tmp_path / "stl5" / "train" / "car" / "00001.png").write_bytes(b"no picture")
    with pytest.raises(
        DataError, match=named.get(what, "MD5" if what == "damaged binary" else "nothing after")
    ) as error:
        load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache", image_size=32)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("stl5-*[!k]")) if (tmp_path / "cache").exists() else True


def test_a_changed_tree_is_read_again(tmp_path: Path) -> None:
    write_tree(tmp_path)
    first = load("stl5", data_dir=tmp_path, cache_dir=tmp_path / "cache", image_size=8).fingerprint
    Image.new("RGB", (96, 96), "red").save(tmp_path / "stl5" / "train" / "car" / "00009.png")
    assert load("stl5", data_dir=tmp_path, cache_dir=tmp_path / "cache", image_size=8).fingerprint != first
