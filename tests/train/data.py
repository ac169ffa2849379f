"""A small data set that can be learnt: each class is a colour under noise."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_CLASSES = 4


@dataclass(frozen=True)
class SmallDataSet:
    """As hpsearch.data.load.DataSet: images uint8 (N, C, H, W), labels (N,)."""

    classes: tuple[str, ...]
    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    validation_images: npt.NDArray[np.uint8]
    validation_labels: npt.NDArray[np.int64]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def small_data_set(num_images: int = 70, channels: int = 3, size: int = 16) -> SmallDataSet:
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 200, (NUM_CLASSES, channels, 1, 1))
    labels = generator.integers(0, NUM_CLASSES, num_images + 20)
    images = (colours[labels] + generator.integers(0, 56, (len(labels), channels, size, size))).astype(np.uint8)
    images.flags.writeable = False  # as a read-only memory map
    train, validation = slice(0, num_images), slice(num_images, None)
    return SmallDataSet(
        tuple(map(str, range(NUM_CLASSES))),
        images[train],
        labels[train],
        images[validation],
        labels[validation],
        (0.45,) * channels,
        (0.25,) * channels,
    )
