"""The exception tree: every error that a person may see, as one sentence.

    HpsearchError                 exit code 1: a run failed
    ├── StorageAway               the storage does not answer any more; exit code 75: try again
    ├── TrialsFail                trials of a study fail, one after another
    └── UsageError                exit code 2: what was given cannot be used; nothing was changed
        ├── StudyFileError        a study file, or a --set that changes it
        ├── DataError             a data set that is missing, broken or unsuited
        │   ├── DownloadError     a data set that cannot be fetched just now; exit code 1
        │   └── NoRoom            a data set that cannot be kept just now; exit code 1
        └── StorageError          a storage URL that cannot be opened, a study that is not there
            └── StorageEmpty      a storage in which no study was ever created

A message says what was given, where, the rule (or the choices), and what to do next.
"""

import errno
from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


class HpsearchError(Exception):
    """Anything that hpsearch itself reports; ends a command with exit code 1."""


class StorageAway(HpsearchError):
    """The storage has not answered for longer than a worker waits; ends it with exit code 75."""


class TrialsFail(HpsearchError):
    """Several trials of a study in a row ended by an exception: the fault is not one trial's."""


class UsageError(HpsearchError):
    """Input that cannot be used; ends a command with exit code 2 and leaves everything as it was."""


class StudyFileError(UsageError):
    """One or more mistakes in a study file.

    `mistakes` holds one sentence each, with file, key, value and rule.
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class DataError(UsageError):
    """A data set that is missing, broken, or does not suit the model."""


class DownloadError(DataError):
    """A data set that is not here and cannot be fetched just now; ends a command with exit code 1."""


class NoRoom(DataError):
    """A data set for whose decoded images the disk has no room; ends a command with exit code 1."""


class StorageError(UsageError):
    """A storage that cannot be opened, or a study that it does not hold."""


class StorageEmpty(StorageError):
    """A storage that can be reached, but in which no study was ever created."""


def no_room(error: OSError) -> bool:
    """Whether a disk, or what its user may have of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def exit_code(error: HpsearchError) -> int:
    """What a command that the error ends exits with, but for the storage that is away."""
    passing = isinstance(error, DownloadError | NoRoom)
    return EXIT_USAGE if isinstance(error, UsageError) and not passing else EXIT_FAILED
