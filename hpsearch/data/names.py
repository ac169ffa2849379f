"""What a data set's name says: KEY or KEY:ARGUMENT, and what may follow the colon. Quick to import."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpsearch.errors import DataError


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

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders in which a data set may lie, as whole paths: "." has no name to look at or to tell."""
        return tuple(folder.absolute() for folder in (self.data_dir, self.download_dir) if folder is not None)


def split_name(name: str) -> tuple[str, str]:
    """A data set's name as (key of DATASETS or entry point, argument): "folder:cats" -> ("folder", "cats")."""
    base, _, argument = name.partition(":")
    return base, argument


def check_argument(name: str) -> None:
    """Raise DataError if what follows the colon in the name of a data set of hpsearch cannot be meant."""
    base, argument = split_name(name)
    if base in ARGUMENTS:
        ARGUMENTS[base](Source(name, argument, None, Path(), 0))


def refuse_argument(source: Source) -> None:
    """Raise DataError if something follows the colon in a name that takes nothing there."""
    if source.argument:
        base, argument = split_name(source.name)
        raise DataError(
            f"data.name = {source.name!r}: {base} takes nothing after the colon; remove {':' + argument!r}."
        )


def need_path(source: Source) -> None:
    """Raise DataError if nothing follows the colon."""
    if not source.argument:
        raise DataError(f"data.name = {source.name!r}: a colon and a path are missing; write folder:PATH.")


def class_range(source: Source) -> tuple[int, int]:
    """First and last class of `digits` (0, 9) or `digits:a-b` (a, b). Raises DataError for anything else."""
    if ":" not in source.name:
        return 0, 9
    match = re.fullmatch(r"([0-9])-([0-9])", source.argument)
    if not match or int(match[1]) >= int(match[2]):
        raise DataError(
            f"data.name = {source.name!r}: after the colon comes a range of two or more classes from 0 to 9; "
            "write for example digits:0-4."
        )
    return int(match[1]), int(match[2])


ARGUMENTS: dict[str, Callable[[Source], object]] = {
    "cifar100": refuse_argument,
    "digits": class_range,
    "folder": need_path,
    "stl5": refuse_argument,
}
