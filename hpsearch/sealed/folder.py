"""The test images of one's own folder: PATH/test/<class>/*."""

import os
from pathlib import Path

from hpsearch.data.folder import class_files, decoded
from hpsearch.data.images import Source
from hpsearch.errors import DataError
from hpsearch.sealed.images import SealedImages


def read_test(source: Source, classes: tuple[str, ...]) -> SealedImages:
    """Every image as RGB; the class folders must be those of the training part."""
    folder = Path(os.path.expanduser(source.argument)) / "test"  # Path.expanduser raises if there is no such user
    if not folder.is_dir():
        raise DataError(f"data.name = {source.name!r}: there is no folder {folder}; put the test images there.")
    files = class_files(folder, fewest=1)
    if set(files) != set(classes):
        differ = ", ".join(sorted(set(files) ^ set(classes)))
        raise DataError(f"{folder}: its class folders must be those of the training part; {differ} are in one only.")
    raw = decoded({name: files[name] for name in classes}, source)
    return SealedImages(raw.images, raw.labels)
