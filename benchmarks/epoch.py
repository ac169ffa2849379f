"""Seconds per CIFAR-100 epoch on two CPU cores: hpsearch against the training script that one would write instead.

Run: python benchmarks/epoch.py --data-dir FOLDER    (FOLDER holds cifar-100-python; about five minutes)

Both sides train the same networks by the same recipe, 45,000 images at batch 64 with the `paper` augmentation, SGD with
momentum, onecycle, clipping at 1.0, then validate on 5,000. The sides alternate; the best epoch of each counts.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from hpsearch.data.load import load
from hpsearch.models.build import build_model
from hpsearch.recipe import Recipe
from hpsearch.train.optimizers import SGD, Update, clip_divisor, gradient_norm
from hpsearch.train.program import DeviceData, Program, place
from hpsearch.train.stream import Stream

BATCH, NUM_TRAIN, NUM_CLASSES, NUM_THREADS = 64, 45_000, 100, 2
WARM_UP_STEPS = 10
TIMED_STEPS = 150  # of each part, scaled to an epoch
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


class Conventional:
    """torchvision's data set and PIL transforms, a DataLoader with workers, nn.Module, torch's own classes.

    `num_images` of the training part, and a ninth as many to validate on. On a GPU batches come from pinned memory.
    `stay`: the workers live on from epoch to epoch.
    """

    def __init__(
        self,
        model: str,
        data_dir: Path,
        epochs: int,
        *,
        batch_size: int = BATCH,
        device: str = "cpu",
        num_workers: int = 2,
        num_images: int = NUM_TRAIN,
        stay: bool = False,
    ) -> None:
        plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        varied = [
            transforms.RandomHorizontalFlip(0.1),
            transforms.RandomRotation(20),
            transforms.RandomAdjustSharpness(2, 0.1),
            transforms.ColorJitter(0.1, 0.1, 0.1),
        ]
        options = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "pin_memory": device != "cpu",
            "persistent_workers": stay,
            # As a script's workers start on Linux; in a spawned process they would be spawned, images and all.
            "multiprocessing_context": "fork" if sys.platform == "linux" else None,
        }
        held_out = range(NUM_TRAIN, NUM_TRAIN + num_images // 9)
        self.train_loader = self._loader(data_dir, [*varied, *plain], range(num_images), shuffle=True, **options)
        self.validation_loader = self._loader(data_dir, plain, held_out, shuffle=False, **options)
        self.device = torch.device(device)
        self.model = (plain_lenet() if model == "lenet" else plain_2lp()).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=0.1, epochs=epochs, steps_per_epoch=len(self.train_loader)
        )

    def run_epoch(self) -> None:
        self.model.train()
        for images, labels in self.train_loader:
            self._step(images, labels)
        self.model.eval()
        hits = 0
        with torch.no_grad():
            for images, labels in self.validation_loader:
                logits = self.model(images.to(self.device, non_blocking=True))
                hits += int((logits.argmax(1) == labels.to(self.device, non_blocking=True)).sum())

    def warm_up(self) -> None:
        """Start the workers, and train on a few batches."""
        for images, labels in islice(self.train_loader, WARM_UP_STEPS):
            self._step(images, labels)
        next(iter(self.validation_loader))

    def _step(self, images: Tensor, labels: Tensor) -> None:
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()

    @staticmethod
    def _loader(
        data_dir: Path, steps: list[object], rows: range, *, shuffle: bool, **options: Any
    ) -> DataLoader[tuple[Tensor, Tensor]]:
        images = torchvision.datasets.CIFAR100(str(data_dir), train=True, transform=transforms.Compose(steps))
        return DataLoader(Subset(images, rows), shuffle=shuffle, **options)


def plain_lenet() -> nn.Module:
    features = [nn.Conv2d(3, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    layers = [nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, NUM_CLASSES)]
    return nn.Sequential(*features, nn.Flatten(), *layers)


def plain_2lp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, NUM_CLASSES))


def recipe(model: str, epochs: int) -> Recipe:
    return Recipe(
        model=model,
        epochs=epochs,
        learning_rate=0.01,
        peak_learning_rate=0.1,
        scheduler="onecycle",
        batch_size=BATCH,
        clip_norm=1.0,
        augmentation="paper",
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def parts(model: str, data: DeviceData) -> dict[str, float]:
    """Seconds per epoch of each part of our side, timed alone."""
    network = build_model(recipe(model, 1), data.input_shape, NUM_CLASSES)
    program = Program(recipe(model, 1), network, data)
    stream = Stream("paper", BATCH, 0)
    num_steps = stream.steps_per_epoch(data)
    images, labels = next(stream.batches(data, 0))
    parameters: list[Tensor] = list(network.parameters())
    buffers = {"momentum": [torch.zeros_like(parameter) for parameter in parameters]}

    def forward_backward() -> list[Tensor]:
        return list(torch.autograd.grad(functional.cross_entropy(network(images), labels), parameters))

    def update(gradients: list[Tensor]) -> None:
        divisor = clip_divisor(gradient_norm(gradients), 1.0)
        SGD.apply(parameters, gradients, buffers, Update(0, 1e-6, 0.9, 0.0, divisor))

    def repeat(work: Callable[[], object]) -> float:
        work()
        return seconds(lambda: [work() for _ in range(TIMED_STEPS)]) * num_steps / TIMED_STEPS

    gradients = forward_backward()
    augmentation = min(seconds(lambda: [None for _ in stream.batches(data, 1)]) for _ in range(2))
    with torch.no_grad():
        updates = repeat(lambda: update(gradients))
    return {
        "augmentation": augmentation,
        "forward, backward": repeat(forward_backward),
        "norm, clip, update": updates,
        "validation": seconds(program.validate),
    }


def floor_seconds(model: str, data: DeviceData) -> tuple[float, float]:
    """GFLOP of an epoch (matrix products and convolutions), and its seconds at the measured rate of a large product."""
    network = build_model(recipe(model, 1), data.input_shape, NUM_CLASSES)
    images, labels = next(Stream("none", BATCH, 0).batches(data, 0))
    with FlopCounterMode(display=False) as training:
        functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    with FlopCounterMode(display=False) as validation, torch.no_grad():
        network(images)
    flops = (training.get_total_flops() * NUM_TRAIN + validation.get_total_flops() * 5_000) / BATCH
    square = torch.randn(1024, 1024)
    peak = 2 * 1024**3 / min(seconds(lambda: square @ square) for _ in range(20))  # FLOP per second
    return flops / 1e9, flops / peak


def keep_to_two_cores() -> None:
    """Both sides, workers included, run on the same two cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_THREADS])
    torch.set_num_threads(NUM_THREADS)


def compare(model: str, data_dir: Path, data: DeviceData, repetitions: int) -> None:
    conventional = Conventional(model, data_dir, repetitions)
    ours = Program(recipe(model, repetitions), build_model(recipe(model, 1), data.input_shape, NUM_CLASSES), data)
    theirs_seconds, our_seconds = [], []
    for _ in range(repetitions):
        our_seconds.append(seconds(ours.run_epoch))
        theirs_seconds.append(seconds(conventional.run_epoch))
    gflop, floor = floor_seconds(model, data)
    print(f"\n{model:34s}{'best':>8s}   all epochs, seconds")
    for name, values in (("conventional script", theirs_seconds), ("hpsearch", our_seconds)):
        print(f"  {name:32s}{min(values):8.2f}   {'  '.join(f'{value:.2f}' for value in values)}")
    print(f"  {'ratio':32s}{min(theirs_seconds) / min(our_seconds):8.2f}")
    print(f"  {'floor: ' + format(gflop, '.0f') + ' GFLOP at peak rate':32s}{floor:8.2f}")
    for name, value in parts(model, data).items():
        print(f"    {name:30s}{value:8.2f}")
    sys.stdout.flush()


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description="seconds per CIFAR-100 epoch, hpsearch against a conventional script")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder that holds cifar-100-python")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["lenet", "2lp"], choices=["lenet", "2lp"])
    arguments = parser.parse_args()
    python, cores = platform.python_version(), os.cpu_count()
    print(f"{date.today()}, {processor()}, {NUM_THREADS} of {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(f"Python {python}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    keep_to_two_cores()
    with tempfile.TemporaryDirectory() as cache:
        data = place(load("cifar100", data_dir=arguments.data_dir, cache_dir=Path(cache)), "cpu")
        for model in arguments.models:
            compare(model, arguments.data_dir, data, arguments.repetitions)


if __name__ == "__main__":
    main()
