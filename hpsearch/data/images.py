"""What a data set function is given (Source) and what it returns (RawImages)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpsearch.errors import DataError

Images = NDArray[np.uint8]  # (N, C, H, W)
Labels = NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Source:
    """Where one data set lies and in which size it is wanted.

    `argument` is what follows the colon in the data set's name ("" without one); `data_dir` is the person's own
    folder of data sets; downloads go to `download_dir`; images come out `image_size` pixels high and wide.
    """

    name: str
    argument: str
    data_dir: Path | None
    download_dir: Path
    image_size: int


@dataclass(frozen=True)
class RawImages:
    """Decoded images (N, C, H, W) uint8 with labels (N,) int64, which index `classes`."""

    images: Images
    labels: Labels
    classes: tuple[str, ...]


def split_name(name: str) -> tuple[str, str]:
    """A data set's name as (key of DATASETS or entry point, argument): "folder:cats" -> ("folder", "cats")."""
    base, _, argument = name.partition(":")
    return base, argument


def refuse_argument(source: Source) -> None:
    """Raise DataError if something follows the colon in a name that takes nothing there."""
    if source.argument:
        base, argument = split_name(source.name)
        raise DataError(
            f"data.name = {source.name!r}: {base} takes nothing after the colon; remove {':' + argument!r}."
        )


def resized(images: Images, image_size: int) -> Images:
    """Images (N, C, H, W) as (N, C, image_size, image_size): bicubic, antialiased when made smaller."""
    if images.shape[2:] == (image_size, image_size):
        return images
    size = (image_size, image_size)
    planes = images.reshape(-1, *images.shape[2:])  # (N * C, H, W)
    out = np.stack([np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)) for plane in planes])
    return out.reshape(*images.shape[:2], *size)
