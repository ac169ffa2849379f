"""What a precision costs in accuracy: the same trials in float32, TF32 and bfloat16, paired by their seeds.

Run: python benchmarks/precision.py --data-dir FOLDER                    a CPU: float32 and bfloat16
     python benchmarks/precision.py --data-dir FOLDER --device cuda      a GPU: all three

FOLDER holds cifar-100-python; `--study quickstart` takes digits, which need none. The recipe is the first [[first]] of
the study, or its default. Trials of one seed have the same initialisation, data order and augmentation; what is
compared is the validation accuracy after the last epoch, in float32. Seconds are of whole epochs, validation included.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

from benchmarks.epoch import processor
from hpsearch import catalogue
from hpsearch.data.load import load
from hpsearch.models.build import build_model
from hpsearch.recipe import RULES, Recipe
from hpsearch.statistics import estimate, paired_p
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.program import Program


def train(recipe: Recipe, data: DeviceData) -> tuple[float, float]:
    """Validation accuracy after the last epoch, and seconds of the fastest epoch."""
    program = Program(recipe, build_model(recipe, data.input_shape, data.num_classes), data)
    results = [program.run_epoch() for _ in range(recipe.epochs)]
    return results[-1].validation_accuracy, data.num_images / max(result.images_per_second for result in results)


def summary(accuracies: Mapping[str, Sequence[float]], seconds: Mapping[str, Sequence[float]]) -> None:
    """One line for each precision, the later ones against the first."""
    base, *_ = accuracies
    print(f"\n{'precision':10s}{'accuracy':>9s}{'deviation':>11s}{'epoch, s':>10s}   against {base}, 95 % interval")
    for precision, values in accuracies.items():
        own = estimate(values)
        line = f"{precision:10s}{own.mean:9.4f}{own.std:11.4f}{min(seconds[precision]):10.2f}"
        if precision != base:
            pairs = zip(values, accuracies[base], strict=True)
            found, p = estimate([one - other for one, other in pairs]), paired_p(values, accuracies[base])
            line += f"   {found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f}), worse with p = {p:.2g}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description="what a precision costs in accuracy, over paired seeds")
    parser.add_argument("--data-dir", type=Path, help="folder that holds cifar-100-python")
    parser.add_argument("--study", default="lenet", help="the study whose first known good configuration is trained")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precisions", nargs="+", choices=RULES["precision"].among)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, help="train on the first so many images only")
    arguments = parser.parse_args()
    usual = [name for name in RULES["precision"].among if arguments.device != "cpu" or name != "tf32"]
    precisions = arguments.precisions or usual
    study = catalogue.read(arguments.study, [f"training.epochs={arguments.epochs}"])
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{processor()}, {os.cpu_count()} cores"
    print(f"{date.today()}, {device}, load {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}; {study.model.name} on {study.data.name}")
    with tempfile.TemporaryDirectory() as cache:
        kind = {"data_dir": arguments.data_dir, "cache_dir": Path(cache), "image_size": study.data.image_size}
        data = place(load(study.data.name, **kind), arguments.device)
        kept = slice(arguments.images)
        data = replace(data, train_images=data.train_images[kept], train_labels=data.train_labels[kept])
        accuracies: dict[str, list[float]] = {precision: [] for precision in precisions}
        seconds: dict[str, list[float]] = {precision: [] for precision in precisions}
        for seed in range(arguments.seeds):
            recipe = study.recipe(study.first[0] if study.first else {}, seed, seed)
            for precision in precisions:
                accuracy, fastest = train(replace(recipe, precision=precision), data)
                accuracies[precision].append(accuracy)
                seconds[precision].append(fastest)
            print(f"seed {seed}: {'  '.join(f'{p} {accuracies[p][-1]:.4f}' for p in precisions)}")
            sys.stdout.flush()
        print(f"{data.num_images} training images, {arguments.epochs} epochs")
        summary(accuracies, seconds)


if __name__ == "__main__":
    main()
