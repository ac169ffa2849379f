"""What a study's best configuration rests on besides the search: confirmation over seeds, final tests, an export."""

import json
import math
import zipfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from hpsearch import confirm
from hpsearch.confirm import Confirmation
from hpsearch.export_schema import FILES, METRICS, SUMS
from hpsearch.statistics import Estimate, of_planned, shown
from hpsearch.storage.openings import openings
from hpsearch.storage.studies import LoadedStudy
from hpsearch.web.queries import Listed
from hpsearch.web.source import Source
from hpsearch.web.words import DASH, metric

IN_MEMORY = 2**24  # bytes of a download; larger ones go through a temporary file


@dataclass(frozen=True)
class Tested:
    """One configuration on the test split, as it was recorded."""

    time: str
    data: str
    again: str | None
    other_images: str | None
    label: str
    accuracy: Estimate | None  # None: the process ended while the split was open
    seeds: str = ""  # how many there are, of how many


def confirmation(source: Source, listed: list[Listed], study: LoadedStudy) -> Confirmation | None:
    """What new seeds say so far: of the study that confirms this one, or of one that compares candidates itself."""
    if study.spec.candidates:
        return confirm.result(study)
    found = next((one for one in listed if one.name == confirm.name_of(study.name)), None)
    confirming = source.load(found) if found else None
    return confirm.result(confirming) if confirming and confirm.confirms(confirming, study) else None


def tested(source: Source, study: LoadedStudy) -> list[Tested]:
    """Every result on the test split, of the study that this one confirms if it does; the first opening first."""
    return [
        Tested(
            time=record["time"],
            data=record["data"],
            again=record["again"],
            other_images=record.get("other_images"),
            label=one["label"],
            accuracy=_estimate(len(one["seeds"]), one["accuracy"]) if "accuracy" in one else None,
            seeds=of_planned(len(one["seeds"]), one.get("planned"), one.get("lost", 0), "") if "seeds" in one else "",
        )
        for record in openings(source.database, confirm.searched(source.database, study))
        for one in record.get("results", [{"label": "no result"}])
    ]


def final_test_of(study: LoadedStudy) -> str:
    """The study whose test split is opened for this one: that which it confirms, else itself."""
    link = confirm.link_of(study)
    return str(link["study"]) if link.get("kind") == confirm.CONFIRM else study.name


def interval(found: Estimate, name: str) -> str:
    """An interval in words, a dash where one seed gives none."""
    if math.isnan(found.low):
        return DASH
    return " to ".join(metric(shown(end, name), name) for end in (found.low, found.high))


def export_folder(home: Path, study: LoadedStudy) -> Path:
    """Where the page's command puts the study's export, and where its download comes from."""
    return home / "exports" / study.name


def export_size(folder: Path, study: LoadedStudy) -> int | None:
    """Bytes of the study's export in a folder.

    None if there is none, if it is older than the study, and therefore of another one that had its name, or if
    something that is no plain file stands in it.
    """
    files = [folder / name for name in (*FILES, SUMS)]
    try:
        if any(path.is_symlink() or not path.is_file() for path in files) or folder.is_symlink():
            return None
        made = datetime.fromisoformat(json.loads((folder / METRICS).read_bytes())["created"])
        if made + timedelta(seconds=1) < datetime.fromisoformat(study.created):  # which knows its fraction of a second
            return None
        return sum(path.stat().st_size for path in files)
    except (OSError, KeyError, TypeError, ValueError):
        return None


def packed(folder: Path) -> IO[bytes]:
    """The export as a ZIP archive, at its beginning; nothing but the five files of an export is in it."""
    archive: Any = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 -- whoever sends it closes it
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as writer:
        for name in (*FILES, SUMS):
            writer.write(folder / name, f"{folder.name}/{name}")
    archive.seek(0)
    return archive  # type: ignore[no-any-return]


def _estimate(num: int, given: dict[str, Any]) -> Estimate:
    low, high = (math.nan if given[key] is None else given[key] for key in ("low", "high"))
    return Estimate(num, given["mean"], math.nan, low, high)
