"""Tables for the terminal: what stands in them is text."""

import pytest

from hpsearch.cli.tables import print_table


@pytest.mark.parametrize("text", ["no such file [/data/x]", "values[i] of [bold] text", "12:00:00 :warning:"])
def test_nothing_in_a_cell_is_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["trial", "reason"], [["0", text]])
    assert text in capsys.readouterr().out
