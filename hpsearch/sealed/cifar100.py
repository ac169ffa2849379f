"""The 10,000 test images of CIFAR-100, with its 20 superclasses."""

import numpy as np

from hpsearch.data.cifar100 import META_MD5, official_file
from hpsearch.data.images import Source, resized
from hpsearch.sealed.images import SealedImages, Superclasses

TEST_MD5 = "f0ef6b0ae62326f3e7ffdfab6717acfc"  # as in torchvision.datasets.CIFAR100


def read_test(source: Source, classes: tuple[str, ...]) -> SealedImages:
    """Images (10000, 3, image_size, image_size); `classes` are the official ones already."""
    test = official_file(source, "test", TEST_MD5)
    meta = official_file(source, "meta", META_MD5)
    images = np.asarray(test["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
    fine, coarse = (np.asarray(test[f"{kind}_labels"], dtype=np.int64) for kind in ("fine", "coarse"))
    of = np.zeros(len(classes), dtype=np.int64)
    of[fine] = coarse
    return SealedImages(resized(images, source.image_size), fine, Superclasses(tuple(meta["coarse_label_names"]), of))
