"""Trials an hour: lanes against single runs, and against what one would write instead.

Run, in the repository's folder:
    python -m benchmarks.throughput --data-dir FOLDER                  two CPU cores: four lanes, and four single runs
    python -m benchmarks.throughput --data-dir FOLDER --device cuda    a GPU: every side, in less than ten minutes

CIFAR-100, the `paper` augmentation, SGD with momentum, onecycle, clipping at 1, validation included. A trial is 100
epochs. On two CPU cores whole epochs of both sides alternate, and the best of each counts. The sides on a GPU: (a) the
conventional script, (b) four of them at once, (c) data on the device, one trial, (d) with a CUDA graph of the step,
(e) lanes, without and with such a graph, (f) the same vmapped in JAX, (g) lanes by torch.compile, last because that
takes a while. `--sides LETTERS --images N` tries them on a CPU, where (g) needs a C++ compiler.
"""

import argparse
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.epoch import NUM_CLASSES, NUM_TRAIN, keep_to_two_cores, processor, seconds
from benchmarks.floor import count, measure, set_precision
from benchmarks.sides import (
    EPOCHS_OF_A_TRIAL,
    NUM_WORKERS,
    Setup,
    Timing,
    conventional,
    lanes,
    part,
    shared_device,
    single,
    tidy,
    trial,
    vmapped,
)
from benchmarks.table import heading, marks, row
from hpsearch.data.load import load
from hpsearch.models.build import build_model, built_in
from hpsearch.recipe import Recipe
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.lanes import Lanes
from hpsearch.train.program import Program

CPU_LANES = (2, 4)
NUM_SINGLE = 4
GPU_LANES = (1, 4, 16, 64, 256)
NUM_JAX = 1  # of these, the largest: each is compiled, which takes half a minute

Side = Callable[[], Iterable[Timing | str]]


def singles(recipes: list[Recipe], data: DeviceData) -> Callable[[], None]:
    """An epoch of each trial in a program of its own, one after another."""
    programs = [Program(one, build_model(one, data.input_shape, NUM_CLASSES), data) for one in recipes]

    def run() -> None:
        for program in programs:
            program.run_epoch()

    return run


def lanes_on_cpu(recipes: list[Recipe], data: DeviceData) -> Callable[[], None]:
    """An epoch of all trials in lanes."""
    held = Lanes(data, built_in(recipes[0].model), fuse=False, num_threads=torch.get_num_threads())
    for key, one in enumerate(recipes):
        held.add(key, one, build_model(one, data.input_shape, NUM_CLASSES))

    def run() -> None:
        for group in held.groups():
            group.train_epoch()
            group.keep_epoch()

    return run


def best(sides: dict[str, Callable[[], None]], repetitions: int) -> dict[str, float]:
    """The seconds of the best epoch of each side."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, run in sides.items():
            found[name].append(seconds(run))
    return {name: min(values) for name, values in found.items()}


def show(name: str, num_trials: int, epoch_seconds: float, against: float) -> None:
    """One line: seconds, images and trials an hour, and how many times as many as the side it is compared with."""
    images = 45_000 * num_trials / epoch_seconds
    an_hour = 3600 * num_trials / (epoch_seconds * EPOCHS_OF_A_TRIAL)
    ratio = f"{against * num_trials / epoch_seconds:8.2f}"
    print(f"  {name:34s}{epoch_seconds:9.2f}{images:14,.0f}{an_hour:14.1f}{ratio}")


def compare(model: str, batch_size: int, data: DeviceData, repetitions: int) -> None:
    """Two CPU cores: lanes against single runs on both cores; the sides alternate."""
    recipes = [trial(model, batch_size, lane) for lane in range(max(CPU_LANES))]
    sides = {f"{NUM_SINGLE} single, one after another": singles(recipes[:NUM_SINGLE], data)}
    sides |= {f"{count} lanes": lanes_on_cpu(recipes[:count], data) for count in CPU_LANES}
    found = best(sides, repetitions)
    alone = next(iter(found.values())) / NUM_SINGLE
    print(f"\n{model}, batch {batch_size:3d}{'seconds':>34s}{'images/s':>14s}{'trials/h':>14s}{'ratio':>8s}")
    for name, value in found.items():
        show(name, int(name.split()[0]), value, alone)


def measure_all(setup: Setup, cache: Path, deadline: float, chosen: str) -> None:
    """Every side of one network and batch size, in a process of its own; a side that fails says why."""
    dataset = load("cifar100", data_dir=setup.data_dir, cache_dir=cache)
    data = part(place(dataset, setup.device), setup.num_images)
    peaks, work = measure(data.device), count(setup.model, setup.batch_size)
    tidy(setup.device)
    set_precision(tf32=setup.tf32)
    flops = (peaks.tf32 if setup.tf32 else None) or peaks.float32
    floor = partial(work.seconds, flops=flops, bandwidth=peaks.bandwidth)
    heading(setup, peaks, work)
    found: list[Timing] = []
    for letter, side in sides_of(setup, data, cache, deadline, chosen):
        if time.monotonic() > deadline:
            print("  the time is up: other sides are left out")
            break
        for result in attempts(letter, side, setup.device):
            if isinstance(result, Timing):
                found.append(result)
                row(result, found, floor(result.num_trials))
            else:
                print(f"  {result}", flush=True)
    if setup.model == "lenet":
        marks(found)


def sides_of(setup: Setup, data: DeviceData, cache: Path, deadline: float, chosen: str) -> list[tuple[str, Side]]:
    """By their letters, in the order in which they run."""
    sides: list[tuple[str, Side]] = [
        ("a", lambda: [conventional(setup)]),
        ("b", lambda: [shared_device(setup)]),
        ("c", lambda: [single(setup, data)]),
        ("d", lambda: [lanes(setup, data, 1, graphed=True)]),
    ]
    counts = sorted(setup.lanes, reverse=True)  # what matters most first, should the time not suffice
    arrays = partial(write_arrays, data, cache / "arrays")
    sides.append(("f", lambda: vmapped(setup, arrays(), counts[:NUM_JAX], (deadline - time.monotonic()) / 2)))
    pairs = [(num_lanes, graphed) for num_lanes in counts for graphed in (True, False)]
    # One lane with a graph is (d).
    sides += [("e", partial(_lanes, setup, data, *pair)) for pair in pairs if pair != (1, True)]
    compiled = partial(_lanes, setup, data, compiler="inductor")
    sides += [("g", partial(compiled, num_lanes, graphed)) for num_lanes in counts[:2] for graphed in (True, False)]
    return [(letter, side) for letter, side in sides if letter in chosen]


def _lanes(
    setup: Setup, data: DeviceData, num_lanes: int, graphed: bool, compiler: str | None = None
) -> Iterable[Timing]:
    return [lanes(setup, data, num_lanes, graphed=graphed, compiler=compiler)]


def attempts(letter: str, side: Side, device: str) -> Iterator[Timing | str]:
    """The side's results, or what went wrong, in one line."""
    try:
        yield from side()
    except Exception as error:
        yield f"({letter}) failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    with suppress(Exception):  # torch 2.11 cannot after a recording that failed
        tidy(device)


def write_arrays(data: DeviceData, folder: Path) -> Path:
    """What `lanes_jax.py` reads."""
    folder.mkdir(exist_ok=True)
    for name in ("train_images", "train_labels", "validation_images", "validation_labels"):
        np.save(folder / f"{name}.npy", getattr(data, name).cpu().numpy())
    return folder


def main() -> None:
    arguments = parsed()
    on_gpu = arguments.device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"{processor()}, load {os.getloadavg()[0]:.1f}"
    print(f"{date.today()}, {name}; torch {torch.__version__}, Python {platform.python_version()}")
    if not on_gpu:
        keep_to_two_cores()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        dataset = load("cifar100", data_dir=arguments.data_dir, cache_dir=cache)
        pairs = [(model, batch_size) for model in arguments.models for batch_size in arguments.batch_sizes]
        if arguments.sides:
            measure_pairs(pairs, arguments, cache)
        else:
            for model, batch_size in pairs:
                compare(model, batch_size, place(dataset, "cpu"), arguments.repetitions)


def measure_pairs(pairs: list[tuple[str, int]], arguments: argparse.Namespace, cache: Path) -> None:
    """Each in a process of its own, so that what breaks one leaves the others alone; they share the minutes."""
    end = time.monotonic() + 60 * arguments.minutes
    context = multiprocessing.get_context("spawn")
    for number, (model, batch_size) in enumerate(pairs):
        setup = Setup(
            model=model,
            batch_size=batch_size,
            device=arguments.device,
            data_dir=arguments.data_dir,
            num_images=arguments.images,
            seconds=arguments.seconds_per_side,
            lanes=arguments.lanes,
            num_workers=NUM_WORKERS if arguments.device == "cuda" else 2,
            tf32=arguments.tf32,
            jax_python=arguments.jax_python,
        )
        deadline = time.monotonic() + (end - time.monotonic()) / (len(pairs) - number)
        process = context.Process(target=measure_all, args=(setup, cache, deadline, arguments.sides))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{model}, batch {batch_size}: the process ended with {process.exitcode}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="trials an hour, in lanes and one by one")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds cifar-100-python")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repetitions", type=int, default=2, help="epochs of each side on two CPU cores")
    parser.add_argument("--models", nargs="+", default=["lenet", "2lp"], choices=["lenet", "2lp"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--sides", help="letters of the sides to measure, such as acde; on a GPU, all")
    parser.add_argument(
        "--lanes",
        nargs="+",
        type=int,
        default=[*GPU_LANES],
        help="numbers of lanes; of these f takes the largest, and g two",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all sides together")
    parser.add_argument("--seconds-per-side", type=float, default=3.0)
    parser.add_argument("--images", type=int, default=NUM_TRAIN, help="of an epoch; fewer to try the script")
    parser.add_argument("--tf32", action="store_true", help="products and convolutions in TF32, on all sides")
    parser.add_argument("--jax-python", default=sys.executable, help="a Python that has jax, for side f")
    arguments = parser.parse_args()
    if arguments.sides is None and arguments.device == "cuda":
        arguments.sides = "abcdefg"
    return arguments


if __name__ == "__main__":
    main()
