"""Tables for the terminal: configurations and trials, as plain values and as text."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# Lengths are in cells of a terminal: 語 takes two.
SHORT = 10  # a column of such values is not broken in a narrow terminal
NAME = 40  # nor is the first column, of names, up to so much; longer words are broken anywhere
FOLDED = 6  # to which others are broken at the narrowest, unless a word is longer
GAP = 3  # between two columns of rich's SIMPLE_HEAD

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hpsearch.storage.fleet import WorkerRow
    from hpsearch.storage.studies import LoadedStudy


def print_best(loaded: "LoadedStudy", rows: list[dict[str, Any]]) -> None:
    """A table with one column per configuration and one line per hyperparameter that the study searches."""
    names = [name for name in loaded.spec.space if any(name in row["searched"] for row in rows)]
    lines = [[name, *(cell(row["searched"].get(name)) for row in rows)] for name in names]
    if loaded.spec.candidates:
        lines.append(["candidate", *(row["candidate"] for row in rows)])
    lines.append(["seed", *(cell(row["recipe"].get("seed")) for row in rows)])
    values = [loaded.spec.objective.metric, *(cell(row["value"]) for row in rows)]
    print_table(["", *(f"trial {row['number']}" for row in rows)], [values, *lines])


def trial_row(loaded: "LoadedStudy", trial: "FrozenTrial") -> dict[str, Any]:
    """One trial as plain values; `searched` holds the hyperparameters that the study searches and this trial has.

    `candidate` is the label of what is trained over seeds, where there are several.
    """
    from hpsearch.space import recorded_name
    from hpsearch.storage.ledger import REASON_KEY, TRACEBACK_KEY
    from hpsearch.storage.studies import recorded_recipe

    recipe = recorded_recipe(trial.user_attrs)
    space = loaded.spec.space.items()
    searched = [name for name, parameter in space if recorded_name(name, parameter) in trial.params]
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value,
        "epochs": len(trial.intermediate_values),
        "searched": {name: recipe[name] for name in searched if name in recipe},
        "candidate": _candidate(loaded, trial.number),
        "recipe": recipe,
        "reason": trial.user_attrs.get(REASON_KEY, ""),
        "traceback": trial.user_attrs.get(TRACEBACK_KEY, ""),
    }


WORKER_COLUMNS = ["worker", "device", "does", "answer", "lanes", "images/s", "waits for storage", "last sign"]


def worker_rows(workers: "Sequence[WorkerRow]") -> list[list[str]]:
    """The table of workers: who, what, how fast, and how long since the last sign of life."""
    return [
        [
            f"{worker.host}:{worker.process}",
            worker.device,
            worker.does,
            worker.answer,
            str(worker.trials),
            f"{worker.speed:,.0f}",
            f"{worker.storage_share:.1%}",
            f"{duration(worker.silent_seconds)} ago",
        ]
        for worker in workers
    ]


def event_rows(events: list[dict[str, Any]]) -> list[list[str]]:
    """The last events of a study, each with its age."""
    now = time.time()
    return [
        [f"{duration(now - event['at'])} ago", cell(event["number"]), event["kind"], event["text"]] for event in events
    ]


def duration(seconds: float) -> str:
    """Seconds as a person says them, in two units at most."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def configuration(row: dict[str, Any]) -> str:
    """What the trial's search chose, or which candidate it is, in one cell that a narrow terminal can wrap."""
    seed = f", seed {cell(row['recipe'].get('seed'))}"
    chosen = ", ".join(f"{name} {cell(value)}" for name, value in row["searched"].items())
    return f"{row['candidate']}{seed}" if row["candidate"] else chosen


def _candidate(loaded: "LoadedStudy", number: int) -> str:
    candidate, _ = loaded.spec.place(number)
    return str(loaded.spec.candidates[candidate][0]) if loaded.spec.candidates else ""


def cell(value: object) -> str:
    """A value in four digits, or a dash."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print rows under their columns, as wide as the terminal; wider, if words would have to be broken."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    room = Console().width
    widths = _widths([[column, *(row[index] for row in rows)] for index, column in enumerate(columns)], room)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column, overflow="fold", width=width)
    for row in rows:
        table.add_row(*row)
    # Labels and names are texts: [adam] is no style.
    Console(width=max(room, 1 + sum(widths) + GAP * len(widths)), markup=False, emoji=False).print(table)


def _widths(columns: list[list[str]], room: int) -> list[int]:
    """The width of each column, given its texts: what it needs at least, then what there is room for, the same for all.

    Not left to rich, which narrows columns below their least width and then cuts off the last ones.
    """
    from rich.cells import cell_len

    wanted = [max(cell_len(line) for text in texts for line in text.splitlines() or [""]) for texts in columns]
    widths = []
    for index, (texts, wide) in enumerate(zip(columns, wanted, strict=True)):
        values = max((cell_len(text) for text in texts[1:]), default=0)
        longest = max((cell_len(word) for text in texts for word in text.split()), default=0)
        folded = min(max(FOLDED, min(longest, NAME)), wide)
        widths.append(wide if values <= (SHORT if index else NAME) else folded)
    spare = room - 1 - sum(widths) - GAP * len(widths)
    while spare > 0 and (narrow := [index for index, width in enumerate(widths) if width < wanted[index]]):
        widths[min(narrow, key=widths.__getitem__)] += 1
        spare -= 1
    return widths
