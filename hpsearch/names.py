"""Names of studies that are made from the name of another one."""

import hashlib

from hpsearch.form import LONGEST_NAME


def derived(name: str, ending: str) -> str:
    """The name with an ending; of one that is too long for both, its beginning and a hash that tells it from others."""
    if len(name) + len(ending) <= LONGEST_NAME:
        return f"{name}{ending}"
    mark = f"-{hashlib.sha256(name.encode()).hexdigest()[:12]}{ending}"
    return f"{name[: LONGEST_NAME - len(mark)]}{mark}"
