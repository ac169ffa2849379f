"""Files that belong to trials, where optuna-dashboard finds them: named by random ids, led to by system attributes."""

import contextlib
import json
import mimetypes
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

ARTIFACT_KEY = "artifacts:"  # Optuna's own: a trial's system attribute that names one of its files
ARTIFACT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAX_ARTIFACT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Pictures:
    """The files of all trials below `folder`, which a dashboard on another machine may share."""

    folder: Path

    def save(self, name: str, content: bytes) -> tuple[str, str]:
        """Write one file whole; the key and the value of the trial's system attribute that leads to it.

        Raises:
            OSError: the folder is full or cannot be written.
        """
        artifact_id = str(uuid.uuid4())
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{artifact_id}.part"
        try:
            temporary.write_bytes(content)
            temporary.replace(self.folder / artifact_id)
        finally:
            temporary.unlink(missing_ok=True)
        kind, encoding = mimetypes.guess_type(name)
        known = {"artifact_id": artifact_id, "filename": name, "mimetype": kind or "", "encoding": encoding}
        return f"{ARTIFACT_KEY}{artifact_id}", json.dumps(known)

    def load(self, artifact_id: str) -> bytes | None:
        """The file of that id, if it is there and no larger than it should be."""
        if not ARTIFACT_ID.fullmatch(artifact_id):
            return None
        with contextlib.suppress(OSError):
            path = self.folder / artifact_id
            if path.stat().st_size <= MAX_ARTIFACT_BYTES:
                return path.read_bytes()
        return None
