"""What a data set function is given (Source) and what it returns (RawImages)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpsearch.data.names import Source, refuse_argument, split_name

__all__ = ["Images", "Labels", "RawImages", "Source", "refuse_argument", "resized", "split_name"]

Images = NDArray[np.uint8]  # (N, C, H, W)
Labels = NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class RawImages:
    """Decoded images (N, C, H, W) uint8 with labels (N,) int64, which index `classes`."""

    images: Images
    labels: Labels
    classes: tuple[str, ...]


def resized(images: Images, image_size: int) -> Images:
    """Images (N, C, H, W) as (N, C, image_size, image_size): bicubic, antialiased when made smaller."""
    if images.shape[2:] == (image_size, image_size):
        return images
    size = (image_size, image_size)
    planes = images.reshape(-1, *images.shape[2:])  # (N * C, H, W)
    out = np.empty((len(planes), *size), dtype=np.uint8)
    for row, plane in zip(out, planes, strict=True):
        row[:] = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
    return out.reshape(*images.shape[:2], *size)
