"""The training program: one recipe, one model, one data set, an epoch at a time."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.models.layers import WideLinear
from hpsearch.recipe import Recipe, fold
from hpsearch.train import OPTIMIZERS, SCHEDULES
from hpsearch.train.augment import normalise
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.metrics import Sums, evaluate
from hpsearch.train.optimizers import SGD, Optimizer, Update, clip_divisor, factored_norm, factored_sgd, gradient_norm
from hpsearch.train.schedules import Schedule
from hpsearch.train.stream import Stream

__all__ = ["DeviceData", "EpochResult", "Program", "place"]

FACTORED_WEIGHTS = 2**20  # from this size on a weight's gradient is kept as its factors (4 MB)
VALIDATION_BATCH = 500  # images; only speed depends on it

State = Mapping[str, Tensor | int]  # "epoch", "model.<name>", "optimizer.<buffer>.<parameter>"


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave: means over the images; the gradient norm, before clipping, is a mean over the steps.

    A diverged epoch met a loss or a gradient that is no finite number; its validation metrics are nan.
    """

    epoch: int  # from 1
    training_loss: float
    training_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float  # at the last step
    gradient_norm: float
    images_per_second: float  # training images over the time of the whole epoch, validation included
    diverged: bool


class Program:
    """Trains `model` by `recipe` on `data`; `epoch` counts the epochs done.

    All that is random follows from the recipe's seeds and the epoch, so `state` holds no generators.
    """

    def __init__(self, recipe: Recipe, model: nn.Module, data: DeviceData) -> None:
        self.recipe = recipe
        self.model = model.to(data.device)
        self.data = data
        self.epoch = 0
        self._stream = Stream(recipe.augmentation, recipe.batch_size, recipe.stream_seed)
        self._schedule: Schedule = _load(SCHEDULES[recipe.scheduler])
        self._optimizer: Optimizer = _load(OPTIMIZERS[recipe.optimizer])
        self._wide = self._factored_layers()
        wide = {id(layer.weight) for layer in self._wide}
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        # Weights with factored gradients last: the others are what autograd gives gradients of.
        trained = dict(sorted(trained.items(), key=lambda item: id(item[1]) in wide))
        self._names = list(trained)
        self._parameters: list[Tensor] = list(trained.values())
        self._buffers = {name: [torch.zeros_like(p) for p in self._parameters] for name in self._optimizer.buffers}

    def run_epoch(self) -> EpochResult:
        """Train one epoch, then validate. A loss that is no finite number raises nothing: see `diverged`."""
        started = time.perf_counter()
        loss, accuracy, norm, rate = self._train()
        self.epoch += 1
        diverged = not (math.isfinite(loss) and math.isfinite(norm))
        validation_loss, validation_accuracy = (math.nan, math.nan) if diverged else self.validate()
        return EpochResult(
            epoch=self.epoch,
            training_loss=loss,
            training_accuracy=accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=rate,
            gradient_norm=norm,
            images_per_second=self.data.num_images / (time.perf_counter() - started),
            diverged=diverged,
        )

    def state(self) -> dict[str, Tensor | int]:
        """Copies of all that the next epoch depends on besides recipe and data."""
        state: dict[str, Tensor | int] = {"epoch": self.epoch}
        return state | {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave, in a program of the same recipe."""
        self.epoch = int(state["epoch"])
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.as_tensor(state[name]))

    def _factored_layers(self) -> list[WideLinear]:
        """The layers whose weights are updated from the factors of their gradients: on a CPU, where memory is slow."""
        if self.data.device.type != "cpu" or self._optimizer is not SGD:
            return []
        layers = [layer for layer in self.model.modules() if isinstance(layer, WideLinear)]
        return [layer for layer in layers if layer.weight.requires_grad and layer.weight.numel() >= FACTORED_WEIGHTS]

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors themselves, by their names in a state."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for buffer, values in self._buffers.items():
            tensors |= {f"optimizer.{buffer}.{name}": value for name, value in zip(self._names, values, strict=True)}
        return tensors

    def _train(self) -> tuple[float, float, float, float]:
        """One epoch's loss, accuracy, gradient norm, and last rate."""
        self.model.train()
        num_steps = self._stream.steps_per_epoch(self.data)
        steps = torch.arange(self.epoch * num_steps, (self.epoch + 1) * num_steps, dtype=torch.float64)
        setting = self._schedule(steps, self.recipe, num_steps)
        numbers = zip(steps.tolist(), setting.rate.tolist(), setting.momentum.tolist(), strict=True)
        sums = Sums(self.data.device)
        with torch.random.fork_rng(devices=[self.data.device] if self.data.device.type == "cuda" else []):
            torch.manual_seed(fold(self.recipe.seed, self.epoch + 1))  # dropout
            for (images, labels), (step, rate, momentum) in zip(
                self._stream.batches(self.data, self.epoch), numbers, strict=True
            ):
                self._step(images, labels, int(step), rate, momentum, sums)
        return *sums.means(), float(setting.rate[-1])

    def _step(self, images: Tensor, labels: Tensor, step: int, rate: float, momentum: float, sums: Sums) -> None:
        """One update from images (B, C, H, W) and labels (B,)."""
        for layer in self._wide:
            layer.factors = []
        logits = self.model(images)  # (B, k)
        loss = functional.cross_entropy(logits, labels)
        plain = len(self._parameters) - len(self._wide)
        gradients = list(torch.autograd.grad(loss, self._parameters[:plain], materialize_grads=True))
        with torch.no_grad():
            norm = gradient_norm(gradients)
            if self._wide:
                norm = torch.stack([norm, *(factored_norm(layer.factors or []) for layer in self._wide)]).norm()
            divisor = clip_divisor(norm, self.recipe.clip_norm) if self.recipe.clip_norm else None
            update = Update(step, rate, momentum, self.recipe.weight_decay, divisor)
            buffers = {name: tensors[:plain] for name, tensors in self._buffers.items()}
            self._optimizer.apply(self._parameters[:plain], gradients, buffers, update)
            for layer, buffer in zip(self._wide, self._buffers.get("momentum", [])[plain:], strict=True):
                factored_sgd(layer.weight, layer.factors or [], buffer, update)
                layer.factors = None
            sums.add(loss, logits, labels, norm)

    @torch.inference_mode()
    def validate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation part."""
        self.model.eval()
        totals = torch.zeros(2, device=self.data.device)
        for raw, labels in zip(
            torch.split(self.data.validation_images, VALIDATION_BATCH),
            torch.split(self.data.validation_labels, VALIDATION_BATCH),
            strict=True,
        ):
            images = normalise(raw, self.data.mean, self.data.std)
            totals += torch.stack(evaluate(self.model, images, labels))
        loss, hits = (totals / len(self.data.validation_labels)).tolist()
        return loss, hits

    @torch.inference_mode()
    def predictions(self) -> Tensor:
        """The class (N,) that each validation image is taken for."""
        self.model.eval()
        batches = torch.split(self.data.validation_images, VALIDATION_BATCH)
        found = [self.model(normalise(raw, self.data.mean, self.data.std)).argmax(1) for raw in batches]
        return torch.cat(found)


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
