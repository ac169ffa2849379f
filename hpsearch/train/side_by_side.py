"""Programs that train side by side, each in a thread of its own, on images that are augmented once for each stream.

The operations of small networks hardly gain by a second core, and several processes on one core each would augment
the images several times. Figures: "Lanes" in docs/benchmarks.md.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from hpsearch.models import MODELS
from hpsearch.train.device_data import let_go, out_of_memory
from hpsearch.train.plan import Stream
from hpsearch.train.program import EpochResult, Program, State

Result = EpochResult | Exception  # an exception is a lane's own: its trial cannot go on, others do
Place = tuple[Stream, int]  # a stream, and its epoch
# images (N, C, H, W), labels (N,), and by batch size `Program.similarities`
Block = tuple[Tensor, Tensor, dict[int, Tensor]]


class SideBySide:
    """Trials by key, `num_threads` at a time; `states` gets the state of each after every whole epoch.

    Each thread has its share of the cores whether others train or not: a trial's rounding depends on its cores.
    """

    def __init__(self, programs: Mapping[int, Program], states: dict[int, State], num_threads: int) -> None:
        self._programs, self._states, self._num_threads = programs, states, num_threads
        self._results: dict[int, Result] = {}
        self._ended: dict[int, State] = {}

    @property
    def keys(self) -> Iterator[int]:
        """Of the trials."""
        return iter(self._programs)

    def train_epoch(self) -> dict[int, Result]:
        """Train every trial for one epoch; a trial whose network raises an exception leaves it as its result.

        Raises:
            torch.OutOfMemoryError: the device has no memory for any of them.
        """
        started = time.perf_counter()
        self._results, self._ended = {}, {}
        for key in self._programs:
            self._careful(self._begin, key)
        with _threads(self._num_threads) as threads:
            for blocks in self._blocks():
                self._each(threads, partial(self._train, blocks))
            self._each(threads, partial(self._end, started))
        crowded = [result for result in self._results.values() if isinstance(result, torch.OutOfMemoryError)]
        if crowded and len(crowded) == len(self._programs):
            raise crowded[0]
        return {key: self._results[key] for key in self._programs}

    def keep_epoch(self) -> None:
        """Make what the last epoch gave the trials' states."""
        self._states.update(self._ended)

    def _begin(self, key: int) -> None:
        self._programs[key].begin_epoch()

    def _train(self, blocks: Mapping[Place, Block], key: int) -> None:
        program = self._programs[key]
        if (block := blocks.get(_place(program))) is not None:
            images, labels, similarities = block
            own = images if program.recipe.model in MODELS else images.clone()  # which others' networks may write to
            program.train_block(own, labels, similarities.get(program.recipe.batch_size))

    def _end(self, started: float, key: int) -> None:
        program = self._programs[key]
        result = program.end_epoch(started)
        self._ended[key] = program.state()
        self._results[key] = result

    def _blocks(self) -> Iterator[dict[Place, Block]]:
        """The next block of every stream that has one left."""
        there: dict[Place, list[Program]] = {}
        for program in self._programs.values():
            there.setdefault(_place(program), []).append(program)
        streams = {place: some[0].stream.blocks(some[0].data, some[0].position) for place, some in there.items()}
        while True:
            blocks: dict[Place, Block] = {}
            for place, stream in streams.items():
                for images, labels in islice(stream, 1):
                    similarities: dict[int, Tensor] = {}
                    for program in there[place]:
                        size = program.recipe.batch_size
                        if size not in similarities and (some := program.similarities(images)) is not None:
                            similarities[size] = some
                    blocks[place] = images, labels, similarities
            if not blocks:
                return
            yield blocks

    def _careful(self, work: Callable[[int], None], key: int) -> None:
        """Do this for a trial; an exception is its result."""
        try:
            work(key)
        except Exception as error:
            device, full = self._programs[key].data.device, out_of_memory(error)
            if isinstance(error, torch.AcceleratorError) and not full:  # the whole process is meant
                raise
            let_go(error, device)  # others train after it
            crowded = device.type == "cuda" and full
            self._results[key] = torch.OutOfMemoryError(str(error)) if crowded else error

    def _each(self, threads: Executor | None, work: Callable[[int], None]) -> None:
        """Do this for every trial that has no result yet; raises what the first one raised."""
        left = [key for key in self._programs if key not in self._results]
        # The random state of the process is one for all threads.
        own = left if threads is None else [key for key in left if self._programs[key].draws]
        begun = [threads.submit(self._careful, work, key) for key in left if key not in own] if threads else []
        for key in own:
            self._careful(work, key)
        for one in begun:
            one.result()


@contextmanager
def _threads(num: int) -> Iterator[Executor | None]:
    """So many threads, each on its share of the cores; None for one, which this one is. All have ended at the end."""
    if num == 1:
        yield None
        return
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(num, initializer=torch.set_num_threads, initargs=(max(1, cores // num),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)  # of which a part is the process', not a thread's


def _place(program: Program) -> Place:
    return Stream.of(program.recipe), program.position
