"""The test images of stl5: 4,000 in the official binaries, and as many as lie in a tree of class folders."""

from pathlib import Path

from hpsearch.data.folder import class_files, decoded
from hpsearch.data.images import Source
from hpsearch.data.stl5 import BINARIES, CLASSES, checked, find, from_binaries
from hpsearch.errors import DataError
from hpsearch.sealed.images import SealedImages

TEST_MD5 = {  # as in torchvision.datasets.STL10
    "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}


def read_test(source: Source, classes: tuple[str, ...]) -> SealedImages:
    """Images (N, 3, image_size, image_size), labels as in training."""
    place = find(source)
    if place.name == BINARIES:
        images, labels = (checked(place / name, md5) for name, md5 in TEST_MD5.items())
        raw = from_binaries(images, labels, source)
    else:
        raw = decoded(_tree_files(place / "test"), source)
    return SealedImages(raw.images, raw.labels)


def _tree_files(folder: Path) -> dict[str, list[Path]]:
    """Class -> its files, in the order of the labels; one of a class is enough here."""
    if missing := [name for name in CLASSES if not (folder / name).is_dir()]:
        raise DataError(
            f"stl5: {folder} has no folder {', '.join(missing)}; put the test images of these classes there."
        )
    found = class_files(folder, fewest=1)
    return {name: found[name] for name in CLASSES}
