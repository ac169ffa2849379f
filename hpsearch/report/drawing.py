"""What all figures share: the value that a figure is, colours, and the traces from which they are made.

Colours are those of Okabe and Ito ("Color universal design", 2008), which colour-blind people can tell apart, the
light ones darker: all have a contrast of 3 to the light page and to the dark one (WCAG 2.2, 1.4.11). Text and lines of
the axes take the page's colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

COLOURS = ("#0072B2", "#B87F00", "#009E73", "#D55E00", "#C46B9B", "#3294CC", "#8B62D8", "#7f7f7f")
FAINT = "rgba(128,128,128,0.35)"
BAND = 0.18  # opacity of the band around a mean
LONGEST = 40  # characters of a label beside an axis or in a legend

Cell = float | int | str | None
Rows = Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A figure of the page: Plotly's traces and layout, a caption, and the numbers behind it as a table.

    `html` stands in place of the drawing where there is nothing to draw but a table or pictures.
    """

    key: str  # letters and dashes: the name of its CSV file
    title: str
    caption: str
    columns: Sequence[str]
    rows: Rows
    traces: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    html: str = ""
    height: int = 380


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def see_through(hexadecimal: str, opacity: float) -> str:
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def line(name: str, x: Sequence[Cell], y: Sequence[Cell], tint: str, **more: Any) -> dict[str, Any]:
    """A line with small dots; a single epoch is a dot."""
    mode = "lines+markers" if len(x) < 30 else "lines"
    style = {"color": tint, "width": 2} | more.pop("line", {})
    return {
        "type": "scatter",
        "mode": mode,
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": style,
        "marker": {"size": 4},
        **more,
    }


def band(x: Sequence[Cell], low: Sequence[float], high: Sequence[float], tint: str, **more: Any) -> dict[str, Any]:
    """The area between two lines."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*x, *reversed(x)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": see_through(tint, BAND),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        **more,
    }


def interval_dots(
    name: str, places: Sequence[float], means: Sequence[float], lows: Sequence[float], highs: Sequence[float], tint: str
) -> dict[str, Any]:
    """Means as dots at these heights, with their intervals."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(means),
        "y": list(places),
        "marker": {"color": tint, "size": 10},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - mean for high, mean in zip(highs, means, strict=True)],
            "arrayminus": [mean - low for low, mean in zip(lows, means, strict=True)],
            "color": tint,
        },
    }


def cut(label: str) -> str:
    """As much of a label as leaves room for the drawing; tables have all of it."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def plain(value: Any) -> Any:
    """A text, or a list with texts, in which Plotly sees no markup: it would make links of labels."""
    if isinstance(value, str):
        return value.replace("&", "&amp;").replace("<", "&lt;")
    return [plain(item) for item in value] if isinstance(value, list) else value


def label_axis(labels: Sequence[str]) -> dict[str, Any]:
    """A vertical axis whose heights 0, 1, ... are called by these labels."""
    heights = list(range(len(labels)))
    texts = plain([cut(label) for label in labels])
    return {"tickvals": heights, "ticktext": texts, "range": [-0.6, len(labels) - 0.4], "zeroline": False}


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, **more}


def epoch_axis(last: int) -> dict[str, Any]:
    """The horizontal axis of epochs, with whole numbers on it."""
    return axis("epoch", dtick=max(1, -(-last // 10)))


def words(name: str) -> str:
    """A recorded name as a person reads it."""
    return name.replace("_", " ")


def short(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
