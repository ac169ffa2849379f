"""The lanes of one device: trials that train in groups, each group an epoch at a time.

On a GPU a group is one program (`fused.py`). On a CPU, where stacked convolutions are slower than separate ones (on
two cores, LeNet-5, batch 64: separate 70 to 100 us an image, 16 lanes grouped 135), and for networks that cannot be
fused, the lanes step side by side (`side_by_side.py`) on images that are augmented once for all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from hpsearch.kernels import unavailable
from hpsearch.models.build import Constructor, build_model
from hpsearch.recipe import Recipe
from hpsearch.train.device_data import DeviceData
from hpsearch.train.fused import CannotFuse, Fused, refusal
from hpsearch.train.plan import Graph, Stream
from hpsearch.train.program import Program, State
from hpsearch.train.side_by_side import Result, SideBySide

__all__ = ["Group", "Lanes", "Result"]

STEP = 16  # lanes, by which larger programs grow


class Group(Protocol):
    """Trials, by the keys that the caller gave them, that take their next epoch together."""

    @property
    def keys(self) -> Iterable[int]:
        """Those keys."""
        ...

    def train_epoch(self) -> dict[int, Result]:
        """Train every trial for one epoch; until `keep_epoch`, their states are those before it."""
        ...

    def keep_epoch(self) -> None:
        """Make what the last epoch gave the trials' states; not to be cut short by a signal."""
        ...


@dataclass
class Waiting:
    """A trial that joins a group before its next epoch."""

    recipe: Recipe
    model: nn.Module
    state: State | None

    @property
    def position(self) -> int:
        """The epoch of the stream that comes next."""
        return self.recipe.stream_offset + (int(self.state["epoch"]) if self.state is not None else 0)


class Lanes:
    """Trials by key; `fuse` says whether groups become one program, `num_threads` how many of the others train at once.

    `refusals` collects, by architecture, why some could not, `unrecorded` why their steps are no CUDA graphs.
    """

    def __init__(self, data: DeviceData, constructor: Constructor, *, fuse: bool, num_threads: int = 1) -> None:
        self.data, self._constructor, self._fuse, self._num_threads = data, constructor, fuse, num_threads
        self._single: dict[int, Program] = {}
        self._states: dict[int, State] = {}  # of the single ones, after their last whole epoch
        self._fused: list[FusedGroup] = []
        self._waiting: dict[int, Waiting] = {}
        self.refusals: dict[str, str] = {}
        self.unrecorded: dict[str, str] = {}
        self._said: set[str] = set()

    def positions(self) -> dict[Stream, int]:
        """Which epoch comes next of the streams that trials are on: a new one that begins there can join them."""
        found = [(Stream.of(program.recipe), program.position) for program in self._single.values()]
        found += [(group.graph.stream, group.position) for group in self._fused if group.position is not None]
        found += [(Stream.of(trial.recipe), trial.position) for trial in self._waiting.values()]
        return {stream: max(position for other, position in found if other == stream) for stream, _ in found}

    def add(self, key: int, recipe: Recipe, model: nn.Module, state: State | None = None) -> None:
        """A trial that begins, or goes on from a state; it trains from the next round on."""
        self._waiting[key] = Waiting(recipe, model, state)

    def state(self, key: int) -> State | None:
        """The trial's state after its last whole epoch; None before the first, and of a trial that has no lane."""
        if key in self._waiting:
            return self._waiting[key].state
        if key in self._single:
            return self._states[key]
        group = next((group for group in self._fused if key in group.keys), None)
        return group.state(key) if group is not None else None

    def drop(self, key: int) -> None:
        """Free the trial's lane."""
        self._waiting.pop(key, None)
        self._states.pop(key, None)
        self._single.pop(key, None)
        for group in self._fused:
            group.drop(key)
        self._fused = [group for group in self._fused if group.keys]

    def restart(self, keys: Sequence[int], model: Callable[[Recipe], nn.Module]) -> None:
        """Put these trials into new programs, at the end of their last whole epoch; it may be that memory is scarce."""
        going_on = [(key, self._recipe(key), _off_device(self.state(key))) for key in keys if key not in self._waiting]
        for key, recipe, state in going_on:
            self.drop(key)
            self.add(key, recipe, model(recipe), state)

    def complaints(self) -> list[str]:
        """A sentence for each architecture that trains more slowly than it might; those that were not asked for yet."""
        fused = {
            f"model {model} cannot be fused, its trials train one after another: {reason}"
            for model, reason in self.refusals.items()
        }
        recorded = {
            f"steps of model {model} cannot be a CUDA graph and take longer: {reason}"
            for model, reason in self.unrecorded.items()
        }
        slower = set()
        if self._fused and (device := self.data.device).type == "cuda" and (reason := unavailable(device)):
            slower = {f"kernels cannot be compiled for {device}, and lanes take longer: {reason}"}
        new = sorted((fused | recorded | slower) - self._said)
        self._said.update(new)
        return new

    def groups(self) -> Iterator[Group]:
        """All groups, for one round; each epoch is trained when the caller asks for it."""
        if broken := self._let_in():
            yield Broken(broken)
        yield from list(self._fused)
        if self._single:
            yield SideBySide(dict(self._single), self._states, self._num_threads)

    def _recipe(self, key: int) -> Recipe:
        if key in self._single:
            return self._single[key].recipe
        return next(group for group in self._fused if key in group.keys).recipes[key]

    def _let_in(self) -> dict[int, Exception]:
        """Put the waiting trials into lanes; what those raised that cannot train at all."""
        alone: list[int] = []
        joining: dict[tuple[Graph, int], dict[int, Waiting]] = {}
        for key, trial in list(self._waiting.items()):
            graph = Graph.of(trial.recipe, self._constructor)
            if self._fuse and not trial.recipe.frozen_layers and graph.model not in self.refusals:
                joining.setdefault((graph, trial.position), {})[key] = trial
            else:
                alone.append(key)
        for (graph, position), trials in joining.items():
            if not self._join(graph, position, trials):
                alone += trials
        return {key: error for key in alone if (error := self._start_single(key, self._waiting[key])) is not None}

    def _join(self, graph: Graph, position: int, trials: dict[int, Waiting]) -> bool:
        """Put trials into the program of their graph that is at this epoch of the stream, or into a new one.

        False: the network cannot be run for many trials at once.
        """
        here = (group for group in self._fused if (group.graph, group.position) == (graph, position))
        try:
            if (group := next(here, None)) is None:
                group = FusedGroup(graph, self.data, self._constructor, self.refusals, self.unrecorded)
                group.join(trials)
                self._fused.append(group)
            else:
                group.join(trials)
            for key in trials:
                del self._waiting[key]
        except CannotFuse as error:
            self.refusals[graph.model] = str(error)
            return False
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception:  # one of them cannot be trained: alone, each shows whether it is the one
            return False
        return True

    def _start_single(self, key: int, trial: Waiting) -> Exception | None:
        try:
            program = Program(trial.recipe, trial.model, self.data)
            if trial.state is not None:
                program.restore(trial.state)
            self._single[key], self._states[key] = program, program.state()
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            return error
        del self._waiting[key]
        return None


class Broken:
    """Trials whose programs could not be made; what they raised is the result of each."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        self.keys = errors

    def train_epoch(self) -> dict[int, Result]:
        """Train nothing."""
        return dict(self.keys)

    def keep_epoch(self) -> None:
        """Keep nothing."""


class FusedGroup:
    """Trials of one graph in one program, which grows and shrinks with their number."""

    def __init__(
        self,
        graph: Graph,
        data: DeviceData,
        constructor: Constructor,
        refusals: dict[str, str],
        unrecorded: dict[str, str],
    ) -> None:
        self.graph, self._data, self._constructor = graph, data, constructor
        self._refusals, self._unrecorded = refusals, unrecorded
        self.keys: dict[int, int] = {}  # of the trials, to their lanes
        self.recipes: dict[int, Recipe] = {}
        self._program: Fused | None = None

    @property
    def position(self) -> int | None:
        """The epoch of the stream that comes next."""
        return self._program.position if self._program is not None else None

    def join(self, trials: dict[int, Waiting]) -> None:
        """Fill lanes; a program that is too small, or far too large, is replaced by one of another size.

        Sizes are powers of two, and from 16 on multiples of that: few, because a new program takes a while.

        Raises:
            CannotFuse: the network cannot be run for many trials at once.
        """
        needed = len(self.keys) + len(trials)
        program = self._program
        if program is None or needed > program.num_lanes or needed * 4 <= program.num_lanes:
            template = next(iter({**self.recipes, **{k: t.recipe for k, t in trials.items()}}.values()))
            size = 1 << (needed - 1).bit_length() if needed <= STEP else -(-needed // STEP) * STEP
            graphed = self._data.device.type == "cuda" and self.graph.model not in self._unrecorded
            program = Fused(template, self.graph.width, self._data, size, self._constructor, graphed=graphed)
            self._move(program)
        free = iter([lane for lane, filled in enumerate(program.lanes) if filled is None])
        try:
            for key, trial in trials.items():
                lane = next(free)
                program.fill(lane, trial.recipe, trial.model, trial.state)
                self.keys[key], self.recipes[key] = lane, trial.recipe
        except BaseException:
            for key in trials:  # all of them join, or none: they wait, and join again
                self.drop(key)
            raise

    def state(self, key: int) -> State:
        """The trial's state after its last whole epoch."""
        assert self._program is not None
        return self._program.take(self.keys[key])

    def drop(self, key: int) -> None:
        """Free the trial's lane, if it has one here."""
        if key in self.keys:
            assert self._program is not None
            self._program.free(self.keys.pop(key))
            del self.recipes[key]
            if not self.keys:
                self._program = None  # its memory may be needed before this group is forgotten

    def train_epoch(self) -> dict[int, Result]:
        """Train every trial for one epoch.

        Raises:
            CannotFuse: the network, or what torch calls for it, can do this for one trial at best.
        """
        assert self._program is not None
        try:
            results = self._program.train_epoch()
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            refused = refusal(error)
            if isinstance(refused, CannotFuse):
                self._refusals[self.graph.model] = str(refused)
            raise refused from error
        if self._program.unrecorded:
            self._unrecorded[self.graph.model] = self._program.unrecorded
        return {key: results[lane] for key, lane in self.keys.items()}

    def keep_epoch(self) -> None:
        """Make what the last epoch gave the trials' states."""
        if self._program is not None:
            self._program.keep_epoch()

    def _move(self, program: Fused) -> None:
        """Let the trials that are here go on in another program: all of them, or none if there is no memory for it."""
        old, keys = self._program, dict[int, int]()
        for lane, key in enumerate(list(self.keys)):
            assert old is not None
            recipe = self.recipes[key]
            shaped = build_model(recipe, self._data.input_shape, self._data.num_classes, self._constructor)
            program.fill(lane, recipe, shaped, old.take(self.keys[key]))
            keys[key] = lane
        self._program, self.keys = program, keys


def _off_device(state: State | None) -> State | None:
    """In the machine's own memory."""
    if state is None:
        return None
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
