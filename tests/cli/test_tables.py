"""Tables for the terminal: what stands in them is text."""

import pytest
from rich.cells import cell_len

from hpsearch.cli.tables import print_table


@pytest.mark.parametrize("text", ["no such file [/data/x]", "values[i] of [bold] text", "12:00:00 :warning:"])
def test_nothing_in_a_cell_is_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["trial", "reason"], [["0", text]])
    assert text in capsys.readouterr().out


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed, without the empty lines and the rule."""
    return [line for line in capsys.readouterr().out.splitlines() if line.strip() and "─" not in line]


@pytest.mark.parametrize("width", ["10", "100"])
def test_wide_characters_are_whole(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    print_table(["study", "state"], [["日本語の勉強", "終了しました"], ["b", "finished"]])
    shown = lines(capsys)
    assert [line.split() for line in shown] == [["study", "state"], ["日本語の勉強", "終了しました"], ["b", "finished"]]
    assert (
        len({cell_len(line[: line.index(word)]) for line, word in zip(shown, ("state", "終", "fini"), strict=True)})
        == 1
    )


def test_long_names_fold_and_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    columns = ["study", "state", "trials", "complete", "best"]
    print_table(
        columns,
        [["w" * 200, "waiting for workers", "12/1000000", "3", "0.9876"], ["short", "finished", "1/1", "1", "-"]],
    )
    shown = lines(capsys)
    assert max(map(cell_len, shown)) <= 90
    assert sum(line.count("w" * 40) for line in shown) == 5
    for word in ("waiting", "workers", "12/1000000", "0.9876", "complete", "finished", "short"):
        assert any(word in line for line in shown), word


def test_words_stay_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "15")
    print_table(["trial", "configuration"], [["0", "learning_rate 0.01, optimizer sgd"]])
    assert {"learning_rate", "0.01,", "optimizer", "sgd"} <= {word for line in lines(capsys) for word in line.split()}
