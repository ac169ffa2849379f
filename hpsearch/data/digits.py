"""digits: scikit-learn's 1,797 bundled handwritten digits; needs no network. `digits:0-4` takes classes 0 to 4 only."""

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.images import Images, RawImages, Source, resized
from hpsearch.data.names import class_range
from hpsearch.data.split import SEALED_SEED, split_rows

WHITE = 16  # the largest value of a pixel in scikit-learn's files
SEALED_SHARE = 0.2  # set aside as test split, since there is no official one; nothing here returns it


def read_train(source: Source) -> RawImages:
    """The unsealed four fifths as (N, 1, image_size, image_size); labels of `digits:a-b` start from 0 again."""
    from sklearn.datasets import load_digits  # slow to import; only needed when a cache is built

    first, last = class_range(source)
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    rows, _sealed = split_rows(labels, SEALED_SHARE, SEALED_SEED)
    rows = rows[(labels[rows] >= first) & (labels[rows] <= last)]
    classes = tuple(str(digit) for digit in range(first, last + 1))
    return RawImages(resized(pixels(bunch.images[rows]), source.image_size), labels[rows] - first, classes)


def pixels(values: NDArray[np.float64]) -> Images:
    """scikit-learn's values (N, 8, 8), from 0 to WHITE, as (N, 1, 8, 8)."""
    return np.rint(values * (255 / WHITE)).astype(np.uint8)[:, None]
