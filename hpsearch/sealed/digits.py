"""The sealed fifth of scikit-learn's digits."""

import numpy as np

from hpsearch.data.digits import SEALED_SHARE, pixels
from hpsearch.data.images import Source, resized
from hpsearch.data.names import class_range
from hpsearch.data.split import SEALED_SEED, split_rows
from hpsearch.sealed.images import SealedImages


def read_test(source: Source, classes: tuple[str, ...]) -> SealedImages:
    """Images (N, 1, image_size, image_size) of the classes that the name of the data set gives."""
    from sklearn.datasets import load_digits

    first, last = class_range(source)
    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    _kept, rows = split_rows(labels, SEALED_SHARE, SEALED_SEED)
    rows = rows[(labels[rows] >= first) & (labels[rows] <= last)]
    return SealedImages(resized(pixels(bunch.images[rows]), source.image_size), labels[rows] - first)
