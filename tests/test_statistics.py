"""Statistics: the same as scipy's, intervals that cover at their stated rate, and a race that keeps the best."""

import math

import numpy as np
import pytest
from scipy import stats

from hpsearch.cli.confirm import interval
from hpsearch.statistics import FIRST_LOOK, estimate, paired_p, race, share

NAN = math.nan


def test_estimate_is_scipys_interval() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.02, 9).tolist()
    found = estimate(values)
    low, high = stats.t.interval(0.95, 8, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert found.num == 9


def test_an_interval_of_accuracies_is_shown_within_what_they_can_be() -> None:
    """Student's t knows no bounds."""
    found = estimate([0.9, 1.0])
    assert found.low < 0.5
    assert found.high > 1.5
    assert interval(found, "validation_accuracy") == f"{found.low:.3f} to 1.000"
    assert interval(found, "validation_loss") == f"{found.low:.3f} to {found.high:.3f}"
    assert interval(estimate([-0.4, 0.4])) == "-5.082 to 5.082"  # differences
    assert interval(estimate([0.0, 0.4]), "accuracy").startswith("0.000 to ")


def test_too_few_seeds_have_no_interval() -> None:
    assert math.isnan(estimate([0.5]).low)
    assert estimate([0.5]).mean == 0.5
    assert math.isnan(estimate([]).mean)


def test_paired_p_is_scipys() -> None:
    generator = np.random.default_rng(1)
    worse, better = generator.normal(0.5, 0.1, 7), generator.normal(0.55, 0.1, 7)
    expected = stats.ttest_rel(better, worse, alternative="greater").pvalue
    assert paired_p(worse.tolist(), better.tolist()) == pytest.approx(expected, rel=1e-12)


def test_differences_without_spread_decide_nothing() -> None:
    for kind in (np.float64, np.float32):  # training counts in float32: 45/50 - 44/50 is not 46/50 - 45/50
        worse, better = (np.array(right, kind) / kind(50) for right in ((44, 45, 46), (45, 46, 47)))
        recorded = worse.astype(float).tolist(), better.astype(float).tolist()
        assert paired_p(*recorded) == 1.0
        assert race(recorded, 3).alive == (0, 1)
        leads = estimate([b - a for a, b in zip(*recorded, strict=True)])
        assert math.isnan(leads.low)
        assert leads.mean == pytest.approx(0.02, abs=1e-6)
        assert math.isnan(estimate([0.9, 0.9]).high)
    assert paired_p([0.5], [0.9]) == 1.0
    differing = [0.5, 0.5, 0.5 + 1 / 50_000]  # one image of very many
    assert estimate(differing).low < 0.5 < estimate(differing).high


@pytest.mark.parametrize("num", [3, 5, 15])
def test_intervals_cover_at_their_stated_rate(num: int) -> None:
    generator = np.random.default_rng(num)
    found = [estimate(generator.normal(0.3, 0.02, num).tolist()) for _ in range(4000)]
    covered = np.mean([one.low <= 0.3 <= one.high for one in found])
    assert 0.938 <= covered <= 0.962  # 0.95 and 3.5 standard errors of 4,000 draws


# The race


def table(generator: np.random.Generator, kind: str, num: int, seeds: int) -> tuple[list[list[float]], set[int]]:
    """Values of `num` candidates, and which of them are truly best."""
    means = np.full(num, 0.5)
    best = set(range(num))
    if kind != "equal":
        means -= 0.01 * np.arange(num)
        best = {0}
    shared = generator.normal(0, 0.02, seeds)  # what a seed does to all candidates
    noise = generator.normal(0, 0.01, (num, seeds))
    if kind == "unequal spread":
        noise *= np.linspace(4.0, 0.5, num)[:, None]  # the best one varies most
    if kind == "heavy tails":
        noise = generator.standard_t(3, (num, seeds)) * 0.008
    values = means[:, None] + shared + noise
    if kind == "few images":
        values = (np.round(values * 50) / 50).astype(np.float32).astype(float)  # as they are recorded
    return values.tolist(), best


KINDS = ["equal", "near", "unequal spread", "heavy tails", "few images"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num", "seeds"), [(6, 8), (3, 3)])
def test_the_best_stays_in_95_of_100(kind: str, num: int, seeds: int) -> None:
    """Of equal candidates all are best, and one of them, chosen beforehand, must stay."""
    generator = np.random.default_rng(KINDS.index(kind))
    kept = []
    for _ in range(500):
        values, _ = table(generator, kind, num, seeds)
        kept.append(0 in race(values, seeds).alive)
    # Equal ones come to the bound itself, 0.95; three standard errors of 500 draws are 0.03.
    assert np.mean(kept) >= (0.92 if kind == "equal" else 0.95)


def test_losers_leave_early() -> None:
    """Two points behind with one point of noise, over 10 seeds: nearly always out, and most of them before the end."""
    generator = np.random.default_rng(3)
    out_after = []
    for _ in range(200):
        values = generator.normal([[0.5], [0.44], [0.44], [0.44]], 0.01, (4, 10))
        found = race(values.tolist(), 10)
        out_after += [found.out[one].num_seeds if one in found.out else 99 for one in (1, 2, 3)]
    assert np.mean(np.array(out_after) <= 10) >= 0.99
    assert np.mean(np.array(out_after) <= 6) >= 0.9


def test_decisions_follow_from_complete_seeds_in_whatever_order() -> None:
    """What is known of later seeds changes nothing, and a missing value of an earlier one holds everything up."""
    values = np.random.default_rng(4).normal([[0.5], [0.4], [0.49]], 0.005, (3, 6)).tolist()
    whole = race(values, 6)
    for known in range(7):
        for extra in (None, 0.9):  # a worker that is ahead
            partial = [row[:known] + [None] * (6 - known) for row in values]
            if extra is not None and known + 1 < 6:
                partial[1][known + 1] = extra
            found = race(partial, 6)
            assert found.num_seeds == known
            expected = {c: e for c, e in whole.out.items() if e.num_seeds <= known}
            assert found.out == expected
    assert 1 in whole.out


def test_nobody_waits_for_one_that_is_out() -> None:
    values = np.random.default_rng(5).normal([[0.5], [0.2], [0.49]], 0.005, (3, 6)).tolist()
    out_after = race(values, 6).out[1].num_seeds
    values[1][out_after:] = [None] * (6 - out_after)
    assert race(values, 6).num_seeds == 6


def test_a_trial_that_failed_puts_its_candidate_out() -> None:
    found = race([[0.5, 0.5], [NAN, 0.9], [0.4, 0.41]], 2)
    assert found.out[1].rival is None
    assert found.leader == 0
    assert race([[NAN], [NAN]], 1).leader is None


def test_shares_add_up_to_what_may_go_wrong() -> None:
    for num_seeds in (2, 3, 5, 15):
        looks = range(min(FIRST_LOOK, num_seeds), num_seeds + 1)
        total = sum(share(known, num_seeds, 7) * 6 for known in looks)
        assert total == pytest.approx(0.05)
