"""How good predictions are: accuracy, macro F1, per class, confusions and calibration, from probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of equal width, for the calibration error, as in Guo et al.

Probabilities = NDArray[np.float64]  # (N, k), rows sum to 1
Labels = NDArray[np.int64]  # (N,)


@dataclass(frozen=True)
class Scores:
    """Of one set of predictions; `confusion[true][predicted]` counts images.

    `calibration_error` is the expected calibration error, `reliability` a row for each bin that holds images: mean
    confidence, accuracy, number. `log_loss` in nats, `brier` summed over the classes.
    Source: Guo et al., "On calibration of modern neural networks", ICML 2017; Brier 1950.
    """

    accuracy: float
    macro_f1: float
    precision: tuple[float, ...]
    recall: tuple[float, ...]  # of a class: the accuracy on its images
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    log_loss: float
    brier: float
    reliability: tuple[tuple[float, float, int], ...]


def scores(probabilities: Probabilities, labels: Labels) -> Scores:
    """Score predictions; a class that is never predicted has precision 0."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    classes = np.arange(num_classes)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    confidence, hits = probabilities.max(1), predicted == labels
    reliability = _reliability(confidence, hits)
    gap = sum(num * abs(sure - right) for sure, right, num in reliability) / len(labels)
    own = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1.0)
    wanted = np.eye(num_classes)[labels]
    return Scores(
        accuracy=float(hits.mean()),
        macro_f1=float(f1.mean()),
        precision=tuple(precision.tolist()),
        recall=tuple(recall.tolist()),
        confusion=tuple(map(tuple, confusion_matrix(labels, predicted, labels=classes).tolist())),
        calibration_error=float(gap),
        log_loss=float(-np.log(own).mean()),
        brier=float(((probabilities - wanted) ** 2).sum(1).mean()),
        reliability=reliability,
    )


def coarse(probabilities: Probabilities, labels: Labels, of: Labels) -> tuple[float, tuple[tuple[int, ...], ...]]:
    """Accuracy and confusion between superclasses: that of the predicted class counts; `of` (k,) names each one's."""
    from sklearn.metrics import confusion_matrix

    true, predicted = of[labels], of[probabilities.argmax(1)]
    confusion = confusion_matrix(true, predicted, labels=np.arange(of.max() + 1))
    return float((true == predicted).mean()), tuple(map(tuple, confusion.tolist()))


def summed(confusions: Sequence[Sequence[Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
    """The counts of several confusion matrices together."""
    return tuple(map(tuple, np.sum([np.asarray(confusion) for confusion in confusions], axis=0).tolist()))


def _reliability(confidence: NDArray[np.float64], hits: NDArray[np.bool_]) -> tuple[tuple[float, float, int], ...]:
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = ((confidence[place == b], hits[place == b]) for b in range(BINS))
    return tuple((float(c.mean()), float(h.mean()), len(c)) for c, h in rows if len(c))
