"""Made-up studies of any size, written through the ledger as workers would write them; benchmarks and tests use them.

Run: python benchmarks/filling.py URL NAME NUM_TRIALS NUM_EPOCHS
"""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the code beside this file, not an installed one

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from hpsearch.search.pruners import make_pruner, rungs
from hpsearch.spec import StudySpec, parse
from hpsearch.storage import fleet, ledger
from hpsearch.storage.events import FAILED, Happening
from hpsearch.storage.leases import Lease
from hpsearch.storage.open import Database, create
from hpsearch.storage.studies import RECIPE_KEY, LoadedStudy, create_study, load_study

LEASE_SECONDS = 3600.0
BATCH = 500  # trials that train together
OWNER = "made-up:1:0"

Trials = list[tuple[Lease, dict[str, object]]]  # with what each trains

STUDY = """
name = "{name}"
description = "A made-up study: how do these pages look?"
[model]
name = "lenet"
[data]
name = "digits"
[training]
epochs = {epochs}
[space]
learning_rate = {{ low = 1e-4, high = 1e-1, log = true }}
optimizer = ["sgd", "adam", "adamw"]
momentum = {{ low = 0.5, high = 0.98, when = {{ optimizer = "sgd" }} }}
weight_decay = {{ low = 1e-6, high = 1e-2, log = true }}
batch_size = [32, 64, 128, 256]
augmentation = ["none", "paper", "crop-flip"]
[pruner]
name = "asha"
[budget]
trials = {trials}
"""

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "optimizer": CategoricalDistribution(("sgd", "adam", "adamw")),
    "momentum": FloatDistribution(0.5, 0.98),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "batch_size": CategoricalDistribution((32, 64, 128, 256)),
    "augmentation": CategoricalDistribution(("none", "paper", "crop-flip")),
}


class MadeUp:
    """A study whose trials learn along made-up curves; the same seed gives the same study."""

    def __init__(self, database: Database, study: LoadedStudy, *, prune: bool, seed: int = 0) -> None:
        self.database, self.study, self.random = database, study, random.Random(seed)
        self.rungs = sorted(rungs(make_pruner(study.spec)) or []) if prune else []

    def fill(self, num: int, leave_running: int = 0) -> Trials:
        """Train `num` trials; the last of them stay running, after half of their epochs."""
        running: Trials = []
        while num > 0:
            drawn = self.start(min(num, BATCH))
            num -= len(drawn)
            stay = leave_running if num == 0 else 0
            running += drawn[len(drawn) - stay :]
            self._train(drawn, stay)
        return running

    def start(self, num: int) -> Trials:
        """Start trials, and draw up what they train."""
        study = self.study
        taken = ledger.take(self.database, study.study_id, num, OWNER, LEASE_SECONDS, study.plan)
        drawn = [(lease, self._recipe(lease.number)) for lease in taken.leases]
        rows = [ledger.Drawn(lease, self._params(r), {RECIPE_KEY: r}, {}, str(lease.trial_id)) for lease, r in drawn]
        ledger.set_up(self.database, study.study_id, rows)
        return drawn

    def report(self, drawn: Trials, epoch: int) -> None:
        """Record one epoch of trials."""
        reports = []
        for lease, recipe in drawn:
            metrics = curve(recipe, epoch, self.study.spec.max_epochs, lease.number)
            reports.append(ledger.Report(lease, epoch, metrics[self.study.spec.objective.metric], metrics, 1.7))
        ledger.report(self.database, reports, LEASE_SECONDS)

    def beat(self, state: str = fleet.TRAINING) -> str:
        """A sign of life of the made-up worker; what people want of the study."""
        worker = fleet.Worker(OWNER, "made-up", 1, "cpu")
        return fleet.beat(self.database, worker, fleet.Sign(self.study.study_id, state, 12_345.6, 0.012))

    def _train(self, drawn: Trials, stay: int) -> None:
        """Train trials to their last epochs and end them; the last `stay` go half way."""
        longest = self.study.spec.max_epochs
        last = {
            lease.trial_id: next((rung for rung in self.rungs if self.random.random() < 0.55), longest)
            for lease, _ in drawn
        }
        last |= {lease.trial_id: longest // 2 for lease, _ in drawn[len(drawn) - stay :]}
        for epoch in range(1, longest + 1):
            if alive := [(lease, recipe) for lease, recipe in drawn if epoch <= last[lease.trial_id]]:
                self.report(alive, epoch)
        ended = drawn[: len(drawn) - stay]
        ledger.finish(self.database, [self._end(lease, recipe, last[lease.trial_id]) for lease, recipe in ended])

    def _end(self, lease: Lease, recipe: dict[str, object], last: int) -> ledger.End:
        value = curve(recipe, last, self.study.spec.max_epochs, lease.number)[self.study.spec.objective.metric]
        if lease.number % 97 == 41:
            event = Happening(FAILED, "RuntimeError: a made-up failure")
            return ledger.End(lease, TrialState.FAIL, None, {ledger.REASON_KEY: event.text}, event=event)
        if last < self.study.spec.max_epochs:
            return ledger.End(lease, TrialState.PRUNED, value, {ledger.REASON_KEY: "pruned by asha"})
        return ledger.End(lease, TrialState.COMPLETE, value)

    def _recipe(self, number: int) -> dict[str, object]:
        drawn: dict[str, object] = {
            "learning_rate": 10 ** self.random.uniform(-4, -1),
            "optimizer": self.random.choice(("sgd", "adam", "adamw")),
            "momentum": self.random.uniform(0.5, 0.98),
            "weight_decay": 10 ** self.random.uniform(-6, -2),
            "batch_size": self.random.choice((32, 64, 128, 256)),
            "augmentation": self.random.choice(("none", "paper", "crop-flip")),
        }
        if drawn["optimizer"] != "sgd":
            del drawn["momentum"]
        return self.study.spec.recipe(drawn, number, 1).as_dict()

    def _params(self, recipe: dict[str, object]) -> dict[str, tuple[float, BaseDistribution]]:
        names = [name for name in DISTRIBUTIONS if name != "momentum" or recipe["optimizer"] == "sgd"]
        return {name: (DISTRIBUTIONS[name].to_internal_repr(recipe[name]), DISTRIBUTIONS[name]) for name in names}


def curve(recipe: dict[str, object], epoch: int, epochs: int, number: int) -> dict[str, float]:
    """One epoch's metrics of a trial that learns as such trials do."""
    rate = float(str(recipe["learning_rate"]))
    good = math.exp(-((math.log10(rate) + 2.2) ** 2) / 0.8) * (1.0 if recipe["augmentation"] != "none" else 0.85)
    noise = math.sin(1000.0 * number + 7.0 * epoch) * 0.006
    learned = 1 - math.exp(-3.0 * epoch / epochs)
    accuracy = 0.01 + 0.40 * good * learned + noise
    loss = 4.6 - 2.4 * good * learned - 4 * noise
    return {
        "training_loss": loss * 0.93,
        "training_accuracy": accuracy * 1.1 + 0.01,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
        "learning_rate": rate * (1 + math.cos(math.pi * epoch / epochs)) / 2,
        "gradient_norm": 1.5 + good * epoch / epochs,
        "images_per_second": 12_000 + 300 * math.sin(epoch + number),
    }


def made_up(database: Database, name: str, num_trials: int, epochs: int, *, prune: bool = True) -> MadeUp:
    """A new study without trials."""
    spec: StudySpec = parse(STUDY.format(name="made-up", epochs=epochs, trials=num_trials), "made-up")
    create_study(database, spec, name)
    return MadeUp(database, load_study(database, name), prune=prune)


def main(arguments: list[str]) -> Iterator[str]:
    """Fill a study, and say so."""
    url, name, trials, epochs = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    with create(url) as database:
        made_up(database, name, trials, epochs).fill(trials, leave_running=min(4, trials // 10))
    yield f"study {name}: {trials} trials of {epochs} epochs"


if __name__ == "__main__":
    for line in main(sys.argv[1:]):
        print(line)
