"""stl5: 2,500 labelled training images of five STL-10 classes, 96 x 96 in the original; the test part is never opened.

Either the official binaries (folder stl10_binary, of which the unlabelled file is not needed) or a tree of class
folders (stl5/train/<class>/*). Both give the same images.

Source: https://cs.stanford.edu/~acoates/stl10/ and torchvision.datasets.STL10. Coates, Lee, Ng, AISTATS 2011.
"""

import hashlib
from pathlib import Path

import numpy as np

from hpsearch.data.folder import class_files, decoded, stamp_of
from hpsearch.data.images import Images, Labels, RawImages, Source, refuse_argument, resized
from hpsearch.errors import DataError

BINARIES, TREE = "stl10_binary", "stl5"
URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
SIDE = 96  # pixels
OFFICIAL = {"car": 3, "deer": 5, "horse": 7, "monkey": 8, "truck": 10}  # class -> label in the binaries
CLASSES = tuple(OFFICIAL)  # labels 0 to 4
TRAIN_MD5 = {  # as in torchvision.datasets.STL10; a test compares them
    "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "train_y.bin": "5a34089d4802c674881badbb80307741",
}


def read_train(source: Source) -> RawImages:
    """The training images (N, 3, image_size, image_size). Raises DataError if they are missing or damaged."""
    place = find(source)
    if place.name == BINARIES:
        images, labels = (checked(place / name, md5) for name, md5 in TRAIN_MD5.items())
        return from_binaries(images, labels, source)
    return decoded(tree_files(place / "train"), source)


def stamp(source: Source) -> str:
    """A text that changes when a file of the tree does; the binaries have one content only."""
    place = find(source)
    return BINARIES if place.name == BINARIES else stamp_of(place / "train", tree_files(place / "train"))


def find(source: Source) -> Path:
    """The folder stl10_binary or stl5, in the folder of data sets or as that folder itself.

    Raises DataError that says where to put the files.
    """
    refuse_argument(source)
    for parent in source.folders:
        for place in (parent, parent / BINARIES, parent / TREE):
            if place.name in (BINARIES, TREE) and place.is_dir():
                return place
    raise DataError(
        f"stl5: no folder {BINARIES} or {TREE} in {' or '.join(map(str, source.folders))}; unpack {URL} there "
        f"(unlabeled_X.bin is not needed), or make {TREE}/train/<class>/* of {', '.join(CLASSES)}, and name the folder "
        "around it with --data-dir or HPSEARCH_DATA."
    )


def tree_files(folder: Path, fewest: int = 2) -> dict[str, list[Path]]:
    """Class -> its files, in the order of the labels; DataError if a class is missing or has fewer."""
    if missing := [name for name in CLASSES if not (folder / name).is_dir()]:
        raise DataError(
            f"stl5: there is no folder {' and no folder '.join(str(folder / name) for name in missing)}; stl5 has the "
            f"classes {', '.join(CLASSES)}: put their images there, or use folder:PATH for other classes."
        )
    found = class_files(folder, fewest)
    return {name: found[name] for name in CLASSES}


def checked(path: Path, md5: str) -> bytes:
    """The content of one official file; DataError unless its MD5 is the published one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"stl5: cannot read {path} ({error.strerror}); unpack {URL} again.") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError(f"stl5: {path} has the MD5 sum {found}, the official file {md5}; unpack {URL} again.")
    return content


def from_binaries(image_bytes: bytes, label_bytes: bytes, source: Source) -> RawImages:
    """The five classes of an image and a label file, sorted by class as in the tree."""
    everything = np.frombuffer(image_bytes, dtype=np.uint8).reshape(-1, 3, SIDE, SIDE).transpose(0, 1, 3, 2)  # W is 2nd
    official: Labels = np.frombuffer(label_bytes, dtype=np.uint8).astype(np.int64)
    rows = np.concatenate([np.flatnonzero(official == label) for label in OFFICIAL.values()])
    order = {label: index for index, label in enumerate(OFFICIAL.values())}
    labels = np.array([order[label] for label in official[rows].tolist()], dtype=np.int64)
    images: Images = np.ascontiguousarray(everything[rows])
    return RawImages(resized(images, source.image_size), labels, CLASSES)
