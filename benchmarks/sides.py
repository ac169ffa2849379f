"""The sides of benchmarks/throughput.py, each timed on its own: what a user would write, and what hpsearch runs.

All train the same networks by the same recipe and validate. Where an epoch takes longer than a side has, a part of one
is timed, with as large a part of the validation, and scaled; `Timing.num_images` says how much.
"""

import gc
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.epoch import NUM_CLASSES, NUM_TRAIN, Conventional, recipe
from benchmarks.floor import set_precision
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train.device_data import DeviceData
from hpsearch.train.fused import Fused
from hpsearch.train.program import Program

EPOCHS_OF_A_TRIAL = 100
NUM_WORKERS = 8  # of a conventional script on a GPU
NUM_PROCESSES = 4  # conventional scripts that share a device
START_SECONDS = 45  # at most, until four scripts are warm, and until they are done
PROBE = 4096  # images that warm up, and say how long an epoch will take
JAX_SCRIPT = Path(__file__).parent / "lanes_jax.py"


@dataclass(frozen=True)
class Timing:
    """`num_trials` train together, an epoch in so many seconds; bytes at the peak, on the device if it is a GPU."""

    name: str
    num_trials: int
    epoch_seconds: float
    num_images: int
    memory: int

    @property
    def trials_an_hour(self) -> float:
        """Of 100 epochs each."""
        return 3600 * self.num_trials / (self.epoch_seconds * EPOCHS_OF_A_TRIAL)

    @property
    def images_per_second(self) -> float:
        """Training images, times the trials that see them."""
        return NUM_TRAIN * self.num_trials / self.epoch_seconds


@dataclass(frozen=True)
class Setup:
    """What the sides of one comparison share; `num_images`: an epoch's, at most; `lanes`: the numbers of lanes."""

    model: str
    batch_size: int
    device: str
    data_dir: Path
    num_images: int
    seconds: float
    lanes: list[int]
    num_workers: int
    tf32: bool
    jax_python: str


def trial(model: str, batch_size: int, lane: int, *, tf32: bool = False) -> Recipe:
    """The recipe of one lane; all see the same images, and differ in rate, decay and seed."""
    rate, decay = 0.01 / (1 + lane % 7), 1e-4 * (lane % 3)
    base = replace(recipe(model, EPOCHS_OF_A_TRIAL), precision="tf32" if tf32 else "float32")
    return replace(base, batch_size=batch_size, stream_seed=1, seed=lane, learning_rate=rate, weight_decay=decay)


def conventional(setup: Setup) -> Timing:
    """(a): the script that one would write, on the device, one trial."""
    _forget_peak(setup.device)
    num_images = min(setup.num_images, NUM_TRAIN // 2)
    script = _script(setup, num_images)
    script.warm_up()
    took = _clock(script.run_epoch, setup.device)
    return Timing("(a) conventional script", 1, took * NUM_TRAIN / num_images, num_images, _peak(setup.device))


def shared_device(setup: Setup) -> Timing:
    """(b): four of these at once, from the moment when all are warm until the last one's end."""
    context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
    barrier, ends = context.Barrier(NUM_PROCESSES + 1), context.Queue()
    num_images = min(setup.num_images, NUM_TRAIN // 4)
    arguments = (setup, num_images, barrier, ends)
    processes = [context.Process(target=_one_of_four, args=arguments) for _ in range(NUM_PROCESSES)]
    try:
        for process in processes:
            process.start()
        barrier.wait(timeout=START_SECONDS)
        started = time.perf_counter()
        memory = sum(ends.get(timeout=START_SECONDS) for _ in processes)
        took = time.perf_counter() - started
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()
    seconds = took * NUM_TRAIN / num_images
    return Timing(f"(b) {NUM_PROCESSES} such processes", NUM_PROCESSES, seconds, num_images, memory)


def single(setup: Setup, data: DeviceData) -> Timing:
    """(c): one trial, its data and augmentation on the device."""
    one = trial(setup.model, setup.batch_size, 0, tf32=setup.tf32)
    program = Program(one, build_model(one, data.input_shape, NUM_CLASSES), data)
    return _timed("(c) single, data on device", 1, program, setup, data)


def lanes(setup: Setup, data: DeviceData, num_lanes: int, *, graphed: bool, compiler: str | None = None) -> Timing:
    """(d), (e) and (g): K trials in one program, step by step or by a CUDA graph of a step, or compiled."""
    recipes = [trial(setup.model, setup.batch_size, lane, tf32=setup.tf32) for lane in range(num_lanes)]
    program = Fused(recipes[0], None, data, num_lanes, graphed=graphed, compiler=compiler)
    model = build_model(recipes[0], data.input_shape, NUM_CLASSES)  # one for all: 256 perceptrons take seconds to draw
    for lane, one in enumerate(recipes):
        program.fill(lane, one, model)
    name = f"({'g' if compiler else 'e'}) {num_lanes} lanes" + ", graph" * graphed + ", compiled" * bool(compiler)
    name = "(d) single, CUDA graph" if name == "(e) 1 lanes, graph" else name
    return _timed(name, num_lanes, program, setup, data)


def vmapped(setup: Setup, folder: Path, counts: Sequence[int], timeout_seconds: float) -> Iterator[Timing | str]:
    """(f): K trials vmapped in JAX, in another process; what went wrong is a line.

    `folder` holds the arrays that `lanes_jax.py` reads, `num_images` of them.
    """
    options = ["--model", setup.model, "--batch-size", str(setup.batch_size), "--seconds", str(setup.seconds)]
    options += ["--device", setup.device, "--lanes", *map(str, counts), *["--tf32"] * setup.tf32]
    platform = {"JAX_PLATFORMS": "cpu"} if setup.device == "cpu" else {}
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | platform
    command = [setup.jax_python, str(JAX_SCRIPT), str(folder), *options]
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=timeout_seconds
        )
        written, reason = run.stdout, _last_words(run.stderr) if run.returncode else ""
    except subprocess.TimeoutExpired as error:
        written, reason = (error.stdout or b"").decode(), f"not done after {timeout_seconds:.0f} seconds"
    for line in written.splitlines():
        found = json.loads(line)
        name = f"(f) JAX, vmap of {found['lanes']}"
        if "error" in found:
            yield f"{name}: {found['error']}"
        else:
            seconds = found["seconds"] * NUM_TRAIN / found["images"]
            yield Timing(name, found["lanes"], seconds, found["images"], found["memory"])
    if reason:
        yield f"(f) JAX: {reason}"


def part(data: DeviceData, num_images: int) -> DeviceData:
    """The first training images, and a ninth as many to validate on."""
    held_out = max(1, num_images // 9)
    return replace(
        data,
        train_images=data.train_images[:num_images],
        train_labels=data.train_labels[:num_images],
        validation_images=data.validation_images[:held_out],
        validation_labels=data.validation_labels[:held_out],
    )


def tidy(device: str) -> None:
    """Give back what the side before has left."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _timed(name: str, num_trials: int, program: Program | Fused, setup: Setup, data: DeviceData) -> Timing:
    """The best of the epochs, or of the equal parts of one, that fit into the side's seconds."""

    def clock(num_images: int) -> float:
        program.data = part(data, num_images)
        return _clock(program.run_epoch, setup.device)

    probe = min(PROBE, setup.num_images)
    clock(probe)  # warms up, and records a graph
    tidy(setup.device)
    _forget_peak(setup.device)
    probed = clock(probe)
    fitting = setup.seconds * probe / probed
    num_images = min(setup.num_images, max(probe, int(fitting) // PROBE * PROBE))
    found = [probed if num_images == probe else clock(num_images)]
    while sum(found) + found[-1] < setup.seconds:
        found.append(clock(num_images))
    return Timing(name, num_trials, min(found) * NUM_TRAIN / num_images, num_images, _peak(setup.device))


def _last_words(text: str) -> str:
    """The line of a traceback that names the error; without one, the last line."""
    lines = text.strip().splitlines() or ["ended without a word"]
    return next((line for line in reversed(lines) if "Error: " in line), lines[-1])[:200]


def _script(setup: Setup, num_images: int) -> Conventional:
    return Conventional(
        setup.model,
        setup.data_dir,
        EPOCHS_OF_A_TRIAL,
        batch_size=setup.batch_size,
        device=setup.device,
        num_workers=setup.num_workers,
        num_images=num_images,
        stay=True,
    )


def _one_of_four(setup: Setup, num_images: int, barrier: Any, ends: Any) -> None:
    try:
        set_precision(tf32=setup.tf32)
        script = _script(setup, num_images)
        script.warm_up()
        barrier.wait(timeout=START_SECONDS)
        _clock(script.run_epoch, setup.device)
        ends.put(_peak(setup.device))
    except BaseException:
        barrier.abort()
        raise


def _clock(work: Callable[[], object], device: str) -> float:
    """Seconds until the device is done."""
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int:
    """Bytes: of the GPU since the peak was last forgotten, a graph's own included; on a CPU, of the process so far."""
    if device != "cpu":
        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
