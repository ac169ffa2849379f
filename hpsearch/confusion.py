"""What a trial mistakes for what on the validation part: kept for each trial that was the best when it ended."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

MATRIX_FILE, MATRIX_PICTURE, SAMPLES_PICTURE = "confusion.json", "confusion.png", "most-confused.png"
PAIRS = 8  # of classes, of which images are shown
IMAGES_OF_PAIR = 6
CELL, GAP = 48, 4  # pixels of one image, and between two
SIDE = 512  # pixels of the matrix's picture, at least

Images = NDArray[np.uint8]  # (N, C, H, W)
Indices = NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]`: validation images of class i that were taken for class j."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def accuracies(self) -> list[float | None]:
        """Of each class: the share of its images that were recognised; None for one without images."""
        return [row[index] / sum(row) if sum(row) else None for index, row in enumerate(self.counts)]

    def pairs(self, num: int = PAIRS) -> list[tuple[int, int, int]]:
        """The most confused pairs: (class, what it was taken for, how many images)."""
        wrong = [
            (count, i, j) for i, row in enumerate(self.counts) for j, count in enumerate(row) if i != j and count > 0
        ]
        return [(i, j, count) for count, i, j in sorted(wrong, key=lambda one: (-one[0], one[1], one[2]))[:num]]

    def to_json(self) -> bytes:
        return json.dumps({"classes": self.classes, "counts": self.counts}, separators=(",", ":")).encode()

    @staticmethod
    def from_json(text: bytes) -> "Confusion":
        """What `to_json` wrote. Raises ValueError if it is something else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            classes = tuple(str(name) for name in fields["classes"])
            counts = tuple(tuple(int(count) for count in row) for row in fields["counts"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("not a confusion matrix") from error
        if not classes or any(len(row) != len(classes) for row in counts) or len(counts) != len(classes):
            raise ValueError("not a square confusion matrix")
        return Confusion(classes, counts)


def confusion(classes: Sequence[str], labels: Indices, predicted: Indices) -> Confusion:
    """Count what was taken for what."""
    num = len(classes)
    counts = np.bincount(labels * num + predicted, minlength=num * num).reshape(num, num)
    return Confusion(tuple(classes), tuple(tuple(row) for row in counts.tolist()))


def pictures(found: Confusion, labels: Indices, predicted: Indices, images: Images) -> dict[str, bytes]:
    """The matrix, and images of the most confused pairs, as PNG by file name."""
    return {MATRIX_PICTURE: _png(_matrix(found)), SAMPLES_PICTURE: _png(_samples(found, labels, predicted, images))}


def _matrix(found: Confusion) -> Image.Image:
    """Rows are classes, columns what they were taken for; the darker, the larger the share of the row."""
    counts = np.asarray(found.counts, dtype=float)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    picture = Image.fromarray((255 * (1 - np.sqrt(shares))).astype(np.uint8))
    scale = max(1, SIDE // len(found.classes))
    return picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)


def _samples(found: Confusion, labels: Indices, predicted: Indices, images: Images) -> Image.Image:
    """One row of images for each of the most confused pairs, in their order."""
    pairs = found.pairs()
    size = (IMAGES_OF_PAIR * (CELL + GAP) - GAP, max(1, len(pairs)) * (CELL + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for row, (true, taken, _) in enumerate(pairs):
        of_pair = np.flatnonzero((labels == true) & (predicted == taken))[:IMAGES_OF_PAIR]
        for column, index in enumerate(of_pair):
            image = _image(images[index]).resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(image, (column * (CELL + GAP), row * (CELL + GAP)))
    if not pairs:
        ImageDraw.Draw(sheet).text((4, 4), "nothing was confused", fill="black")
    return sheet


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    """One image (C, H, W) with one or three channels."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels[:3], 0, -1)).convert("RGB")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
