"""Templates with $placeholders, the built-in ones and those of a site."""

from collections.abc import Mapping
from pathlib import Path
from string import Template

from hpsearch.errors import UsageError


def read(file: Path) -> str:
    """The text of a site's template.

    Raises:
        UsageError: the file cannot be read, or is no text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise UsageError(f"--template {file}: {reason}; name a text file that can be read") from error


def fill(text: str, values: Mapping[str, str], where: str) -> str:
    """The text with every placeholder replaced.

    Raises:
        UsageError: a placeholder is unknown, or a $ stands alone.
    """
    rule = f"must be one of {', '.join(f'${name}' for name in values)}; write $$ for a $ that is to stay"
    try:
        return Template(text).substitute(values)
    except KeyError as error:
        raise UsageError(f"--template {where}: the placeholder ${error.args[0]} is unknown; it {rule}") from None
    except ValueError as error:
        place = str(error).partition(": ")[2]
        raise UsageError(f"--template {where}: the $ in {place} is no placeholder; it {rule}") from None
