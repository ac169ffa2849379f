"""Model cards: what they say of the evidence, and that names in them stay names."""

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from hpsearch.export import export, read
from hpsearch.model_card import card
from tests.chain import Chain, silent


@pytest.fixture(scope="module")
def folder(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exports") / "small"
    export(chain.database, chain.search, 1, place, chain.settings, silent)
    return place


def test_a_label_ends_no_cell_of_the_model_card(folder: Path) -> None:
    metrics, _, _ = read(folder)
    assert metrics.confirmation is not None
    label = "adam | <b>wide</b>\n\x85\u2028| a row |"
    confirmation = metrics.confirmation.model_copy(update={"not_told_apart": [label]})
    changed = metrics.model_copy(update={"label": label, "confirmation": confirmation})
    text = card(changed, opened=False)
    (row,) = [line for line in text.splitlines() if line.startswith("| cannot be told")]
    assert row.replace(r"\|", "").count("|") == 3
    assert r"\n\x85\u2028" in row
    assert "<b>" not in text


@pytest.mark.parametrize(
    "label",
    [
        "![x](https://host/y) [z](https://host)",
        "`rm -rf` *wide* _deep_ __init__ ~~gone~~ <b>",
        r"a\\ \[z](u) \\[z](u) \| \n C:\temp\x \*",
        "snake_case_name, 2 * 3 * 4 & 5 &amp; a[0]_",
        "\\",
    ],
)
def test_names_are_no_markup_in_the_model_card(label: str, folder: Path) -> None:
    """Read as Markdown they are what they are, in a cell and beside it."""
    metrics, _, _ = read(folder)
    model = metrics.model.model_copy(update={"classes": [label, "b"]})
    text = card(metrics.model_copy(update={"label": label, "model": model, "confirmation": None}), opened=False)
    parser, texts = MarkdownIt("commonmark").enable(["table", "strikethrough"]), []
    for token in parser.parse(text):
        for child in token.children or []:
            assert child.type in ("text", "softbreak", "code_inline")
            assert child.type != "code_inline" or child.content == "hpsearch verify THIS FOLDER"
        texts.append("".join(child.content for child in token.children or []))
    assert any(found.endswith(f"Rank 1: {label}.") for found in texts)
    assert f"Classes, in the order of the outputs: {label}, b." in texts
    assert "snake_case_name" not in label or "snake_case_name" in text


def test_importances_of_few_trials_are_called_a_guess(folder: Path) -> None:
    metrics, _, _ = read(folder)
    assert metrics.search is not None
    assert "(PED-ANOVA, a rough guess from 4 completed trials, fewer than 41; " in (folder / "README.md").read_text()
    search = metrics.search.model_copy(update={"complete": 41})
    assert "(PED-ANOVA, 41 completed trials; 95 %" in card(metrics.model_copy(update={"search": search}), opened=None)


def test_the_best_of_several_is_said_to_be_that(folder: Path) -> None:
    metrics, _, _ = read(folder)
    assert "somewhat optimistic" in (folder / "README.md").read_text()
    assert "somewhat optimistic" not in card(metrics.model_copy(update={"rank": 2}), opened=False)
    assert "somewhat optimistic" not in card(metrics.model_copy(update={"confirmation": None}), opened=False)
