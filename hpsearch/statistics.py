"""Statistics of trials over seeds: intervals, paired tests, and a race between configurations.

Everything here is a pure function of the recorded values; `values[candidate][seed]`, the higher the better.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

# How the names of metrics end, and the most that these can be; none is negative. Differences have no bounds.
HIGHEST = {"accuracy": 1.0, "macro_f1": 1.0, "calibration_error": 1.0, "brier": 2.0, "loss": math.inf}

CONFIDENCE = 0.95  # of every interval, and of a race to keep the best
RESOLUTION = 1e-6  # of a recorded value, which training has in float32; what spreads no more does not spread
FIRST_LOOK = 3  # seeds before a race decides for the first time: two differences say too little about their spread


@dataclass(frozen=True)
class Estimate:
    """A mean over `num` seeds with its standard deviation and interval; nan where seeds are too few or all alike."""

    num: int
    mean: float
    std: float  # of single values, n - 1 in the denominator
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """The fields as JSON can hold them, with None for nan."""
        return {key: None if math.isnan(value) else value for key, value in asdict(self).items()}


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and Student's t interval (Student 1908): covers the true mean at the stated rate for normal values.

    Values that are all the same give no interval: accuracies have few decimals, and no spread tells nothing about the
    spread. Of the best of several candidates on the same seeds the mean is somewhat optimistic, and the interval too.
    """
    from scipy.stats import t  # slow to import

    num = len(values)
    mean = float(np.mean(values)) if num else math.nan
    if num < 2:
        return Estimate(num, mean, math.nan, math.nan, math.nan)
    std = float(np.std(values, ddof=1))
    if _alike(values):
        return Estimate(num, mean, std, math.nan, math.nan)
    half = float(t.ppf((1 + confidence) / 2, num - 1)) * std / math.sqrt(num)
    return Estimate(num, mean, std, mean - half, mean + half)


def shown(end: float, metric: str) -> float:
    """An end of an interval: Student's t knows no bounds, so that it is shown at the metric's own if it lies beyond.

    That takes away nothing that the true mean could be; what is recorded stays as it was computed.
    """
    highest = next((high for name, high in HIGHEST.items() if metric.endswith(name)), None)
    return end if highest is None else min(highest, max(0.0, end))


def in_words(found: Mapping[str, Any], metric: str) -> str:
    """A recorded estimate: its mean, and its interval if it has one."""
    if found["low"] is None:
        return f"{found['mean']:.4f}"
    return f"{found['mean']:.4f} ({shown(found['low'], metric):.4f} to {shown(found['high'], metric):.4f})"


def paired_p(worse: Sequence[float], better: Sequence[float]) -> float:
    """One-sided p-value of Student's paired t-test against "`worse` is at least as good as `better`".

    1 if all differences are the same, for which see `estimate`.
    """
    from scipy.stats import t

    differences = np.asarray(better) - np.asarray(worse)
    if len(differences) < 2 or _alike(differences):
        return 1.0
    spread = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return float(t.sf(float(differences.mean()) / spread, len(differences) - 1))


def _alike(values: Sequence[float] | np.ndarray[Any, Any]) -> bool:
    return float(np.std(values, ddof=1)) <= RESOLUTION * max(1.0, float(np.abs(values).max()))


# The race


@dataclass(frozen=True)
class Elimination:
    """Why a candidate is out: after how many seeds, against which one, by which p-value; or because a trial failed."""

    num_seeds: int
    rival: int | None
    p: float
    threshold: float


@dataclass(frozen=True)
class Race:
    """A race as far as the values go: `num_seeds` seeds are known of all that were in it at the time."""

    num_seeds: int
    alive: tuple[int, ...]
    out: dict[int, Elimination] = field(default_factory=dict)
    leader: int | None = None  # the best mean among those alive


def race(values: Sequence[Sequence[float | None]], num_seeds: int, confidence: float = CONFIDENCE) -> Race:
    """Run the race over what is known: None is a value that is not there yet, nan one that will never be.

    After every seed from the third on, each candidate meets the one with the best mean so far in a one-sided paired
    t-test over the seeds that both have. It leaves if p is below its share of 1 - confidence: half of that is for the
    last look, the other half for all looks before it in equal parts, and every look's part is divided by the number of
    rivals (Bonferroni; Dunn 1961). So the best candidate stays with probability `confidence` at least, if differences
    are normal. What is decided after a seed depends on the values of that seed and those before it alone: any number
    of workers that see the values agree, in whatever order they come.

    A candidate with a trial that diverged or failed is out: nobody would choose it.

    Source: races after Maron and Moore, "Hoeffding races", NeurIPS 1993; with paired t-tests as "t-race" in
    López-Ibáñez et al., "The irace package", Operations Research Perspectives 2016.
    """
    alive, out = list(range(len(values))), dict[int, Elimination]()
    known = 0
    for seed in range(num_seeds):
        column = {candidate: values[candidate][seed] for candidate in alive}
        if any(value is None for value in column.values()):
            break
        known = seed + 1
        for candidate, value in column.items():
            if value is not None and math.isnan(value):
                out[candidate] = Elimination(known, None, math.nan, math.nan)
        alive = [candidate for candidate in alive if candidate not in out]
        if len(alive) > 1 and known >= min(FIRST_LOOK, num_seeds):
            lost = _look(values, alive, known, share(known, num_seeds, len(values), confidence))
            out |= lost
            alive = [candidate for candidate in alive if candidate not in lost]
    leader = _leader(values, alive, known) if known and alive else None
    return Race(known, tuple(alive), out, leader)


def share(known: int, num_seeds: int, num_candidates: int, confidence: float = CONFIDENCE) -> float:
    """The p-value below which a candidate leaves after `known` of `num_seeds` seeds."""
    first = min(FIRST_LOOK, num_seeds)
    num_early = num_seeds - first
    level = 1 - confidence
    if num_early:
        level = level / 2 if known == num_seeds else level / 2 / num_early
    return level / max(1, num_candidates - 1)


def _look(
    values: Sequence[Sequence[float | None]], alive: list[int], known: int, threshold: float
) -> dict[int, Elimination]:
    best = _leader(values, alive, known)
    lost = {}
    for candidate in alive:
        if candidate != best:
            p = paired_p(_first(values[candidate], known), _first(values[best], known))
            if p < threshold:
                lost[candidate] = Elimination(known, best, p, threshold)
    return lost


def _leader(values: Sequence[Sequence[float | None]], alive: Sequence[int], known: int) -> int:
    return max(alive, key=lambda candidate: (float(np.mean(_first(values[candidate], known))), -candidate))


def _first(row: Sequence[float | None], known: int) -> list[float]:
    return [float(value) for value in row[:known] if value is not None]


def of_planned(num: int, planned: int | None, lost: int, what: str = " seeds") -> str:
    """How many seeds a mean is over, of how many: what is left when some diverged is the better part of them."""
    if planned in (None, num):
        return f"{num}{what}"
    return f"{num} of {planned}{what}" + (f"; {lost} diverged or failed" if lost else "")
