"""The training program: one recipe, one model, one data set, an epoch at a time."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from pkgutil import resolve_name

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpsearch.interrupt import heed
from hpsearch.models.build import HYPERPARAMETERS
from hpsearch.models.layers import WideLinear, let_alone
from hpsearch.recipe import Recipe, fold
from hpsearch.train import OPTIMIZERS, SCHEDULES
from hpsearch.train.augment import normalise
from hpsearch.train.device_data import DeviceData, place
from hpsearch.train.dropout import seed_of, seeded
from hpsearch.train.freezing import Part, parts, rest
from hpsearch.train.metrics import VALIDATION_BATCH, Sums, evaluate, full_precision
from hpsearch.train.optimizers import SGD, Optimizer, ScaledSGD, Update, clip_divisor, factored_norm, gradient_norm
from hpsearch.train.precision import autocast, multiplying
from hpsearch.train.randomness import RandomState, draws, steady
from hpsearch.train.recorded import WORTH, Derived, Forward, Step, record
from hpsearch.train.schedules import Schedule
from hpsearch.train.stream import Stream

__all__ = ["DeviceData", "EpochResult", "Program", "place"]

FACTORED_BATCH = 128  # up to which the factors' norm costs less than it saves

State = Mapping[str, Tensor | int]  # "epoch", "model.<name>", "optimizer.<buffer>.<parameter>"


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave: means over the images; the gradient norm, before clipping, is a mean over the steps.

    A diverged epoch met a loss, or a gradient, that is no finite number; its validation metrics are nan.
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
        self._dropouts = [layer for layer in seeded(model) if not layer.idle]
        self.model = model.to(data.device)
        self.draws = draws(model)
        self.data = data
        self.epoch = 0
        self.stream = Stream(recipe.augmentation, recipe.batch_size, recipe.stream_seed)
        self._schedule = schedule_of(recipe)
        self._optimizer: Optimizer = resolve_name(OPTIMIZERS[recipe.optimizer])
        let_alone(self.model, data.device.type == "cpu")
        self._wide = self._factored_layers()
        wide = {id(layer.weight) for layer in self._wide}
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        # Weights with factored gradients last: the others are what autograd gives gradients of.
        trained = dict(sorted(trained.items(), key=lambda item: id(item[1]) in wide))
        self._names = list(trained)
        self._parameters: list[Tensor] = list(trained.values())
        self._num_plain = len(trained) - len(self._wide)
        self._buffers = {name: [torch.zeros_like(p) for p in self._parameters] for name in self._optimizer.buffers}
        self._body, self._head = parts(model, recipe, self._names, self._parameters, self._buffers)
        self._sgd = ScaledSGD(self._parameters, self._buffers["momentum"]) if self._takes_numbers else None
        self._recorded: Step | None = None
        self._records = getattr(model, "static_graph", False) and data.device.type == "cpu" and not recipe.frozen_layers

    @property
    def position(self) -> int:
        """The epoch of the stream that comes next; trials that join others in mid-flight begin at a later one."""
        return self.recipe.stream_offset + self.epoch

    def run_epoch(self) -> EpochResult:
        """Train one epoch, then validate. A loss that is no finite number raises nothing: see `diverged`."""
        started = time.perf_counter()
        self.begin_epoch()
        for images, labels in self.stream.blocks(self.data, self.position):
            self.train_block(images, labels, self.similarities(images))
        return self.end_epoch(started)

    def begin_epoch(self) -> None:
        """Prepare an epoch; its blocks follow."""
        self.model.train()
        num_steps = self.stream.steps_per_epoch(self.data)
        self._in_training = self._trained(num_steps)
        steps = torch.arange(self.epoch * num_steps, (self.epoch + 1) * num_steps, dtype=torch.float64)
        setting = self._schedule(steps, self.recipe, num_steps)
        self._settings = zip(steps.tolist(), setting.rate.tolist(), setting.momentum.tolist(), strict=True)
        self._last_rate = float(setting.rate[-1])
        self._sums = Sums(self.data.device)
        self._random = RandomState(self.data.device, fold(self.recipe.seed, self.epoch + 1)) if self.draws else None
        for layer in self._dropouts:
            layer.seed.fill_(seed_of(fold(self.recipe.seed, 1)))
        if self._records and self.recipe.epochs * num_steps >= WORTH:
            self._record()

    def similarities(self, images: Tensor) -> Tensor | None:
        """Images (N, C, H, W) -> (N / B, B, B), the inner products within each whole batch, where steps need them.

        They do for the norm of a wide first layer's gradient. Trials of one stream have them in common.
        """
        if not any(layer.in_features == images[0].numel() for layer in self._wide):
            return None
        size = self.recipe.batch_size
        batches = images[: len(images) // size * size].view(-1, size, images[0].numel())
        return torch.bmm(batches, batches.transpose(1, 2))

    def train_block(self, images: Tensor, labels: Tensor, similarities: Tensor | None = None) -> None:
        """Train on images (N, C, H, W) and labels (N,): the next of the epoch, a whole number of batches or the end.

        `similarities` of these images, if they are there.
        """
        size = self.recipe.batch_size
        alone = self._random.used() if self._random is not None else nullcontext()
        with alone, multiplying(self.recipe.precision, self.data.device):
            batches = zip(torch.split(images, size), torch.split(labels, size), strict=True)
            for (some, their), similarity in zip_longest(batches, () if similarities is None else similarities):
                heed()
                step, rate, momentum = next(self._settings)
                for layer in self._dropouts:
                    layer.begin(int(step))
                self._step(some, their, similarity, Update(int(step), rate, momentum, self.recipe.weight_decay))

    def end_epoch(self, started: float) -> EpochResult:
        """Validate, and say what the epoch that began at `started` (time.perf_counter) gave."""
        self._settle()
        loss, accuracy, norm = self._sums.means()
        self.epoch += 1
        validation_loss, validation_accuracy = self.validate()
        diverged = not all(map(math.isfinite, (loss, norm, validation_loss)))
        return EpochResult(
            epoch=self.epoch,
            training_loss=loss,
            training_accuracy=accuracy,
            validation_loss=math.nan if diverged else validation_loss,
            validation_accuracy=math.nan if diverged else validation_accuracy,
            learning_rate=self._last_rate,
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
        self._settle()
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.as_tensor(state[name]))

    @property
    def _takes_numbers(self) -> bool:
        """Whether `ScaledSGD` updates the parameters."""
        return self.data.device.type == "cpu" and self._optimizer is SGD and not self.recipe.frozen_layers

    def _settle(self) -> None:
        if self._sgd is not None:
            with torch.no_grad():
                self._sgd.settle()

    def _factored_layers(self) -> list[WideLinear]:
        """The layers whose weights are updated from the factors of their gradients: on a CPU, where memory is slow."""
        if not self._takes_numbers:
            return []
        layers = [layer for layer in self.model.modules() if isinstance(layer, WideLinear) and layer.is_wide]
        return [layer for layer in layers if layer.weight.requires_grad and self.recipe.batch_size <= FACTORED_BATCH]

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors themselves, by their names in a state."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for buffer, values in self._buffers.items():
            tensors |= {f"optimizer.{buffer}.{name}": value for name, value in zip(self._names, values, strict=True)}
        return tensors

    def _trained(self, num_steps: int) -> list[Part]:
        """What trains in this epoch; frozen layers rest."""
        if not self._body.parameters:
            return [self._head]
        if self.epoch < self.recipe.frozen_epochs:
            rest(self.model, self.recipe)
            return [self._head]
        body = replace(self._body, first_step=self.recipe.frozen_epochs * num_steps)
        return [part for part in (body, self._head) if part.parameters]

    def _step(self, images: Tensor, labels: Tensor, similarity: Tensor | None, update: Update) -> None:
        """One update from images (B, C, H, W) and labels (B,); `similarity` (B, B) of the images, if it is there."""
        if self._recorded is not None and len(images) == self.recipe.batch_size:
            loss, logits, gradients, factors = self._recorded(images, labels)
        else:
            trained = [parameter for part in self._in_training for parameter in part.parameters]
            loss, logits, gradients, factors = self._derive(self.model, trained[: self._num_plain], images, labels)
        with torch.no_grad():
            known = [similarity if _is_all_of(images, pairs) else None for pairs in factors]
            norm = gradient_norm(gradients, map(factored_norm, factors, known))
            divisor = clip_divisor(norm, self.recipe.clip_norm) if self.recipe.clip_norm else None
            update = replace(update, divisor=divisor)
            if self._sgd is not None:
                self._sgd.apply(gradients, factors, update)
            else:
                for part in self._in_training:
                    own, gradients = gradients[: len(part.parameters)], gradients[len(part.parameters) :]
                    self._optimizer.apply(part.parameters, own, part.buffers, part.own(update))
            self._sums.add(loss, logits, labels, norm)

    def _derive(self, model: Forward, parameters: Sequence[Tensor], images: Tensor, labels: Tensor) -> Derived:
        """Loss (), logits (B, k), gradients of the parameters, and the factors of those of each wide layer."""
        for layer in self._wide:
            layer.factors = []
        with autocast(self.recipe.precision, self.data.device):
            logits = full_precision(model(images))
            loss = functional.cross_entropy(logits, labels)  # float32
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients = [_laid_out_as(parameter, one) for parameter, one in zip(parameters, found, strict=True)]
        factors = [layer.factors or [] for layer in self._wide]
        for layer in self._wide:
            layer.factors = None
        return loss, logits, gradients, factors

    def _record(self) -> None:
        """Record what the steps of whole batches derive, once."""
        self._records = False
        recipe = self.recipe
        plain = self._names[: self._num_plain]
        shapes = (self.data.input_shape, *((name, tensor.shape) for name, tensor in self._tensors().items()))
        own = tuple(getattr(recipe, name) for name in HYPERPARAMETERS)
        key = (type(self.model), recipe.model, own, recipe.batch_size, recipe.precision, len(self._wide), shapes)
        self._recorded = record(
            key,
            self.model,
            lambda model, given, images, labels: self._derive(model, [given[name] for name in plain], images, labels),
            torch.zeros(recipe.batch_size, *self.data.input_shape),
            self.data.train_labels.new_zeros(recipe.batch_size),
        )

    @torch.no_grad()  # not inference_mode: a network may keep what it makes here, a grid say, and train with it
    def validate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation part."""
        self.model.eval()
        totals = torch.zeros(2, device=self.data.device)
        batches = zip(
            torch.split(self.data.validation_images, VALIDATION_BATCH),
            torch.split(self.data.validation_labels, VALIDATION_BATCH),
            strict=True,
        )
        with steady(self.model, self.data.device):
            for raw, labels in batches:
                heed()
                images = normalise(raw, self.data.mean, self.data.std)
                totals += torch.stack(evaluate(self.model, images, labels))
        loss, hits = (totals / len(self.data.validation_labels)).tolist()
        return loss, hits


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the parameter's memory format, which torch's fused optimizers take for granted."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _is_all_of(images: Tensor, factors: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether these factors have the images themselves as their inputs."""
    if len(factors) != 1:
        return False
    inputs = factors[0][1]
    return (inputs.data_ptr(), inputs.numel()) == (images.data_ptr(), images.numel())


def schedule_of(recipe: Recipe) -> Schedule:
    """The recipe's schedule."""
    schedule: Schedule = resolve_name(SCHEDULES[recipe.scheduler])
    return schedule
