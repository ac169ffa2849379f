"""K trials as one program: their parameters stacked along K, every step one forward and backward pass for all of them.

Axes: K lanes, B batch, P all parameters of a lane in a row. What differs between lanes (optimizer, rates, momenta,
weight decay, clipping, dropout, step, position in the schedule) is a tensor along K; what changes the graph is the same
for all of them, see `plan.py`. A lane computes what `Program` computes for its trial alone, up to rounding.

Source: "Model ensembling" and `torch.func.functional_call` in the documentation of torch.func.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from hpsearch.interrupt import heed
from hpsearch.models import MODELS
from hpsearch.models.build import Constructor, build_model
from hpsearch.models.layers import let_share
from hpsearch.recipe import Recipe, fold
from hpsearch.train.augment import normalise
from hpsearch.train.device_data import DeviceData, let_go, out_of_memory
from hpsearch.train.dropout import SeededDropout, seed_of, seeded
from hpsearch.train.graphs import CannotRecord, StepGraph
from hpsearch.train.lane_optimizers import BUFFERS, Moments, Numbers, apply
from hpsearch.train.metrics import VALIDATION_BATCH, full_precision
from hpsearch.train.precision import EVALUATION, autocast, multiplying
from hpsearch.train.program import EpochResult, State, schedule_of
from hpsearch.train.stream import Stream

VALIDATED = 32_000  # images of all lanes together, at once: few lanes would keep a GPU waiting for Python


class CannotFuse(Exception):
    """A network that torch.func cannot run for many trials at once; the message says why."""


def refusal(error: Exception) -> Exception:
    """What an error of many trials at once means: that they cannot be fused, or that there is no memory for so many."""
    if out_of_memory(error):
        return torch.OutOfMemoryError(str(error))
    return CannotFuse(" ".join(str(error).split())[:300])


@dataclass
class Lane:
    """A slot: the trial that trains in it, the epochs it has done, and the shapes of its own parameters and buffers."""

    recipe: Recipe
    epoch: int
    shapes: Mapping[str, torch.Size]

    @property
    def position(self) -> int:
        """The epoch of the stream that comes next."""
        return self.recipe.stream_offset + self.epoch


@dataclass(frozen=True)
class Rows:
    """What K lanes are: parameters and moments, each (K, P), and buffers (K, ...)."""

    flat: Tensor
    moments: Moments
    others: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        return [self.flat, *self.moments.tensors(), *self.others.values()]

    def clone(self) -> "Rows":
        others = {name: tensor.clone() for name, tensor in self.others.items()}
        return Rows(self.flat.clone(), self.moments.clone(), others)


class Fused:
    """`num_lanes` slots for trials whose recipes differ from `template` only in what is a tensor along K.

    `width` is the hidden width to which all are padded with zeros; None: the recipes' own, the same for all.
    `graphed`: full batches of a network that says `static_graph` step as a CUDA graph, recorded when it is first
    needed; `unrecorded` says why that could not be. `compiler`: the backend with which torch.compile makes the forward
    and backward pass of full batches; in the first step, which then takes long.

    Raises:
        CannotFuse: torch.func cannot run the network for several trials at once.
    """

    def __init__(
        self,
        template: Recipe,
        width: int | None,
        data: DeviceData,
        num_lanes: int,
        constructor: Constructor | None = None,
        *,
        graphed: bool = False,
        compiler: str | None = None,
    ) -> None:
        self.data, self.num_lanes = data, num_lanes
        self.unrecorded = ""
        # A bound method here would be a cycle, in which the memory of the device waits for Python's collector.
        self._compiled = torch.compile(self._forward, backend=compiler, dynamic=False) if compiler else None
        self._graph: StepGraph | None = None
        self.lanes: list[Lane | None] = [None] * num_lanes
        self.stream = Stream(template.augmentation, template.batch_size, template.stream_seed)
        self._precision, self._reads_only = template.precision, template.model in MODELS
        padded = replace(template, hidden_width=width)
        self._module = build_model(padded, data.input_shape, data.num_classes, constructor)
        self._graphed = graphed and getattr(self._module, "static_graph", False)
        self._dropouts = seeded(self._module)
        let_share(self._module)
        self._module.to(data.device)
        parameters = {name: parameter for name, parameter in self._module.named_parameters() if parameter.requires_grad}
        fixed = {name: parameter for name, parameter in self._module.named_parameters() if not parameter.requires_grad}
        self._names = list(parameters)
        if other := [name for name, parameter in parameters.items() if parameter.dtype != torch.float32]:
            raise CannotFuse(f"{', '.join(other)} are {parameters[other[0]].dtype}, not torch.float32")
        ends = torch.tensor([0, *(p.numel() for p in parameters.values())]).cumsum(0).tolist()
        flat = torch.zeros(num_lanes, ends[-1], device=data.device)  # (K, P)
        self._ranges = dict(zip(self._names, pairwise(ends), strict=True))
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        # Views of the rows: an update of the rows is an update of the parameters.
        self._parameters = {name: self._view(flat, name).detach().requires_grad_() for name in self._names}
        others = {**fixed, **dict(self._module.named_buffers())}
        stacked = {name: torch.stack([tensor.detach()] * num_lanes) for name, tensor in others.items()}
        self._rows = Rows(flat, Moments.of(flat), stacked)
        self._persistent = [name for name in self._module.state_dict() if name not in self._parameters]
        if tied := [name for name in self._persistent if name not in stacked]:
            raise CannotFuse(f"{', '.join(tied)} are other names of tensors that it has already")
        self._numbers = Numbers.of([template] * num_lanes, data.device)
        self._num_validated = VALIDATED // num_lanes
        self._sums = torch.zeros(3, num_lanes, device=data.device)  # loss * images, hits, norms
        self._try()
        self._kept = self._rows.clone()  # as after the last whole epoch

    @property
    def position(self) -> int | None:
        """The epoch of the stream that all lanes see next; None while all are free."""
        return next((lane.position for lane in self.lanes if lane is not None), None)

    def fill(self, lane: int, recipe: Recipe, model: nn.Module, state: State | None = None) -> None:
        """Put a trial into a free lane: `model`, as it begins, or as `state` (of `take`, or of a Program) says.

        Raises:
            ValueError: the lane is not free, or the trial's stream is not where that of the other lanes is.
        """
        seeded(model)
        epoch = int(state["epoch"]) if state is not None else 0
        filled = Lane(recipe, epoch, {name: tensor.shape for name, tensor in model.state_dict().items()})
        if self.lanes[lane] is not None or self.position not in (None, filled.position):
            raise ValueError(f"lane {lane}: is not free, or its stream is not at epoch {filled.position}")
        self._clear(lane)
        values = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} if state is None else state
        with torch.no_grad():
            for key, place in self._places(self._rows, lane, filled).items():
                if key in values:  # a new trial has no moments
                    place.copy_(torch.as_tensor(values[key]))
            for name, buffer in model.named_buffers():
                if name not in self._persistent:
                    self._rows.others[name][lane].copy_(buffer)
            for name, buffer in self._rows.others.items():
                if name.endswith(".seed") and self._is_dropout(name):
                    buffer[lane].fill_(seed_of(fold(recipe.seed, 1)))
            for kept, now in zip(self._kept.tensors(), self._rows.tensors(), strict=True):
                kept[lane] = now[lane]
        self.lanes[lane] = filled

    def take(self, lane: int) -> dict[str, Tensor | int]:
        """A copy of the trial's state after its last whole epoch; any other lane, or a Program, goes on from it."""
        filled = self._filled(lane)
        places = self._places(self._kept, lane, filled)
        return {"epoch": filled.epoch} | {name: place.detach().clone() for name, place in places.items()}

    def free(self, lane: int) -> None:
        """Empty a lane; what it computes from now on is nobody's."""
        self._clear(lane)
        self.lanes[lane] = None

    def run_epoch(self) -> dict[int, EpochResult]:
        """`train_epoch` and `keep_epoch`."""
        results = self.train_epoch()
        self.keep_epoch()
        return results

    def train_epoch(self) -> dict[int, EpochResult]:
        """Train one epoch in every lane that is not free, then validate; the results by lane."""
        started = time.perf_counter()
        active = {index: lane for index, lane in enumerate(self.lanes) if lane is not None}
        num_steps = self.stream.steps_per_epoch(self.data)
        rates, momenta, first_steps = self._settings(num_steps)
        self._sums.zero_()
        self._module.train()
        for name, layer in self._module.named_modules():
            if isinstance(layer, SeededDropout):
                idle = not bool(self._rows.others[f"{name}.rate"].any())
                if idle != layer.idle:
                    layer.idle, self._graph = idle, None  # another graph
        position = self.position
        assert position is not None, "every lane is free"
        for step, (images, labels) in enumerate(self.stream.batches(self.data, position)):
            heed()
            own = images if self._reads_only else images.clone()  # which others' networks may write to
            with multiplying(self._precision, self.data.device):
                self._advance(own, labels, rates[step], momenta[step], first_steps + step)
        losses, hits, norms = self._sums.cpu().tolist()  # the only wait for the device in an epoch
        with multiplying(EVALUATION, self.data.device):
            validation = self._validated()
        seconds, last_rates = time.perf_counter() - started, rates[-1].tolist()
        results = {}
        for index, lane in active.items():
            loss, norm = losses[index] / self.data.num_images, norms[index] / num_steps
            diverged = not all(map(math.isfinite, (loss, norm, validation[0][index])))
            results[index] = EpochResult(
                epoch=lane.epoch + 1,
                training_loss=loss,
                training_accuracy=hits[index] / self.data.num_images,
                validation_loss=math.nan if diverged else validation[0][index],
                validation_accuracy=math.nan if diverged else validation[1][index],
                learning_rate=last_rates[index],
                gradient_norm=norm,
                images_per_second=self.data.num_images / seconds,
                diverged=diverged,
            )
        return results

    def keep_epoch(self) -> None:
        """Make what the last epoch gave what `take` gives."""
        for kept, now in zip(self._kept.tensors(), self._rows.tensors(), strict=True):
            kept.copy_(now)
        for lane in self.lanes:
            if lane is not None:
                lane.epoch += 1

    def _advance(self, *inputs: Tensor) -> None:
        """One step from the inputs of `_step`; the short batch at the end of an epoch is no part of a graph."""
        if not self._graphed or len(inputs[0]) < self.stream.batch_size:
            self._step(*inputs)
            return
        if self._graph is None:
            self._graph = self._recorded(inputs)
        (self._graph or self._step)(*inputs)

    def _recorded(self, inputs: tuple[Tensor, ...]) -> StepGraph | None:
        """The step as a graph; if it cannot be one, it does step by step what it does."""
        try:
            return StepGraph(self._step, inputs, [*self._rows.tensors(), self._sums])
        except CannotRecord as error:
            self.unrecorded = str(error)
        except torch.OutOfMemoryError:
            if self.data.augmented.num_bytes:  # which make room
                raise
        self._graphed = False
        return None

    def _step(self, images: Tensor, labels: Tensor, rate: Tensor, momentum: Tensor, steps: Tensor) -> None:
        """One update of all lanes from images (B, C, H, W), labels (B,); rate, momentum and steps (K,)."""
        self._begin(steps)
        every = labels.expand(self.num_lanes, -1)  # (K, B)
        whole = len(images) == self.stream.batch_size
        forward = self._compiled if self._compiled is not None and whole else self._forward
        with autocast(self._precision, self.data.device):
            logits = full_precision(forward(images))  # (K, B, k)
            losses = functional.cross_entropy(logits.flatten(0, 1), every.flatten(), reduction="none")  # float32
        loss = losses.view(self.num_lanes, -1).mean(1)  # (K,)
        gradients = torch.autograd.grad(loss.sum(), list(self._parameters.values()), materialize_grads=True)
        with torch.no_grad():
            gradient = torch.cat([g.reshape(self.num_lanes, -1) for g in gradients], 1)  # (K, P)
            norm = gradient.norm(dim=1)  # (K,)
            numbers = self._numbers.at(rate, momentum, steps, norm)
            apply(self._rows.flat, gradient, self._rows.moments, numbers)
            hits = (logits.argmax(-1) == every).sum(1)
            self._sums += torch.stack([loss * len(labels), hits, norm])

    def _validated(self) -> tuple[list[float], list[float]]:
        """Loss and accuracy (K,) on the validation part, many images at once if there is memory for them."""
        if self._num_validated > VALIDATION_BATCH:
            try:
                return self._validate(self._num_validated)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                let_go(error, self.data.device)
        self._num_validated = VALIDATION_BATCH
        return self._validate(VALIDATION_BATCH)

    @torch.no_grad()
    def _validate(self, size: int) -> tuple[list[float], list[float]]:
        """Loss and accuracy (K,), from so many images at once."""
        self._module.eval()
        totals = torch.zeros(2, self.num_lanes, device=self.data.device)
        for raw, labels in zip(
            torch.split(self.data.validation_images, size),
            torch.split(self.data.validation_labels, size),
            strict=True,
        ):
            heed()
            logits = full_precision(self._forward(normalise(raw, self.data.mean, self.data.std)))
            every = labels.expand(self.num_lanes, -1)
            losses = functional.cross_entropy(logits.flatten(0, 1), every.flatten(), reduction="none")
            hits = (logits.argmax(-1) == every).sum(1)
            totals += torch.stack([losses.view(self.num_lanes, -1).sum(1), hits])
        loss, accuracy = (totals / len(self.data.validation_labels)).cpu().tolist()
        return loss, accuracy

    def _forward(self, images: Tensor, assigned: set[str] | None = None) -> Tensor:
        """(B, C, H, W) -> (K, B, k); the names of the tensors that the network replaced by others go to `assigned`."""

        def one(parameters: dict[str, Tensor], others: dict[str, Tensor]) -> Tensor:
            given = {**parameters, **others}
            logits: Tensor = functional_call(self._module, given, (images,))
            if assigned is not None:
                assigned.update(name for name, tensor in {**parameters, **others}.items() if given[name] is not tensor)
            return logits

        logits: Tensor = vmap(one)(self._parameters, self._rows.others)
        return logits

    def _begin(self, steps: Tensor) -> None:
        for layer in self._dropouts:
            layer.uses = 0
        for name, buffer in self._rows.others.items():
            if name.endswith(".step") and self._is_dropout(name):
                buffer.copy_(steps)

    def _settings(self, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rates and momenta (steps, K) of this epoch, and each lane's step (K,) at its beginning; free lanes rest."""
        rates = torch.zeros(num_steps, self.num_lanes, dtype=torch.float64)
        momenta = torch.zeros_like(rates)
        first_steps = torch.zeros(self.num_lanes, dtype=torch.int32)
        recipes = []
        for index, lane in enumerate(self.lanes):
            recipes.append(lane.recipe if lane is not None else None)
            if lane is None:
                continue
            first_steps[index] = lane.epoch * num_steps
            steps = torch.arange(lane.epoch * num_steps, (lane.epoch + 1) * num_steps, dtype=torch.float64)
            setting = schedule_of(lane.recipe)(steps, lane.recipe, num_steps)
            rates[:, index], momenta[:, index] = setting.rate, setting.momentum
        self._numbers.take(Numbers.of(recipes, self.data.device))
        device = self.data.device
        return rates.float().to(device), momenta.float().to(device), first_steps.to(device)

    def _places(self, rows: Rows, lane: int, filled: Lane) -> dict[str, Tensor]:
        """Where the parts of a lane's state are, by their names in the state: the part that its own width fills."""
        places = {f"model.{name}": self._view(rows.flat, name)[lane] for name in self._names}
        places |= {f"model.{name}": rows.others[name][lane] for name in self._persistent}
        for moment, values in zip(BUFFERS[filled.recipe.optimizer], rows.moments.tensors(), strict=False):
            places |= {f"optimizer.{moment}.{name}": self._view(values, name)[lane] for name in self._names}
        return {key: place[tuple(map(slice, filled.shapes[_name(key)]))] for key, place in places.items()}

    def _view(self, rows: Tensor, name: str) -> Tensor:
        """One parameter of all lanes (K, ...), inside rows (K, P)."""
        start, end = self._ranges[name]
        return rows[:, start:end].view(self.num_lanes, *self._shapes[name])

    def _clear(self, lane: int) -> None:
        with torch.no_grad():
            for tensor in self._rows.tensors():
                tensor[lane] = 0

    def _is_dropout(self, buffer: str) -> bool:
        return isinstance(self._module.get_submodule(buffer.rpartition(".")[0]), SeededDropout)

    def _filled(self, lane: int) -> Lane:
        filled = self.lanes[lane]
        if filled is None:
            raise ValueError(f"lane {lane} is free")
        return filled

    def _try(self) -> None:
        """One step on nothing."""
        shape, device = self.data.input_shape, self.data.device
        nothing = torch.zeros(self.num_lanes, device=device)
        images, labels = torch.zeros(2, *shape, device=device), torch.zeros(2, dtype=torch.long, device=device)
        assigned: set[str] = set()
        try:
            for mode in (False, True):
                self._module.train(mode)
                with torch.no_grad():
                    self._forward(images, assigned)
            self._step(images, labels, nothing, nothing, nothing.int())
        except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                raise
            raise refusal(error) from error
        if assigned:  # the new values would be lost
            names = ", ".join(sorted(assigned))
            raise CannotFuse(f"it assigns {names} in its forward pass; change a buffer in place, as copy_ does")
        for lane in range(self.num_lanes):
            self._clear(lane)


def _name(key: str) -> str:
    """`model.NAME` or `optimizer.MOMENT.NAME`: the name."""
    return key.removeprefix("model.") if key.startswith("model.") else key.split(".", 2)[2]
