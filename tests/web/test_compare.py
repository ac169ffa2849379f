"""Trials side by side: which are shown, and in which colours."""

import re
from pathlib import Path

from benchmarks.filling import made_up
from hpsearch.storage.open import create
from hpsearch.web import trial_pages
from hpsearch.web.source import Source
from tests.web.serving import HOST, Opener, confuse, local, settings_for


def test_compare_says_what_it_leaves_out(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "s", 8, 1, prune=False).fill(8)
    asker = client(settings, local())

    def said(query: str) -> list[str]:
        page = asker.get(f"/hpsearch/compare?{query}", headers={"Host": HOST}).text
        return re.findall(r'class="problem">([^<]*)', page)

    assert said("study=1&t=0,1") == said("") == []
    (sentence,) = said("study=1&t=0&t=1&t=2&t=3&t=4&t=5")
    assert sentence.startswith("Left out, as four fit side by side: trial 4 of study 1, trial 5 of study 1.")
    (sentence,) = said("study=1&t=abc,77")
    assert sentence.startswith("Not found: trial 77 of study 1. No trial: abc; write a number")
    assert said("t=3")[0].startswith("No trial: 3; write a number and choose its study")


def test_compared_trials_keep_their_colours(tmp_path: Path) -> None:
    """Also where one of them has no confusion matrix."""
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "s", 4, 2, prune=False).fill(4)
        confuse(database, tmp_path, 1, "class")
        _, drawn = trial_pages.compared(Source(database, settings), [(1, 3), (1, 0)], with_figures=True)
    assert [(trace["name"], trace["meta"]["role"]) for trace in drawn["classes"]["traces"]] == [
        ("s, trial 0", "second")
    ]
