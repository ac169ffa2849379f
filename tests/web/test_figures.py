"""What pages draw and say, over made-up trials: counts against their definitions, and how much is sent."""

import gzip
import json
import math
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update
from werkzeug.test import Client

from benchmarks import filling
from benchmarks.filling import made_up
from hpsearch.artifacts import FolderCheckpoints, study_prefix, trial_key
from hpsearch.cli.main import main
from hpsearch.sections import Budget
from hpsearch.space import Choice, Float
from hpsearch.storage.open import create
from hpsearch.storage.studies import SPEC_KEY, Progress, load_study, ranked
from hpsearch.storage.studies import progress as progress_of
from hpsearch.storage.tables import LEASES
from hpsearch.web import figures, notes, queries, standing, study_pages, trial_pages, words
from hpsearch.web import source as sources
from hpsearch.web.live import MAX_PERIOD_SECONDS, Content, Live
from hpsearch.web.queries import TrialRow
from hpsearch.web.source import Source
from tests.web.serving import HOST, Opener, local, settings_for


def row(number: int, state: str, value: float | None, epoch: int, seconds: float = 10.0, owner: str = "a") -> TrialRow:
    return TrialRow(100 + number, number, state, value, epoch, seconds, f"host:1:{owner}", 1, 0)


def progress(**known: int | float | str | None) -> Progress:
    given = {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0, "abandoned": 0, "max_trials": 10}
    rest = {"state": "running", "startable": 5, "reason": "", "best_number": None, "best_value": None}
    return Progress(**(given | rest | known))  # type: ignore[arg-type]


def test_many_trials_are_thinned_and_none_that_matters_is_lost() -> None:
    trials = [row(n, "COMPLETE" if n % 3 == 0 else "PRUNED", (n * 37 % 101) / 100, 5) for n in range(5000)]
    trials += [row(n, "RUNNING", None, 3) for n in range(5000, 5010)]
    drawn, best = figures.chosen(trials, True)
    numbers = {trial.number for trial in drawn}
    assert len(drawn) == figures.MAX_CURVES
    assert best is not None
    assert best.value == 1.0
    assert {trial.number for trial in figures.ranked(trials, True)[:50]} <= numbers
    assert set(range(5000, 5010)) <= numbers
    assert figures.evenly(range(1000), 3) == [0, 500, 999]
    assert len(figures.thinned([(n, 0.0) for n in range(999)])) == figures.MAX_EPOCHS_DRAWN


def test_a_curve_of_one_point_is_a_dot() -> None:
    trials = [
        row(0, "PRUNED", 0.1, 1),
        row(1, "COMPLETE", 0.4, 3),
        row(2, "COMPLETE", 0.3, 3),
        row(3, "PRUNED", 0.1, 2),
    ]
    values = {
        100: [(1, 0.1)],
        101: [(1, 0.2), (2, 0.3), (3, 0.4)],
        102: [(1, 0.1), (2, None), (3, 0.3)],
        103: [(1, None)],
    }
    drawn = figures.curves(trials, trials[1], values, 1, "validation_accuracy")["traces"]
    found = {(trace["meta"]["role"], trace["mode"]): trace for trace in drawn}
    assert set(found) == {
        ("faint", "lines"),
        ("faint", "markers"),
        ("plain", "lines"),
        ("plain", "markers"),
        ("best", "lines"),
    }
    dots = [found[role, "markers"] for role in ("faint", "plain")]
    assert [(one["x"], one["y"], one["customdata"]) for one in dots] == [
        ([1], [0.1], [0]),
        ([1, 3], [0.1, 0.3], [2, 2]),
    ]
    colours = [trace["marker"]["color"] for trace in notes.painted("s", {"traces": dots, "layout": {}})["data"]]
    assert colours == [notes.COLOURS["faint"], notes.COLOURS["plain"]]


def test_rungs_count_who_reached_them_and_who_went_on() -> None:
    trials = [
        row(0, "COMPLETE", 0.5, 9),
        row(1, "PRUNED", 0.1, 1),
        row(2, "PRUNED", 0.2, 3),
        row(3, "RUNNING", None, 3),
    ]
    drawn = figures.rungs(trials, {1, 3}, 9)
    went_on, stopped = drawn["traces"][0]["y"], drawn["traces"][1]["y"]
    assert went_on == [3, 1, 1]
    assert stopped == [1, 2, 0]


def test_the_best_so_far_follows_the_direction() -> None:
    trials = [row(n, "COMPLETE", value, 1) for n, value in enumerate([0.3, 0.1, 0.5, 0.4, 0.05])]
    assert figures.history(trials, "validation_accuracy", True)["traces"][-1]["y"] == [0.3, 0.5, 0.5]
    assert figures.history(trials, "validation_loss", False)["traces"][-1]["y"] == [0.3, 0.1, 0.05, 0.05]


def test_an_infinite_value_is_none(client: Opener, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Optuna's own API records one."""
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        study = made_up(database, "s", 8, 2, prune=False)
        running = study.fill(5, leave_running=1)
        study.study.optuna_study.tell(running[0][0].number, math.inf)
        best = ranked(study.study)[0].number
        assert len(ranked(study.study)) == 4
        assert progress_of(database, study.study).best_number == best
    asker = client(settings, local())
    for path in ("", "?live=1", "/best", "/trials?sort=value", "/trial/4?live=1"):
        assert asker.get(f"/hpsearch/study/1{path}", headers={"Host": HOST}).status_code == 200, path
    page = asker.get("/hpsearch/study/1/best", headers={"Host": HOST}).text
    assert re.findall(r">trial (\d+)</a>", page)[0] == str(best)
    assert "trial 4<" not in page
    with pytest.raises(SystemExit):
        main(["best", "s", "--json", "--storage", settings.storage_url])
    assert json.loads(capsys.readouterr().out)["best"][0]["number"] == best


def test_parallel_coordinates_place_values_on_their_axes() -> None:
    space = {"rate": Float(1e-4, 1e-2, log=True), "kind": Choice(("a", "b", "c")), "other": Float(0.0, 1.0)}
    trials = [row(0, "COMPLETE", 0.2, 1), row(1, "COMPLETE", 0.4, 1)]
    recipes = {100: {"rate": 1e-3, "kind": "c", "other": None}, 101: {"rate": 1e-2, "kind": "a", "other": 0.25}}
    worst, best = figures.parallel(trials, recipes, space, "validation_accuracy", True)["traces"]
    assert worst["x"] == [0, 1, 3]
    assert worst["y"] == pytest.approx([0.5, 1.0, 0.0])
    assert best["y"] == pytest.approx([1.0, 0.0, 0.25, 1.0])
    assert (worst["meta"]["at"], best["meta"]["at"]) == (0.0, 1.0)
    for maximize in (True, False):  # of equal values each is the best
        alone = figures.parallel(trials[:1], recipes, space, "validation_accuracy", maximize)
        assert (alone["traces"][0]["y"][-1], alone["traces"][0]["meta"]["at"]) == (0.5, 1.0)
        assert alone["layout"]["scales"][-1] == [(0.5, "20.00 %")]


def test_time_left() -> None:
    trials = [row(n, "COMPLETE", 0.1, 5, 30.0) for n in range(4)] + [
        row(n, "RUNNING", None, 2, 10.0, f"{n}") for n in (4, 5)
    ]
    only_trials = Budget(trials=10)
    assert standing.seconds_left(only_trials, trials, progress(complete=4, running=2)) == (6 * 30 - 20) / 2
    assert standing.seconds_left(only_trials, trials, progress(complete=4)) is None
    assert standing.seconds_left(only_trials, trials[:2], progress(complete=2, running=2)) is None
    assert progress(running=2, abandoned=2).word == "waiting for workers"
    assert progress(running=2, state="paused").word == "paused"
    assert progress(complete=10, startable=0).word == "finished"


@pytest.mark.parametrize(
    ("limit", "hours", "seconds"),
    [
        ({"epochs": 34}, None, 10 * 6.0 / 2),  # 24 epochs are trained, each takes 6 s
        ({"epochs": 34, "gpu_hours": 180 / 3600}, None, 40 / 2),  # 140 s of device time are used
        ({"wall_clock_hours": 2.0}, 2.0 - 30 / 3600, 30),
        ({"gpu_hours": 141 / 3600}, None, 20),  # what runs trains to its end
        ({"epochs": 1000, "gpu_hours": 9.0, "wall_clock_hours": 9.0}, 1.0, 80),
    ],
)
def test_the_limit_that_is_reached_first_counts(limit: dict[str, float], hours: float | None, seconds: float) -> None:
    trials = [row(n, "COMPLETE", 0.1, 5, 30.0) for n in range(4)] + [
        row(n, "RUNNING", None, 2, 10.0, f"{n}") for n in (4, 5)
    ]
    now = progress(complete=4, running=2, startable=4)
    budget = Budget(trials=10, **limit)
    assert standing.seconds_left(budget, trials, now, hours) == pytest.approx(seconds)
    assert standing.seconds_left(budget, trials, replace(now, startable=0), hours) == 20  # the two that run
    assert standing.seconds_left(budget, trials, replace(now, startable=0, state="paused"), hours) is None


def test_lanes_of_one_device_share_its_time() -> None:
    """Of an epoch of four lanes each trial has a quarter."""
    trials = [row(n, "COMPLETE", 0.1, 5, 25.0) for n in range(4)] + [
        row(n, "RUNNING", None, 0, 0.0) for n in range(4, 8)
    ]
    now = progress(complete=4, running=4, max_trials=16)
    assert standing.seconds_left(Budget(trials=16), trials, now) == 12 * 25.0
    assert (
        standing.seconds_left(Budget(trials=999, gpu_hours=2 + 100 / 3600), trials, replace(now, max_trials=999))
        == 7200
    )


def test_time_left_counts_no_worker_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with create(settings_for(tmp_path).storage_url) as database:
        filled = made_up(database, "s", 20, 4, prune=False)
        filled.fill(8, leave_running=4)
        monkeypatch.setattr(filling, "OWNER", "other:2:0")
        filled.start(4)

        def left() -> float | None:
            with database.engine.connect() as connection:
                trials = queries.trials(connection, 1)
            return standing.seconds_left(filled.study.spec.budget, trials, progress_of(database, filled.study))

        both = left()
        assert both is not None
        with database.engine.begin() as connection:
            connection.execute(update(LEASES).where(LEASES.c.owner == "other:2:0").values(expires=0.0))
        assert left() == 2 * both


def test_values_are_written_for_people() -> None:
    values = [0, 64, 1234567, 1e-6, -0.00012345, 0.3333333, 123456.0, None, float("nan"), "sgd", 6882589630618588308]
    written = ["0", "64", "1,234,567", "1e-6", "-0.000123", "0.3333", "1.23e5", "", "", "sgd", "6882589630618588308"]
    read = [words.number(value).replace(words.MINUS, "-").replace(words.DASH, "") for value in values]
    assert read == written
    assert words.brief(6882589630618588308) == "…588308"
    assert [words.metric(0.23456, "validation_accuracy"), words.metric(3.14159, "training_loss")] == [
        "23.46 %",
        "3.1416",
    ]
    spans = [0.04, 59.6, 3599, 86_399, 200_000]
    assert [words.duration(s) for s in spans] == ["0.0 s", "1 min 0 s", "59 min 59 s", "23 h 59 min", "2 d 7 h"]


def test_all_who_look_get_one_answer() -> None:
    made, clock = [], [0.0]

    def make() -> Content:
        made.append(1)
        time.sleep(0.05)
        return Content({"part": f"made {len(made)} times"})

    live = Live(lambda: clock[0])
    threads = [threading.Thread(target=live.answer, args=("page", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    clock[0] += 1.0
    assert live.answer("page", make).tag == live.answer("page", make).tag
    clock[0] += 1.0
    assert live.answer("page", make).period_seconds <= MAX_PERIOD_SECONDS
    assert len(made) == 2


def test_a_page_that_cannot_be_made_leaves_nothing_behind() -> None:
    live = Live()

    def missing() -> Content:
        raise KeyError("no such trial")

    for number in range(3):
        with pytest.raises(KeyError):
            live.answer(f"trial {number}", missing)
    assert not live._locks


def test_importances_of_few_studies_are_kept_and_a_failure_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path)
    monkeypatch.setattr(sources, "MAX_VIEWS", 2)
    with create(settings.storage_url) as database:
        for index in range(3):
            made_up(database, f"s{index}", 2, 1, prune=False).fill(2)
        source = Source(database, settings)
        for listed in source.listed():
            study = source.load(listed)
            assert study is not None
            source.importances(listed, study, 2)
        assert [listed.name for listed in source._mattering] == ["s1", "s0"]
        known = next(iter(source._mattering.values()))
        known.busy = True
        monkeypatch.setattr(sources, "importances", lambda study: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sources._compute(known, 3)
        assert not known.busy


@pytest.mark.parametrize(("metric", "first"), [("validation_accuracy", "descending"), ("validation_loss", "ascending")])
def test_the_order_is_said_as_it_is(client: Opener, tmp_path: Path, metric: str, first: str) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "s", 4, 1, prune=False)
        study = load_study(database, "s").optuna_study
        study.set_user_attr(SPEC_KEY, study.user_attrs[SPEC_KEY].replace("validation_accuracy", metric))
        filled.fill(4)
    asker = client(settings, local())
    for sort, order in (("value", first), ("number", "ascending"), ("-number", "descending")):
        page = asker.get(f"/hpsearch/study/1/trials?sort={sort}", headers={"Host": HOST}).text
        assert re.findall('aria-sort="([a-z]+)"', page) == [order]


@pytest.mark.parametrize(("sort", "numbers"), [("value", [0, 2, 3, 1, 4]), ("-value", [2, 0, 1, 3, 4])])
def test_complete_trials_come_first_in_both_directions(sort: str, numbers: list[int]) -> None:
    values = [("COMPLETE", 0.5), ("PRUNED", 0.1), ("COMPLETE", 0.3), ("PRUNED", 0.2), ("FAIL", None)]
    trials = [row(number, state, value, 3) for number, (state, value) in enumerate(values)]
    assert [trial.number for trial in study_pages._ordered(trials, sort, True)] == numbers


def test_hyperparameters_that_a_condition_excludes_are_not_shown(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "s", 12, 2, prune=False)
        filled.fill(12)
        source = Source(database, settings)
        listed, study = source.listed()[0], filled.study
        best = [recipe for _, recipe, _ in study_pages.best_of(source, listed, study)["top"]]
        table = [recipe for _, recipe, _ in study_pages.trials_table(source, listed, study, "number", 1)["rows"]]
        for recipes in (best, table):
            assert any(recipe["optimizer"] != "sgd" for recipe in recipes)
            assert all(("momentum" in recipe) == (recipe["optimizer"] == "sgd") for recipe in recipes)
        number = next(n for n, recipe in enumerate(table) if recipe["optimizer"] != "sgd")
        found, _ = trial_pages.compared(source, [(1, number)], with_figures=False)
        assert "momentum" not in {line.name for line in found["lines"]}
        _, drawn = study_pages.one_study(source, listed, study, with_figures=True)
        axis = list(study.spec.space).index("momentum")
        on_it = sum(axis in trace["x"] for trace in drawn["parallel"]["traces"])
        complete = [table[int(trace["name"])] for trace in drawn["parallel"]["traces"]]
        assert on_it == sum(recipe["optimizer"] == "sgd" for recipe in complete) < len(complete)


def test_an_answer_is_sent_once_to_who_has_it(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "large", 600, 20, prune=False).fill(600, leave_running=4)
        source = Source(database, settings)
        listed = source.find(1)
        assert listed is not None
        study = source.load(listed)
        assert study is not None
        context, drawn = study_pages.one_study(source, listed, study, True)
        with database.engine.connect() as connection:
            assert len(queries.trials(connection, 1)) == 600
    assert (context["num_drawn"], context["num_with_epochs"]) == (figures.MAX_CURVES, 600)
    assert len(drawn["validation_loss"]["traces"]) == 4  # failed, complete, running, the best
    asker: Client = client(settings, local())
    ends = time.monotonic() + 60
    while True:  # importances are computed beside the request, and come with a later answer if that takes long
        first = asker.get("/hpsearch/study/1?live=1", headers={"Host": HOST})
        news = json.loads(gzip.decompress(first.data))
        if set(news["figures"]) >= set(drawn) or time.monotonic() > ends:
            break
        time.sleep(0.2)
    assert len(first.data) < 1_000_000
    assert set(news["figures"]) >= set(drawn)
    again = asker.get("/hpsearch/study/1?live=1", headers={"Host": HOST, "If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_lanes_and_checkpoints_of_a_trial_that_has_not_ended(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        filled = made_up(database, "s", 3, 4)
        filled.fill(3, leave_running=2)
        study, place = filled.study, FolderCheckpoints(tmp_path / "checkpoints")
        for number in (0, 2):
            key = trial_key(study_prefix(study.name, study.created), number, {})
            for epoch in (1, 2, 3):
                place.save(key, epoch, b"content")

        def shown(number: int, artifacts: str = "") -> list[int]:
            source = Source(database, replace(settings, artifacts=artifacts))
            found = trial_pages.one_trial(source, source.listed()[0], study, number, with_figures=False)
            assert found is not None
            return list(found[0]["checkpoints"])

        assert shown(2) == [3, 2]  # two of each trial are kept
        assert shown(1) == []
        assert shown(0) == []  # it has ended: nothing goes on from there
        assert shown(2, "s3://bucket/prefix") == shown(2, str(tmp_path / "elsewhere")) == []
    page = client(settings, local()).get("/hpsearch/study/1/trial/2", headers={"Host": HOST}).text
    assert "after epochs 3 and 2" in page
    assert "made-up:1:0, 2 trials at once" in page
