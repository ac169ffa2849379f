"""Open the seal of a data set: its test images, in the form in which the training images are."""

import hashlib
from dataclasses import dataclass
from pkgutil import resolve_name

import numpy as np

from hpsearch.data.images import Images, Labels, Source, split_name
from hpsearch.errors import DataError
from hpsearch.sealed import TESTS


@dataclass(frozen=True)
class Superclasses:
    """A coarser division of the classes: `of` (k,) gives the place in `names` for each class."""

    names: tuple[str, ...]
    of: Labels


@dataclass(frozen=True)
class SealedImages:
    """Test images uint8 (N, C, H, W) with labels (N,), which index the classes of the training part."""

    images: Images
    labels: Labels
    superclasses: Superclasses | None = None

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over the images' shape, the images and their labels, in their order."""
        found = hashlib.sha256(str(self.images.shape).encode())
        found.update(self.images.tobytes())
        found.update(self.labels.astype(np.int64).tobytes())
        return found.hexdigest()


def open_seal(source: Source, classes: tuple[str, ...]) -> SealedImages:
    """The test split of the data set that `source` names.

    Raises:
        DataError: it has none, it is damaged, or its classes are not those of the training part.
    """
    base, _ = split_name(source.name)
    if base not in TESTS:
        raise DataError(f"data.name = {source.name!r}: hpsearch knows no test split of it; it has one of {list(TESTS)}")
    try:
        sealed: SealedImages = resolve_name(TESTS[base])(source, classes)
    except OSError as error:
        raise DataError(
            f"data.name = {source.name!r}: its test split cannot be read ({error}); make it readable."
        ) from error
    except MemoryError as error:
        raise DataError(
            f"data.name = {source.name!r}: its test images, {source.image_size} pixels high and wide, need more memory "
            "than there is; open it on a machine with more."
        ) from error
    if len(sealed.labels) == 0 or len(np.unique(sealed.labels)) < len(classes):
        raise DataError(f"data.name = {source.name!r}: its test split must hold images of every class; add them")
    return sealed
