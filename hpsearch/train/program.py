"""The training program: one recipe, one model, one data set; an epoch at a time."""

import math
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.recipe import Recipe, fold
from hpsearch.train import OPTIMIZERS, SCHEDULES
from hpsearch.train.augment import normalise
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.optimizers import Update, clip_divisor, gradient_norm
from hpsearch.train.stream import Stream

__all__ = ["DeviceData", "EpochResult", "Program", "place"]

VALIDATION_BATCH = 1000  # images; only speed depends on it


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave: means over the images, but the gradient norm (before clipping) is a mean over steps.

    A diverged epoch met a loss or a gradient that is no finite number; it has no validation metrics (nan).
    """

    epoch: int  # from 1
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float  # at the last step
    gradient_norm: float
    images_per_second: float  # training images over the whole epoch, validation included
    diverged: bool


class Program:
    """Trains `model` by `recipe` on `data`. `epoch` counts the epochs done."""

    def __init__(self, recipe: Recipe, model: nn.Module, data: DeviceData) -> None:
        self.recipe = recipe
        self.model = model.to(data.device)
        self.data = data
        self.epoch = 0
        self._stream = Stream(recipe.augmentation, recipe.batch_size, recipe.stream_seed)
        self._schedule = _load(SCHEDULES[recipe.scheduler])
        self._optimizer = _load(OPTIMIZERS[recipe.optimizer])
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buffers = {
            name: [torch.zeros_like(parameter) for parameter in self._parameters] for name in self._optimizer.BUFFERS
        }

    def run_epoch(self) -> EpochResult:
        """Train one epoch, then validate."""
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[self.data.device] if self.data.device.type == "cuda" else []):
            torch.manual_seed(fold(self.recipe.seed, self.epoch + 1))  # dropout
            loss, accuracy, norm, rate = self._train()
        self.epoch += 1
        diverged = not (math.isfinite(loss) and math.isfinite(norm))
        validation_loss, validation_accuracy = (math.nan, math.nan) if diverged else self._validate()
        seconds = time.perf_counter() - started
        return EpochResult(
            epoch=self.epoch,
            training_loss=loss,
            training_accuracy=accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=rate,
            gradient_norm=norm,
            images_per_second=len(self.data.train_labels) / seconds,
            diverged=diverged,
        )

    def state(self) -> dict[str, Tensor | int]:
        """Everything that the next epoch depends on besides recipe and data: copies of tensors, and the epoch."""
        state: dict[str, Tensor | int] = {"epoch": self.epoch}
        state |= {f"model.{name}": tensor.clone() for name, tensor in self.model.state_dict().items()}
        for buffer, tensors in self._buffers.items():
            state |= {f"optimizer.{buffer}.{n}": t.clone() for n, t in zip(self._names, tensors, strict=True)}
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.epoch = int(state["epoch"])
        model = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        self.model.load_state_dict(model)
        for buffer, tensors in self._buffers.items():
            for name, tensor in zip(self._names, tensors, strict=True):
                tensor.copy_(state[f"optimizer.{buffer}.{name}"])

    def _train(self) -> tuple[float, float, float, float]:
        """Loss, accuracy, gradient norm, last rate."""
        self.model.train()
        steps = self._stream.steps_per_epoch(self.data)
        step = self.epoch * steps
        setting = self._schedule(torch.arange(step, step + steps, dtype=torch.float64), self.recipe, steps)
        rates, momenta = setting.rate.tolist(), setting.momentum.tolist()
        loss_sum, correct, norm_sum = torch.zeros(3, device=self.data.device).unbind()
        position = 0
        for block_images, block_labels in self._stream.blocks(self.data, self.epoch):
            for images, labels in zip(
                block_images.split(self.recipe.batch_size), block_labels.split(self.recipe.batch_size), strict=True
            ):
                logits = self.model(images)
                loss = functional.cross_entropy(logits, labels)
                gradients = list(torch.autograd.grad(loss, self._parameters, materialize_grads=True))
                with torch.no_grad():
                    norm = gradient_norm(gradients)
                    divisor = clip_divisor(norm, self.recipe.clip_norm) if self.recipe.clip_norm else None
                    update = Update(
                        step + position, rates[position], momenta[position], self.recipe.weight_decay, divisor
                    )
                    self._optimizer.apply(self._parameters, gradients, self._buffers, update)
                    loss_sum += loss * len(labels)
                    norm_sum += norm
                    correct += (logits.argmax(1) == labels).sum()
                position += 1
        count = len(self.data.train_labels)
        return loss_sum.item() / count, correct.item() / count, norm_sum.item() / steps, rates[-1]

    @torch.inference_mode()
    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation part."""
        self.model.eval()
        loss_sum, correct = torch.zeros(2, device=self.data.device).unbind()
        for raw, labels in zip(
            self.data.validation_images.split(VALIDATION_BATCH),
            self.data.validation_labels.split(VALIDATION_BATCH),
            strict=True,
        ):
            logits = self.model(normalise(raw, self.data.mean, self.data.std))
            loss_sum += functional.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        count = len(self.data.validation_labels)
        return loss_sum.item() / count, correct.item() / count


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
