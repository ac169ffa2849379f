"""digits: four fifths of scikit-learn's images, enlarged; the sealed fifth never comes out."""

from pathlib import Path

import numpy as np
import pytest

from hpsearch.data.digits import read_train
from hpsearch.data.images import RawImages, Source
from hpsearch.errors import DataError


def read(name: str, image_size: int = 32) -> RawImages:
    return read_train(Source(name, name.partition(":")[2], None, Path("unused"), image_size))


def test_four_fifths_of_every_class() -> None:
    from sklearn.datasets import load_digits

    raw, everything = read("digits", image_size=8), load_digits()
    assert raw.images.shape == (1438, 1, 8, 8)
    assert read("digits").images.shape == (1438, 1, 32, 32)
    kept, total = np.bincount(raw.labels), np.bincount(everything.target)
    np.testing.assert_array_equal(kept, total - np.round(0.2 * total).astype(int))
    assert raw.images.min() == 0
    assert raw.images.max() == 255


def test_the_sealed_fifth_is_the_same_for_every_range() -> None:
    """A range must not bring out images that the whole data set seals."""
    whole, low, high = read("digits", 8), read("digits:0-4", 8), read("digits:5-9", 8)
    np.testing.assert_array_equal(low.images, whole.images[whole.labels < 5])
    np.testing.assert_array_equal(high.images, whole.images[whole.labels >= 5])
    assert set(high.labels) == {0, 1, 2, 3, 4}
    assert high.classes == ("5", "6", "7", "8", "9")


@pytest.mark.parametrize("name", ["digits:", "digits:4", "digits:5-5", "digits:7-3", "digits:0-10", "digits:a-b"])
def test_other_arguments_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="range of two or more classes from 0 to 9"):
        read(name)
