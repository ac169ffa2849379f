"""The test images of stl5: 4,000 in the official binaries, and as many as lie in a tree of class folders."""

from hpsearch.data.folder import decoded
from hpsearch.data.images import Source
from hpsearch.data.stl5 import BINARIES, checked, find, from_binaries, tree_files
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
        raw = decoded(tree_files(place / "test", fewest=1), source)
    return SealedImages(raw.images, raw.labels)
