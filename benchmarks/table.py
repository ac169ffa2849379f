"""What benchmarks/throughput.py prints of the sides on a GPU: a line for each, and the marks."""

from benchmarks.epoch import NUM_TRAIN
from benchmarks.floor import Peaks, Work
from benchmarks.sides import Setup, Timing

MARKS = (("a", 100), ("d", 10), ("f", 1))  # times as many trials an hour as that side
TRIALS_AN_HOUR = 2_000  # of 100 epochs


def heading(setup: Setup, peaks: Peaks, work: Work) -> None:
    precision = "TF32" if setup.tf32 else "float32"
    tf32 = f", TF32 {peaks.tf32 / 1e12:.3g}" if peaks.tf32 else ""
    print(
        f"\n{setup.model}, batch {setup.batch_size}, {precision}; a step of one lane: "
        f"{work.flop / 1e9:.3g} GFLOP, {work.lane_bytes / 1e6:.3g} MB, {work.shared_bytes / 1e6:.3g} MB for all lanes"
    )
    print(f"  the device: float32 {peaks.float32 / 1e12:.3g}{tf32} TFLOP/s, copies {peaks.bandwidth / 1e9:.4g} GB/s")
    columns = ("s/epoch", "images/s", "trials/h", "GB", "floor", "x (a)", "x (d)", "timed")
    print(f"  {'':30s}{''.join(f'{column:>12s}' for column in columns)}", flush=True)


def row(result: Timing, found: list[Timing], floor: float) -> None:
    """One side: the share of the floor, how many times as many trials as (a) and (d), the part of an epoch timed."""
    ratios = "".join(f"{times(result, speed(found, letter)):>12s}" for letter in "ad")
    speeds = f"{result.epoch_seconds:12.3f}{result.images_per_second:12,.0f}{result.trials_an_hour:12,.1f}"
    share, timed = f"{floor / result.epoch_seconds:12.1%}", f"{result.num_images / NUM_TRAIN:12.0%}"
    print(f"  {result.name:30s}{speeds}{result.memory / 1e9:12.2f}{share}{ratios}{timed}", flush=True)


def speed(found: list[Timing], letter: str) -> float | None:
    """The most trials an hour of a side; None if it was not measured."""
    return max((one.trials_an_hour for one in found if one.name.startswith(f"({letter})")), default=None)


def times(result: Timing, other: float | None) -> str:
    return f"{result.trials_an_hour / other:.2f}" if other else "-"


def marks(found: list[Timing]) -> None:
    """What lanes must reach with LeNet-5 on one H200, as workers run them: with graphs."""
    ours = speed([one for one in found if one.name.endswith("graph")], "e")
    wanted = [(f"{factor} x ({letter})", speed(found, letter), factor) for letter, factor in MARKS]
    for name, other, factor in [*wanted, (f"{TRIALS_AN_HOUR:,} trials an hour", 1.0, TRIALS_AN_HOUR)]:
        if ours is None or other is None:
            print(f"  mark {name}: not measured")
        else:
            print(f"  mark {name}: {'met' if ours > factor * other else 'missed'}, {ours / other:,.1f}")
