"""The figures of the page: what they draw, what their captions say, and what stands in their tables."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from hpsearch.report.drawing import COLOURS, Figure, interval_dots, label_axis
from hpsearch.report.evidence_figures import _curve, confirmed, confusion, transferred
from hpsearch.report.evidence_figures import tested as figures_of_a_test
from hpsearch.report.gather import gather
from hpsearch.report.page import across, csv_of, page
from hpsearch.report.search_figures import by_learning_rate, importances, parallel, survival
from hpsearch.spec import parse
from hpsearch.statistics import Estimate, estimate, in_words
from hpsearch.storage.open import Database
from hpsearch.storage.studies import create_study, load_study, ranked
from tests.chain import SMALL, Chain
from tests.report.reading import NAMES, drawn, settings
from tests.studies import TINY


def test_labels_are_no_markup_to_plotly(whole: Chain) -> None:
    """It makes a link of <a href="...">, in legends, ticks and categories."""
    study, label = gather(whole.database, "small"), '<a href="//elsewhere">a & b</a>'
    traces = [interval_dots(label, [0], [0.5], [0.4], [0.6], COLOURS[0])]
    figures = [
        Figure("dots", "Dots", "", [], [], traces, {"yaxis": label_axis([label])}),
        confusion("matrix", "Matrix", [[1, 0], [0, 1]], ["0", label], 1),
    ]
    made = drawn(page([(study, figures)], []))
    shown = '&lt;a href="//elsewhere">a &amp; b&lt;/a>'
    assert made["dots"]["data"][0]["name"] == made["dots"]["layout"]["yaxis"]["ticktext"][0] == shown
    assert made["matrix"]["data"][0]["x"] == made["matrix"]["data"][0]["y"] == ["0", shown]
    assert [row[0] for row in figures[1].rows] == ["0", label]


def test_transfers_that_differ_in_more_than_the_size_are_not_drawn_together(whole: Chain) -> None:
    sizes = [gather(whole.database, name) for name in NAMES[2:]]
    (together,) = across(sizes)
    assert "lenet on digits:5-9" in together.caption
    spec = sizes[1].spec
    longer = {**spec.training, "epochs": spec.max_epochs + 1}
    for other in (
        replace(spec, model=spec.model.model_copy(update={"name": "2lp"})),
        replace(spec, seeds=(*spec.seeds, 99)),
        replace(spec, training=longer),
    ):
        assert across([sizes[0], replace(sizes[1], spec=other)]) == []
    arm = replace(sizes[0].arms[0], over_scratch=estimate([0.25]))
    assert "transfer +0.250 (no interval, 1 of 2 pairs)" in transferred([replace(sizes[0], arms=(arm,))], "one").caption


def test_a_curve_has_a_gap_where_no_seed_has_a_number() -> None:
    assert _curve([[0.5, None, 0.7], [0.3, None, 0.9]])[:2] == ([1, 3], [pytest.approx(0.4), pytest.approx(0.8)])


def test_intervals_of_accuracies_are_drawn_within_their_bounds(whole: Chain) -> None:
    study = gather(whole.database, "small-confirm")
    assert study.confirmation is not None
    wide = replace(study.confirmation.standings[0], over_seeds=Estimate(3, 0.9, 0.1, -0.2, 1.2))
    drawn = confirmed(replace(study, confirmation=replace(study.confirmation, standings=(wide,))))
    ends = drawn.traces[0]["error_x"]
    assert (ends["array"], ends["arrayminus"]) == ([pytest.approx(0.1)], [pytest.approx(0.9)])
    assert drawn.rows[0][4:6] == [-0.2, 1.2]
    found = {"mean": 0.9, "low": -0.2, "high": 1.2}
    assert in_words(found, "accuracy") == "0.9000 (0.0000 to 1.0000)"
    assert in_words(found, "log_loss") == "0.9000 (0.0000 to 1.2000)"


def test_of_many_trials_the_best_are_drawn(whole: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.report.search_figures.MANY", 2)
    study = gather(whole.database, "small")
    best = {trial.number for trial in ranked(whole.search)[:2]}
    for figure in (by_learning_rate(study), parallel(study)):
        names = [trace["name"] for trace in figure.traces if trace.get("name")]
        assert {int(re.findall(r"\d+", name)[0]) for name in names} == best
        assert figure.caption.startswith("The 2 best of 4 trials")
        assert {row[0] for row in figure.rows} == {0, 1, 2, 3}


def test_hyperparameters_that_a_trial_does_not_have_are_empty(database: Database, tmp_path: Path) -> None:
    create_study(database, parse(TINY, "tiny.toml"), "tiny")
    chain = Chain(database, settings(tmp_path))
    chain.work("tiny")
    recorded = [trial.params.get("momentum") for trial in load_study(database, "tiny").optuna_study.trials]
    assert None in recorded
    study = gather(database, "tiny")
    table = parallel(study)
    assert [row[table.columns.index("momentum")] for row in table.rows] == recorded
    lines = [trace for trace in table.traces if trace["name"].startswith("trial")]
    assert all(None not in trace["y"] for trace in lines)  # else the line would end there
    assert {trace["x"][-1] for trace in lines} == {len(study.spec.space)}
    assert any(len(trace["x"]) == len(study.spec.space) for trace in lines)


def test_equal_results_are_all_the_best(whole: Chain) -> None:
    study = gather(whole.database, "small")
    figure = parallel(replace(study, trials=tuple(replace(trial, value=0.5) for trial in study.trials)))
    shown = [(trace["y"][-1], trace["line"]["color"]) for trace in figure.traces if trace["name"].startswith("trial")]
    assert set(shown) == {(0.5, "rgb(235,130,20)")}


def test_a_value_that_is_infinite_is_none(database: Database, tmp_path: Path) -> None:
    """Programs beside hpsearch can tell Optuna such values."""
    create_study(database, parse(SMALL, "small.toml"), "small", 1)
    Chain(database, settings(tmp_path)).work("small")
    other = database.storage.create_new_trial(load_study(database, "small").study_id)
    database.storage.set_trial_state_values(other, TrialState.COMPLETE, [math.inf])
    study = gather(database, "small")
    assert [trial.number for trial in study.best(5)] == [0]
    assert [trace["name"] for trace in parallel(study).traces if trace["name"].startswith("trial 1")] == []


def test_captions_say_what_was_done(whole: Chain) -> None:
    study = gather(whole.database, "small-confirm")
    found = study.confirmation
    assert found is not None
    assert "luck" in confirmed(study).caption
    assert "The mean of the best of 4 is somewhat optimistic" in confirmed(study).caption
    own = [replace(one, origin=replace(one.origin, value=None), luck=None, in_set=False) for one in found.standings]
    drawn = confirmed(replace(study, confirmation=replace(found, standings=tuple(own))))
    assert "luck" not in drawn.caption
    assert "from the best: none." in drawn.caption
    assert len(drawn.traces) == 1
    searched = gather(whole.database, "small")
    assert "A rough guess from " in importances(searched).caption
    many = replace(searched.importances, num_complete=41)
    assert "guess" not in importances(replace(searched, importances=many)).caption
    pruner = searched.spec.pruner.model_copy(update={"name": "median"})
    assert (
        "Pruner: median." in survival(replace(searched, rungs=(), spec=replace(searched.spec, pruner=pruner))).caption
    )


def test_seeds_of_a_final_test_are_those_that_trained(whole: Chain) -> None:
    study = gather(whole.database, "small")
    left = {"seeds": [7, 11, 12], "planned": 6, "lost": 2}
    record = study.tested[0] | {"results": [study.tested[0]["result"] | left]}
    table = next(figures_of_a_test(study, record))
    assert [row[1] for row in table.rows] == [7, 11, 12]
    assert "<td>3 of 6; 2 diverged or failed</td>" in table.html


def test_long_labels_leave_room_for_the_drawing(whole: Chain) -> None:
    label = "x" * 150
    traces = [interval_dots(label, [0], [0.5], [0.4], [0.6], COLOURS[0])]
    figure = Figure("dots", "Dots", "", ["label"], [[label]], traces, {"yaxis": label_axis([label])})
    made = drawn(page([(gather(whole.database, "small"), [figure])], []))["dots"]
    assert made["data"][0]["name"] == made["layout"]["yaxis"]["ticktext"][0] == "x" * 39 + "…"
    assert label in csv_of(figure)


def test_the_best_of_the_page_is_the_best_of_the_storage(whole: Chain) -> None:
    assert gather(whole.database, "small").best(1)[0].number == ranked(whole.search)[0].number
