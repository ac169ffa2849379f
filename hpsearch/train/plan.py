"""The plan: which trials share a program, and how many lanes pay.

What changes the graph of a step decides the group: architecture, batch size, precision, augmentation, and the hidden
width rounded up to a bucket, because a lane is padded with zeros to the width of its group. Everything else is a
tensor along K, the optimizer as well.
"""

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hpsearch.models.build import Constructor
from hpsearch.recipe import Recipe
from hpsearch.train.stream import block_size

FIRST_LANES = 16  # with which `auto` begins on a GPU
MOST_LANES = 1024
CPU_LANES = 4  # with `auto`, at most: Python lets few threads of one process work at once
WORTH = 1.1  # twice the lanes must give so many times the images per second
PROGRAMS = "graphs"  # of the lanes that a number was found for: others are as fast with other numbers
ROUNDS = 3  # with each number, of which the fastest counts: the first one builds the programs and loads their kernels


@dataclass(frozen=True)
class Stream:
    """Trials with the same stream, at the same epoch of it, see the same augmented images."""

    augmentation: str
    seed: int
    block_size: int

    @classmethod
    def of(cls, recipe: Recipe) -> "Stream":
        """The recipe's."""
        return cls(recipe.augmentation, recipe.stream_seed, block_size(recipe.batch_size))


@dataclass(frozen=True)
class Graph:
    """Trials with the same graph, and the same stream, may train in one program; `width` is that of the program."""

    model: str
    native_size: int | None
    batch_size: int
    precision: str
    stream: Stream
    width: int | None

    @classmethod
    def of(cls, recipe: Recipe, constructor: Constructor) -> "Graph":
        """The recipe's; networks that do not say `pads_with_zeros` are never padded."""
        width = recipe.hidden_width
        if width is not None and getattr(constructor, "pads_with_zeros", False):
            width = bucket(width)
        step = (recipe.batch_size, recipe.precision)
        return cls(recipe.model, recipe.native_size, *step, Stream.of(recipe), width)


def bucket(width: int) -> int:
    """The width to which a hidden layer is padded: 2^n or 3 2^n, so that few groups hold many trials.

    That is half more at most. A program of few lanes leaves most of a GPU idle, and costs more than what is padded.
    """
    power: int = 1 << max(0, (width - 1).bit_length())
    return power // 4 * 3 if 0 < width <= power // 4 * 3 else power


@dataclass
class LaneCount:
    """How many lanes a device gets: `fixed`, or as many as still speed a GPU up, found by doubling, or one a core.

    `cache` is a file that keeps what was found, by device and architecture.
    """

    fixed: int | None
    on_gpu: bool
    key: str = ""
    cache: Path | None = None
    number: int = 0
    _speeds: dict[int, list[float]] = field(default_factory=dict)  # images per second in all lanes together, by round
    settled: bool = False  # it grows no more
    _crowded: tuple[int, int] | None = None  # while a trial is tried alone: the number, and how many trained beside it
    _round: list[tuple[int, float, float]] = field(default_factory=list)  # of each group: trials, images, seconds

    def __post_init__(self) -> None:
        if self.fixed is not None or not self.on_gpu:
            self.number, self.settled = self.fixed or min(CPU_LANES, torch.get_num_threads()), True
        else:
            found = self._read().get(self.key)
            self.number, self.settled = found or FIRST_LANES, found is not None

    def trained(self, num_trials: int, images_per_second: float, seconds: float) -> None:
        """A group has trained for an epoch."""
        if self._crowded is not None:  # it is the trial that was tried alone, and it fits
            number, num_lanes = self._crowded
            self._crowded = None
            self._settle(max(1, min(number, num_lanes) // 2), keep=False)
        self._round.append((num_trials, images_per_second * seconds, seconds))

    def end_round(self, has_room: bool) -> None:
        """Every group has; whether there is memory left for twice as many lanes."""
        groups, self._round = self._round, []
        if seconds := sum(took for _, _, took in groups):
            images = sum(images for _, images, _ in groups)
            self.seen(sum(num for num, _, _ in groups), images / seconds, has_room)

    def seen(self, num_active: int, images_per_second: float, has_room: bool) -> None:
        """A round has ended: so many lanes trained, so fast together, and whether memory for twice as many is left."""
        if self.settled or num_active < self.number:
            return
        speeds, half = self._speeds.setdefault(num_active, []), self._speeds.get(num_active // 2)
        speeds.append(images_per_second)
        if len(speeds) < ROUNDS:
            return
        if half is not None and max(speeds) < WORTH * max(half):
            self._settle(num_active // 2)
        elif not has_room or num_active * 2 > MOST_LANES:
            self._settle(num_active)
        else:
            self.number = num_active * 2

    def halve(self, num_lanes: int) -> int:
        """There was no memory for so many lanes; the new number. It is kept for others if these were all of them."""
        self._settle(max(1, min(self.number, num_lanes) // 2), keep=num_lanes >= self.number)
        return self.number

    def try_alone(self, num_lanes: int) -> int:
        """A trial that has a program of its own found no memory beside others; it gets the device for itself."""
        self._crowded, self.number = (self.number, num_lanes), 1
        return self.number

    def blame_trial(self) -> None:
        """It found none alone, either: the others may come back."""
        if self._crowded is not None:
            (self.number, _), self._crowded = self._crowded, None

    def _settle(self, number: int, *, keep: bool = True) -> None:
        self.number, self.settled = number, True
        if keep and self.cache is not None and self.on_gpu and self.fixed is None:
            new = self.cache.with_name(f".{self.cache.name}.{os.getpid()}")
            with contextlib.suppress(OSError):  # the next worker finds it out again
                self.cache.parent.mkdir(parents=True, exist_ok=True)
                new.write_text(json.dumps(self._read() | {self.key: number}, indent=2))
                new.replace(self.cache)  # whole, because other workers may read it

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self.cache.read_text()) if self.cache is not None else {}
        except (OSError, ValueError):
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {key: number for key, number in pairs if isinstance(number, int) and 0 < number <= MOST_LANES}
