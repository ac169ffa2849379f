"""How many lanes a GPU gets with `--lanes auto`: found by doubling, kept by device and architecture."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from hpsearch.train.plan import CPU_LANES, FIRST_LANES, MOST_LANES, ROUNDS, LaneCount


def train(count: LaneCount, speed: Callable[[int], float], num_rounds: int, room: Callable[[int], bool]) -> list[int]:
    """Rounds with all lanes in use; the numbers of lanes, in the order in which they were used."""
    numbers = []
    for _ in range(num_rounds):
        numbers.append(count.number)
        count.seen(count.number, speed(count.number), room(count.number))
    return [number for number, _ in groupby(numbers)]


def always(_number: int) -> bool:
    return True


def test_doubles_while_it_pays_and_keeps_what_it_found(tmp_path: Path) -> None:
    def speed(number: int) -> float:
        return 1_000.0 * min(number, 70)  # the device is full with 70 lanes

    cache = tmp_path / "home" / "lanes.json"
    count = LaneCount(None, True, "device, lenet", cache)
    assert train(count, speed, 6 * ROUNDS, always) == [16, 32, 64, 128, 64]
    assert LaneCount(None, True, "device, lenet", cache).number == 64
    assert LaneCount(None, True, "device, 2lp", cache).number == FIRST_LANES
    assert LaneCount(8, True, "device, lenet", cache).number == 8


def test_a_slow_first_round_does_not_count() -> None:
    seen: dict[int, int] = {}

    def speed(number: int) -> float:
        seen[number] = seen.get(number, 0) + 1
        return number if seen[number] > 1 else 1.0

    assert train(LaneCount(None, True), speed, 3 * ROUNDS, always) == [16, 32, 64]


def test_all_groups_of_a_round_count_together() -> None:
    count = LaneCount(None, True)
    for _ in range(ROUNDS):
        count.trained(12, 3_000.0, 1.0)
        count.trained(4, 1_000.0, 3.0)  # the smaller group is the slower one
        count.end_round(has_room=True)
        count.end_round(has_room=True)  # nothing was trained
    assert (count.number, count._speeds) == (32, {16: [1_500.0] * ROUNDS})


def test_rounds_with_empty_lanes_say_nothing() -> None:
    count = LaneCount(None, True)
    for _ in range(10 * ROUNDS):
        count.seen(FIRST_LANES - 1, 1e9, True)
    assert count.number == FIRST_LANES


def test_memory_ends_it(tmp_path: Path) -> None:
    cache = tmp_path / "lanes.json"
    count = LaneCount(None, True, "device, lenet", cache)
    assert train(count, float, 5 * ROUNDS, lambda number: number < 64) == [16, 32, 64]
    assert LaneCount(None, True, "device, lenet", cache).number == 64

    count = LaneCount(None, True, "device, 2lp", cache)
    train(count, float, 2 * ROUNDS, always)  # 64 lanes come next, and do not fit
    assert count.halve(64) == 32
    assert train(count, float, 5 * ROUNDS, always) == [32]
    assert LaneCount(None, True, "device, 2lp", cache).number == 32
    assert count.halve(4) == 2  # the last trials of a study, of which some are large
    assert LaneCount(None, True, "device, 2lp", cache).number == 32


def test_there_is_a_most() -> None:
    assert train(LaneCount(None, True), float, 30 * ROUNDS, always)[-1] == MOST_LANES


@pytest.mark.parametrize("content", ["", "[]", "{", '{"device, lenet": "many"}', '{"device, lenet": 0}'])
def test_a_damaged_cache_is_passed_over(content: str, tmp_path: Path) -> None:
    cache = tmp_path / "lanes.json"
    cache.write_text(content)
    assert LaneCount(None, True, "device, lenet", cache).number == FIRST_LANES


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")
    count = LaneCount(None, True, "device, lenet", tmp_path / "occupied" / "lanes.json")
    assert train(count, float, 5 * ROUNDS, lambda number: number < 32) == [16, 32]


def test_a_cpu_has_a_lane_for_each_core() -> None:
    count = LaneCount(None, False)
    assert 1 <= count.number <= CPU_LANES
    assert train(count, float, 5 * ROUNDS, always) == [count.number]
