"""hpsearch: hyperparameter search for small image classifiers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hpsearch.exported import Exported


def load_export(folder: "str | Path") -> "Exported":
    """The network of an export, ready to predict: `network(network.preprocess(image))` are logits.

    Raises hpsearch.errors.UsageError if the export is damaged or of a newer hpsearch.
    """
    from hpsearch.exported import load_export as load  # imports torch

    return load(folder)
