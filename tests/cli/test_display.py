"""How long a study will still take, and what comes next, as the command that trains says it."""

from pathlib import Path

import pytest

from hpsearch.cli.display import Watch
from hpsearch.events import EpochDone, StudyOpened, TrialEnded, TrialStarted
from tests.cli.inside import hpsearch
from tests.studies import TINY


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Of a study of 12 trials of 60 epochs, which began 100 seconds ago with six lanes."""
    clock = iter([0.0])
    monkeypatch.setattr("hpsearch.cli.display.time.monotonic", lambda: next(clock, 100.0))
    watch = Watch()
    watch.take(0, StudyOpened("long", "validation_accuracy", "cpu", 12, 0, None, None))
    for trial in range(6):
        watch.take(0, TrialStarted(trial, 60))
    return watch


def train(watch: Watch, trial: int, epochs: int) -> None:
    for epoch in range(1, epochs + 1):
        watch.take(0, EpochDone(trial, epoch, 60, 0.1, 1.0))


def end(watch: Watch, trial: int, state: str, epoch: int, finished: int) -> str:
    return watch.take(0, TrialEnded(trial, state, epoch, 0.1, "", finished, 12, trial, 0.1)) or ""


def test_a_process_that_starts_again_shows_no_trials_of_the_one_that_was_killed(watch: Watch) -> None:
    watch.take(1, TrialStarted(6, 60))
    watch.take(0, StudyOpened("long", "validation_accuracy", "cpu", 12, 0, None, None))
    assert list(watch.rows) == [(1, 6)]


def test_nothing_is_known_before_the_first_epoch(watch: Watch) -> None:
    assert watch.time_left() == "time left unknown"


def test_before_a_trial_ends_all_are_taken_to_go_on_to_the_end(watch: Watch) -> None:
    for trial in range(6):
        train(watch, trial, 10)
    assert watch.time_left() == "at most 18 min 20 s left"  # 60 of 720 epochs took 100 s


def test_trials_that_run_count_as_far_as_they_are(watch: Watch) -> None:
    for trial in range(6):
        train(watch, trial, 60)
    for number in range(3):
        end(watch, number, "COMPLETE", 60, number + 1)
    assert watch.time_left() == "about 1 min 40 s left"  # half of all epochs are done, though a quarter of the trials


def test_trials_are_as_long_as_those_that_ended(watch: Watch) -> None:
    for trial in range(6):
        train(watch, trial, 15)
        end(watch, trial, "PRUNED", 15, trial + 1)
    assert watch.time_left() == "about 1 min 40 s left"


def test_workers_elsewhere_count(watch: Watch) -> None:
    for trial in range(3):
        train(watch, trial, 60)
        end(watch, trial, "COMPLETE", 60, 2 * (trial + 1))
    assert watch.time_left() == "about 1 min 40 s left"


def test_what_fails_at_once_says_nothing_about_the_time(watch: Watch) -> None:
    for trial in range(5):
        end(watch, trial, "FAIL", 0, trial + 1)
    assert watch.time_left() == "time left unknown"
    train(watch, 5, 60)
    assert watch.time_left() == "at most 10 min 0 s left"


def test_with_another_limit_it_may_end_earlier(watch: Watch) -> None:
    watch.limited = True
    for trial in range(6):
        train(watch, trial, 15)
        end(watch, trial, "PRUNED", 15, trial + 1)
    assert watch.time_left() == "at most 1 min 40 s left"


def test_a_study_that_another_limit_ends_has_ended(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml", "--set", "budget.epochs=6", "--set", "pruner.name=none")
    said = hpsearch(tmp_path, "worker", "tiny", "--device", "cpu", "--lanes", "1").stdout
    assert "1 of 6 trials ended" in said
    assert ", at most " in said
    assert "\nbest\n" in said
    assert "so far" not in said
    assert "next: hpsearch best tiny" in said


def test_a_study_that_goes_on_says_how(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    hpsearch(tmp_path, "create-study", "tiny.toml")
    said = hpsearch(tmp_path, "worker", "tiny", "--device", "cpu", "--lanes", "1", "--max-trials", "1").stdout
    assert ", about " in said
    assert "best of study tiny so far" in said
    assert "next: hpsearch worker tiny" in said
