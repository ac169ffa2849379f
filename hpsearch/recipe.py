"""The recipe: everything that one trial trains with, as one frozen value."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from hpsearch.errors import UsageError


@dataclass(frozen=True)
class Rule:
    """What a hyperparameter is, and which values it may take; `at_least` is included, `above` and `below` are not."""

    kind: type  # int, float or str
    about: str
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    among: tuple[str, ...] = ()  # all names that it may be; empty where a table of the catalogue holds them

    def interval(self) -> str:
        """The rule in words; empty for a name."""
        limits = (("at least", self.at_least), ("above", self.above), ("below", self.below))
        return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)

    def broken_by(self, value: object) -> str | None:
        """The rule that the value breaks, as the end of a sentence; None if it breaks none."""
        if self.kind is str:
            return self._broken_by_name(value)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else int | float):
            return "must be a whole number" if self.kind is int else "must be a number"
        if not math.isfinite(value):
            return "must be finite"
        kept = (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return None if kept else f"must be {self.interval()}"

    def _broken_by_name(self, value: object) -> str | None:
        if not isinstance(value, str):
            return "must be a name in quotes"
        if not self.among or value in self.among:
            return None
        *others, last = map(json.dumps, self.among)
        return f"must be {', '.join(others)} or {last}"


# Every hyperparameter that a study may fix or search: the one home of its type, its limits and its meaning.
RULES = {
    "epochs": Rule(int, "passes over the training part", at_least=1),
    "optimizer": Rule(str, "what turns gradients into steps"),
    "learning_rate": Rule(float, "the initial rate", above=0),
    "peak_learning_rate": Rule(float, "onecycle only: the highest rate, never below the initial one", above=0),
    "scheduler": Rule(str, "how the rate changes over the steps"),
    "gamma": Rule(float, "exponential only: the rate is multiplied by it after every epoch", above=0),
    "momentum": Rule(float, "SGD momentum, or Adam's first beta; onecycle cycles it instead", at_least=0, below=1),
    "weight_decay": Rule(float, "L2 penalty of SGD and Adam, decoupled decay of AdamW", at_least=0),
    "batch_size": Rule(int, "images per step", at_least=1),
    "clip_norm": Rule(float, "largest gradient norm; 0 switches clipping off", at_least=0),
    "precision": Rule(
        str,
        "of the training steps; tf32 is for GPUs, on a CPU it is the same as float32",
        among=("float32", "tf32", "bfloat16"),
    ),
    "augmentation": Rule(str, "how training images are varied"),
    "hidden_width": Rule(int, "units of the first hidden layer; if absent, the published width", at_least=1),
    "dropout": Rule(float, "share of units dropped; if absent, the architecture's own rate", at_least=0, below=1),
    "native_size": Rule(
        int, "side in pixels of the images that the network is made for; if absent, that of the data", at_least=8
    ),
    "start": Rule(
        str, "scratch, or export: the weights of the export that `model.export` names", among=("scratch", "export")
    ),
    "frozen_layers": Rule(
        int, "how many layers, from the first on, are frozen or have a rate of their own", at_least=0
    ),
    "frozen_epochs": Rule(int, "epochs for which they are frozen; from then on they train as well", at_least=0),
    "frozen_rate": Rule(float, "what their learning rate is multiplied by once they train", above=0),
    "seed": Rule(int, "initialisation and dropout; if absent, follows from study seed and trial", at_least=0),
    "stream_seed": Rule(int, "data order and augmentation; if absent, follows from the study seed", at_least=0),
    "stream_offset": Rule(int, "epochs of that stream before the trial's first; set when it joins others", at_least=0),
}


@dataclass(frozen=True)
class Recipe:
    """Model, optimizer, schedule and regularisation of one trial; each field is a hyperparameter of a study.

    Rates are per step; `epochs` counts passes over the training part. Names of `model`, `optimizer`, `scheduler`
    and `augmentation` are keys of the tables MODELS, OPTIMIZERS, SCHEDULES and AUGMENTATIONS.
    """

    model: str
    epochs: int
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    peak_learning_rate: float | None = None  # onecycle only; never below learning_rate
    scheduler: str = "constant"
    gamma: float = 0.95  # exponential only: the rate is multiplied by it after every epoch
    momentum: float = 0.9  # SGD momentum, or Adam's first beta; onecycle cycles it 0.95 -> 0.85 instead
    weight_decay: float = 0.0
    batch_size: int = 64
    clip_norm: float = 0.0  # largest gradient norm; 0 switches clipping off
    precision: str = "float32"  # of forward and backward passes; parameters are float32, and so is validation
    augmentation: str = "none"
    hidden_width: int | None = None  # None: the architecture's published width
    dropout: float | None = None  # None: the architecture's own rate
    native_size: int | None = None  # None: that of the data; the network pools larger images down to it
    start: str = "scratch"  # or "export": the weights of the export that the study names
    frozen_layers: int = 0  # from the first layer on
    frozen_epochs: int = 0  # for so long
    frozen_rate: float = 1.0  # and then with this multiple of the learning rate
    seed: int = 0  # initialisation and dropout
    stream_seed: int = 0  # data order and augmentation; trials that share it can share the work
    stream_offset: int = 0  # epochs of that stream before the trial's first

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            value = getattr(self, name)
            complaint = None if value is None and name in ABSENT else rule.broken_by(value)
            if complaint:
                raise UsageError(f"recipe: {name} = {value!r}: {complaint}")
        if self.peak_learning_rate is not None and self.peak_learning_rate < self.learning_rate:
            rule_text = f"must not be below learning_rate = {self.learning_rate!r}"
            raise UsageError(f"recipe: peak_learning_rate = {self.peak_learning_rate!r}: {rule_text}")

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return dict(vars(self))

    def identity(self) -> dict[str, Any]:
        """What keys of checkpoints and weights are made of: `as_dict` without what `LATER` leaves out."""
        return {name: value for name, value in vars(self).items() if (name, value) not in LATER.items()}


ABSENT = ("peak_learning_rate", "hidden_width", "dropout", "native_size")  # may be None: not set
# Fields that are younger than what is stored, at the value that was meant when there was no choice: keys stay the same.
LATER = {"precision": "float32"}


def fold(*numbers: int) -> int:
    """One seed from several numbers: 63 bits, the same on every machine and Python version.

    BLAKE2b of the decimal text, so that neighbouring inputs give unrelated seeds.
    """
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
