"""Trials an hour: lanes against single runs, and against the training script that one would write instead.

Run, in the repository's folder:
    python -m benchmarks.throughput --data-dir FOLDER                  two CPU cores: four lanes, and four single runs
    python -m benchmarks.throughput --data-dir FOLDER --device cuda    a GPU: 1 to 256 lanes in one program

Full CIFAR-100, the `paper` augmentation, SGD with momentum, onecycle, clipping at 1, validation included. The sides
alternate; the best epoch of each counts. A trial is 100 epochs. Not measured here yet: four processes on one GPU, a
CUDA graph of a single trial, and the same training vmapped in JAX.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import torch

from benchmarks.epoch import NUM_CLASSES, Conventional, keep_to_two_cores, processor, recipe, seconds
from hpsearch.data.load import load
from hpsearch.models.build import build_model, built_in
from hpsearch.recipe import Recipe
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.lanes import Lanes
from hpsearch.train.program import Program

CPU_LANES = (4,)
GPU_LANES = (1, 4, 16, 64, 256)
EPOCHS_OF_A_TRIAL = 100


def trial(model: str, batch_size: int, lane: int) -> Recipe:
    """The recipe of one lane; all see the same images, and differ in rate, decay and seed."""
    rate, decay = 0.01 / (1 + lane % 7), 1e-4 * (lane % 3)
    base = recipe(model, EPOCHS_OF_A_TRIAL)
    return replace(base, batch_size=batch_size, stream_seed=1, seed=lane, learning_rate=rate, weight_decay=decay)


def singles(recipes: list[Recipe], data: DeviceData) -> Callable[[], None]:
    """An epoch of each trial in a program of its own, one after another."""
    programs = [Program(one, build_model(one, data.input_shape, NUM_CLASSES), data) for one in recipes]

    def run() -> None:
        for program in programs:
            program.run_epoch()

    return run


def lanes(recipes: list[Recipe], data: DeviceData) -> Callable[[], None]:
    """An epoch of all trials in lanes."""
    held = Lanes(data, built_in(recipes[0].model), fuse=data.device.type == "cuda")
    for key, one in enumerate(recipes):
        held.add(key, one, build_model(one, data.input_shape, NUM_CLASSES))

    def run() -> None:
        for group in held.groups():
            group.run_epoch()

    return run


def best(sides: dict[str, Callable[[], None]], repetitions: int, data: DeviceData) -> dict[str, float]:
    """The seconds of the best epoch of each side."""
    found: dict[str, list[float]] = {name: [] for name in sides}

    def whole(run: Callable[[], None]) -> None:
        run()
        if data.device.type == "cuda":
            torch.cuda.synchronize(data.device)

    for _ in range(repetitions):
        for name, run in sides.items():
            found[name].append(seconds(partial(whole, run)))
    return {name: min(values) for name, values in found.items()}


def show(name: str, num_trials: int, epoch_seconds: float, against: float) -> None:
    """One line: seconds, images and trials an hour, and how many times as many as the side it is compared with."""
    images = 45_000 * num_trials / epoch_seconds
    an_hour = 3600 * num_trials / (epoch_seconds * EPOCHS_OF_A_TRIAL)
    ratio = f"{against * num_trials / epoch_seconds:8.2f}"
    print(f"  {name:34s}{epoch_seconds:9.2f}{images:14,.0f}{an_hour:14.1f}{ratio}")


def compare(model: str, batch_size: int, data: DeviceData, data_dir: Path, repetitions: int) -> None:
    on_gpu = data.device.type == "cuda"
    counts = GPU_LANES if on_gpu else CPU_LANES
    recipes = [trial(model, batch_size, lane) for lane in range(max(counts))]
    sides = {f"{count} lanes": lanes(recipes[:count], data) for count in counts}
    num_singles = 1 if on_gpu else 4
    sides = {f"{num_singles} single, one after another": singles(recipes[:num_singles], data)} | sides
    if on_gpu:
        sides["conventional script"] = Conventional(model, data_dir, EPOCHS_OF_A_TRIAL).run_epoch
    found = best(sides, repetitions, data)
    first = next(iter(found))
    alone = found[first] / num_singles
    print(f"\n{model}, batch {batch_size:3d}{'seconds':>34s}{'images/s':>14s}{'trials/h':>14s}{'ratio':>8s}")
    for name, value in found.items():
        show(name, int(name.split()[0]) if name[0].isdigit() else 1, value, alone)


def main() -> None:
    parser = argparse.ArgumentParser(description="trials an hour, in lanes and one by one")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds cifar-100-python")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["lenet", "2lp"], choices=["lenet", "2lp"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 256])
    arguments = parser.parse_args()
    name = (
        torch.cuda.get_device_name() if arguments.device == "cuda" else f"{processor()}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{date.today()}, {name}; torch {torch.__version__}")
    if arguments.device == "cpu":
        keep_to_two_cores()
    with tempfile.TemporaryDirectory() as cache:
        data = place(load("cifar100", data_dir=arguments.data_dir, cache_dir=Path(cache)), arguments.device)
        for model in arguments.models:
            for batch_size in arguments.batch_sizes:
                compare(model, batch_size, data, arguments.data_dir, arguments.repetitions)


if __name__ == "__main__":
    main()
