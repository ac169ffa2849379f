"""Where the pages read: the database, the studies' specifications, and importances, which take long to compute."""

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.storages._cached_storage import _CachedStorage

from hpsearch.artifacts import FolderCheckpoints, number_prefix, study_prefix
from hpsearch.confusion import MATRIX_FILE, Confusion
from hpsearch.errors import StudyFileError
from hpsearch.pictures import Pictures
from hpsearch.search import PRUNERS
from hpsearch.search.importance import Importances, importances
from hpsearch.search.pruners import make_pruner, rungs
from hpsearch.search.view import View
from hpsearch.settings import Settings
from hpsearch.storage.checkpoints import open_shelf
from hpsearch.storage.open import FAULTS, Database
from hpsearch.storage.studies import LoadedStudy, load_study
from hpsearch.web import queries
from hpsearch.web.queries import Listed

REST = 20  # an importance is computed again after so many times as long as it took
MAX_STUDIES = 1000  # whose specifications are kept; a look at all of them reads none again
MAX_VIEWS = 20  # studies whose trials are kept for importances, about 5 kB each


@dataclass
class _Mattering:
    """The importances of one study, as of some number of complete trials."""

    view: View
    found: Importances | None = None
    num_complete: int = -1
    at: float = 0.0
    seconds: float = 0.0
    busy: bool = False


class Source:
    """The database and its home folder, with what the pages keep between requests; used by several threads."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.home, self._checkpoints = database, settings.home, settings.checkpoints
        self._pictures = Pictures(open_shelf(settings.pictures))
        self._studies: dict[Listed, LoadedStudy] = {}
        self._mattering: dict[Listed, _Mattering] = {}
        self._lock = threading.Lock()

    def listed(self) -> list[Listed]:
        """All studies, the newest first."""
        with self.database.engine.connect() as connection:
            return queries.studies(connection)

    def find(self, study_id: int) -> Listed | None:
        """The study of that id, if there is one."""
        return next((one for one in self.listed() if one.study_id == study_id), None)

    def load(self, listed: Listed) -> LoadedStudy | None:
        """The study with its specification; None if hpsearch did not make it, or another version of it did.

        Another version: by rules that have changed, or with a pruner that is unknown here.

        Raises:
            StorageError: it has been deleted since it was listed.
        """
        if not listed.created:
            return None
        with self._lock:
            if listed not in self._studies:
                found = self._read(listed.name)
                if found is None:
                    return None
                _make_room(self._studies, MAX_STUDIES)
                self._studies[listed] = found
            return self._studies[listed]

    def _read(self, name: str) -> LoadedStudy | None:
        """The study over a cache of its own: Optuna's goes by ids, which SQLite gives again after a deletion."""
        storage = _CachedStorage(self.database.storage._backend)  # type: ignore[attr-defined]
        with contextlib.suppress(StudyFileError):
            found = load_study(replace(self.database, storage=storage), name)
            return found if found.spec.pruner.name in PRUNERS else None
        return None

    def confusion(self, files: Mapping[str, str]) -> Confusion | None:
        """The confusion matrix among a trial's files, if there is one here."""
        content = self._pictures.load(files.get(MATRIX_FILE, ""))
        with contextlib.suppress(ValueError):
            return None if content is None else Confusion.from_json(content)
        return None

    def checkpoints(self, study: LoadedStudy, number: int) -> list[int]:
        """The epochs of a trial's checkpoints in a folder, the newest first; S3 is not asked at every look."""
        if "://" in self._checkpoints:
            return []
        place = FolderCheckpoints(Path(os.path.expanduser(self._checkpoints)))
        return place.epochs(number_prefix(study_prefix(study.name, study.created), number))

    def importances(self, listed: Listed, study: LoadedStudy, num_complete: int) -> Importances | None:
        """What mattered; computed beside the request if that takes long, so that it may be a little old, or None."""
        with self._lock:
            known = self._mattering.get(listed)
            if known is None:
                _make_room(self._mattering, MAX_VIEWS)
                known = self._mattering[listed] = _Mattering(_view(self.database, study))
            rested = time.monotonic() - known.at >= REST * known.seconds
            due = known.num_complete != num_complete and not known.busy and rested
            known.busy |= due
        if due:
            thread = threading.Thread(target=_compute, args=(known, num_complete), daemon=True)
            thread.start()
            thread.join(0.2)
        return known.found


def rungs_of(study: LoadedStudy) -> frozenset[int]:
    """The epochs at which the study's pruner decides; none if that is every epoch, or never."""
    return rungs(make_pruner(study.spec)) or frozenset()


def _make_room(kept: dict[Listed, Any], most: int) -> None:
    """Forget the oldest ones, so that another one fits in."""
    while len(kept) >= most:
        del kept[next(iter(kept))]


def _view(database: Database, study: LoadedStudy) -> View:
    return View(database, study, rungs_of(study))


def _compute(known: _Mattering, num_complete: int) -> None:
    began = time.monotonic()
    try:
        with contextlib.suppress(*FAULTS):  # the next look tries again
            known.view.sync()
            known.found, known.num_complete = importances(known.view.study), num_complete
    finally:
        known.at = time.monotonic()
        known.seconds, known.busy = known.at - began, False
