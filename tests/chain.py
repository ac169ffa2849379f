"""A small search and everything after it, made once for the tests of confirmation, export, transfer and report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpsearch import confirm
from hpsearch.interrupt import Interruption
from hpsearch.settings import Settings
from hpsearch.spec import parse
from hpsearch.storage.open import Database
from hpsearch.storage.studies import LoadedStudy, create_study, load_study
from hpsearch.worker import run

SMALL = """
name = "small"
[model]
name = "lenet"
[data]
name = "digits:0-4"
image_size = 16
[training]
epochs = 3
[space]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
momentum = { low = 0.5, high = 0.9 }
[pruner]
name = "none"
[budget]
trials = 4
[[first]]
learning_rate = 0.002
momentum = 0.5
"""


@dataclass(frozen=True)
class Chain:
    """A finished search and its finished confirmation."""

    database: Database
    settings: Settings

    @property
    def search(self) -> LoadedStudy:
        return load_study(self.database, "small")

    @property
    def confirmation(self) -> LoadedStudy:
        return load_study(self.database, "small-confirm")

    def work(self, name: str) -> None:
        list(run(self.database, name, self.settings, Interruption()))


def silent(_text: str) -> None:
    """Where progress is not looked at."""


def make(database: Database, home: Path, changes: Sequence[tuple[str, str]] = ()) -> Chain:
    """Search and confirm: 4 trials, then 4 candidates over 3 seeds."""
    text = SMALL
    for old, new in changes:
        text = text.replace(old, new, 1)
    chain = Chain(database, Settings(storage_url="", home=home, data_dir=None, device="cpu"))
    create_study(database, parse(text, "small.toml"), "small")
    chain.work("small")
    confirm.create(database, chain.search, 2, 3)
    chain.work("small-confirm")
    return chain
