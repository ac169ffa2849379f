"""How values are written for people: units, sensible digits, durations."""

import math
from datetime import UTC, datetime

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


def number(value: object) -> str:
    """A value of a configuration: four digits of a float, everything of the rest, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS) if abs(value) < 10**9 else str(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}".replace("-", MINUS)
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", MINUS)


def brief(value: object) -> str:
    """As `number`, with only the end of a seed of many digits."""
    return f"…{value % 10**6:06}" if isinstance(value, int) and value >= 10**9 else number(value)


def metric(value: float | None, name: str) -> str:
    """A measured value: accuracies in per cent with two decimals, losses with four."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.2%}".replace("%", " %") if name.endswith("accuracy") else f"{value:.4f}"


def share(value: float | None) -> str:
    """A share in per cent."""
    return DASH if value is None else f"{value:.1%}".replace("%", " %")


def spoken(name: str) -> str:
    """A name of the program in words: validation_accuracy is validation accuracy."""
    return name.replace("_", " ")


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter."""
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(seconds: float | None) -> str:
    """A time since 1970 as UTC, to the second."""
    return DASH if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def size(num_bytes: int) -> str:
    """Bytes in kB or MB of a thousand."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


def plural(count: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
