"""Small studies for tests, as TOML."""

from pathlib import Path

from hpsearch import catalogue
from hpsearch.storage.open import create
from hpsearch.storage.studies import create_study

TINY = """
name = "tiny"
[model]
name = "2lp"
[data]
name = "digits"
image_size = 8
[training]
epochs = 3
hidden_width = 16
[space]
learning_rate = { low = 1e-3, high = 1e-1, log = true }
optimizer = ["sgd", "adam"]
momentum = { low = 0.5, high = 0.9, when = { optimizer = "sgd" } }
[pruner]
name = "asha"
[budget]
trials = 6
[[first]]
optimizer = "sgd"
learning_rate = 0.01
momentum = 0.9
"""

# Three candidates over five seeds: one that learns, one nearly as good, one that cannot learn at all.
CANDIDATES = """
name = "three"
seeds = 5
[model]
name = "2lp"
[data]
name = "digits:0-4"
image_size = 8
[training]
epochs = 2
hidden_width = 16
[pruner]
name = "race"
[[candidate]]
label = "good"
learning_rate = 0.05
[[candidate]]
label = "as good"
learning_rate = 0.04
batch_size = 32
[[candidate]]
label = "stuck"
learning_rate = 1e-9
"""


def quick(name: str, num_trials: int, epochs: int, *space: str) -> str:
    """A study whose epochs take milliseconds, and of which nothing is pruned; `space` are lines of its section."""
    lines = ("learning_rate = { low = 1e-3, high = 1e-1, log = true }", *space)
    return f"""
name = "{name}"
[model]
name = "3lp"
[data]
name = "digits"
image_size = 8
[training]
epochs = {epochs}
[space]
{chr(10).join(lines)}
[sampler]
name = "random"
[pruner]
name = "none"
[budget]
trials = {num_trials}
"""


def create_as(name: str, url: str, path: Path, *overrides: str) -> None:
    """The study of a file under a name that `create-study` would refuse; a database may hold any."""
    with create(url) as database:
        create_study(database, catalogue.read(str(path), overrides), name)
