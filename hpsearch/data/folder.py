"""folder:PATH: one's own images in PATH/train/<class>/*, of any size and colour mode; PATH/test is never opened."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hpsearch.data.images import Images, RawImages, Source
from hpsearch.data.names import need_path
from hpsearch.errors import DataError, UsageError

DECODER = b"\x002"  # changes with what files are decoded to, so that caches are made anew
NUM_NAMED = 10  # unreadable files named in one message; the rest is counted


def read_train(source: Source) -> RawImages:
    """Every image as RGB (N, 3, image_size, image_size), classes sorted by name.

    Each image is resized once, with antialiasing; the sides are not kept in proportion. Raises one DataError that
    names the unreadable files.
    """
    return decoded(class_files(_train_folder(source)), source)


def decoded(files: Mapping[str, Sequence[Path]], source: Source) -> RawImages:
    """The images of these files as RGB, labelled by the place of their class. Raises DataError as `read_train`."""
    paths = [path for members in files.values() for path in members]
    labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(members) for members in files.values()])
    images = np.empty((len(paths), 3, source.image_size, source.image_size), dtype=np.uint8)
    pool = ThreadPoolExecutor()  # Pillow decodes and resizes outside the interpreter's lock
    try:
        problems = list(pool.map(_decode_into, images, paths))
    finally:
        pool.shutdown(cancel_futures=True)  # of what Ctrl-C left
    bad = [f"{path} ({problem})" for path, problem in zip(paths, problems, strict=True) if problem]
    if bad:
        more = f" and {len(bad) - NUM_NAMED} more" if len(bad) > NUM_NAMED else ""
        raise DataError(
            f"data.name = {source.name!r}: {len(bad)} of {len(paths)} files are no readable images: "
            f"{', '.join(bad[:NUM_NAMED])}{more}; repair or remove them."
        )
    return RawImages(images, labels, tuple(files))


def stamp(source: Source) -> str:
    """A text that changes when a file under train/ is added, removed or changed: paths, sizes and change times."""
    folder = _train_folder(source)
    return stamp_of(folder, class_files(folder))


def stamp_of(folder: Path, files: Mapping[str, Sequence[Path]]) -> str:
    """A text that changes with the paths, sizes and times of these files.

    Among them the time when a name was given, which no command sets: files that change places may agree in all else.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve()) + DECODER)
    for class_name, members in files.items():
        for path in members:
            state = path.stat() if path.exists() else path.lstat()  # of a broken link
            times = f"{state.st_mtime_ns}\0{state.st_ctime_ns}"
            digest.update(os.fsencode(f"\0{class_name}\0{path.name}\0{state.st_size}\0{times}"))
    return digest.hexdigest()


def _train_folder(source: Source) -> Path:
    need_path(source)
    folder = Path(os.path.expanduser(source.argument)) / "train"  # Path.expanduser raises if there is no such user
    if not folder.is_dir():
        raise DataError(
            f"data.name = {source.name!r}: there is no folder {folder}; put the training images into "
            f"{folder}/<class>/*, one folder for each class."
        )
    return folder


def class_files(folder: Path, fewest: int = 2) -> dict[str, list[Path]]:
    """Class -> its files, `fewest` or more, both sorted by name; hidden ones (.DS_Store) are not meant as images.

    What is no file, such as a folder or a broken link, stands among them, to be named by who reads them.
    """
    files = {
        entry.name: sorted(path for path in entry.iterdir() if not path.name.startswith("."))
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    if len(files) < 2:
        found = f"only {', '.join(files)}" if files else "none"
        raise DataError(f"{folder}: two or more class folders are needed, found {found}; make {folder}/<class>/*.")
    for class_name, members in files.items():
        if any("\udc80" <= letter <= "\udcff" for letter in class_name):  # how Python spells bytes that are no text
            raise DataError(f"{folder}: the name of the class folder {class_name!r} is not UTF-8; rename it.")
        if len(members) < fewest:
            needs = "two or more images (one to train, one to validate)" if fewest > 1 else "an image"
            raise DataError(
                f"{folder / class_name}: a class needs {needs}, found {len(members)}; add images or remove the folder."
            )
    return files


def _decode_into(out: Images, path: Path) -> str:
    """Fill `out` (3, H, H) from one file; what is wrong with the file, or ""."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return "a folder" if path.is_dir() else "no file" if path.exists() else "a broken link"
        with Image.open(path) as image:
            out[:] = pixels(image, out.shape[1])
    except UsageError as error:
        return str(error)
    except Exception as error:  # decoders of damaged files raise nearly anything
        return f"{type(error).__name__}: {str(error).removesuffix(f' {str(path)!r}')}"
    return ""


def pixels(image: Image.Image, image_size: int, mode: str = "RGB") -> Images:
    """A picture's values (C, image_size, image_size), in training and after it alike; an unread JPEG gets smaller."""
    image.draft("RGB", (2 * image_size, 2 * image_size))  # JPEG: decode no larger than needed
    converted = upright(image).convert(mode)
    small = converted.resize((image_size, image_size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.atleast_3d(np.asarray(small)).transpose(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """The image as its camera was held, in 8 bits."""
    is_wide = image.mode.startswith("I;16") or image.format == "PPM"  # which Pillow opens as I, of 32 bits
    return _eight_bit(ImageOps.exif_transpose(image), is_wide)


def _eight_bit(image: Image.Image, is_wide: bool) -> Image.Image:
    """16-bit grey values scaled to 8 bits, which Pillow would cut off at 255; palettes as Pillow wants it done.

    Grey values in 32 bits are taken for 16-bit ones, unless they all fit into 8. Raises UsageError for floats.
    """
    if image.mode == "F":
        raise UsageError("grey values as floats, of which nobody says what is white: save them as 8 or 16 bits")
    if isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        shift = 8 if is_wide or values.max() > 255 else 0
        return Image.fromarray((values.clip(0, 65535) >> shift).astype(np.uint8))
    return image
