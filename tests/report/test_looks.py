"""The page in a browser: wide and narrow, light and dark, it says nothing in the console and axe-core finds nothing."""

from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from benchmarks.filling import made_up
from hpsearch.report.drawing import COLOURS
from hpsearch.report.page import write
from hpsearch.storage.open import create
from tests.chain import Chain
from tests.web.browser import NARROW, SCHEMES, WIDE, browser, complaints, faults, hosts, look, missing

CARDS = {"light": (247, 247, 248), "dark": (30, 33, 37)}  # --card of page.html


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_it_is_accessible_and_quiet(chain: Chain, tmp_path: Path) -> None:
    with create(f"sqlite:///{tmp_path / 'many.db'}") as database:
        made_up(database, "many", 60, 9, prune=True).fill(60)
        write(database, ["many"], tmp_path / "many.html", chain.settings)
    write(chain.database, [chain.search.name, chain.confirmation.name], tmp_path / "page.html", chain.settings)
    with browser() as chrome:
        for page in ("many.html", "page.html"):
            for size in (WIDE, NARROW):
                for scheme in SCHEMES:
                    see(chrome, tmp_path / page, size, scheme)


def see(chrome: Chrome, page: Path, size: tuple[int, int], scheme: str) -> None:
    look(chrome, size, scheme)
    chrome.get(page.as_uri())
    assert chrome.find_elements(By.CLASS_NAME, "main-svg")
    assert faults(chrome) == []
    assert complaints(chrome) == []
    assert hosts(chrome) <= {""}
    wider = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert chrome.execute_script(wider) <= 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_colours_stand_out(scheme: str) -> None:
    """WCAG 2.2, 1.4.11: graphical objects have a contrast of 3."""
    page = (Path(__file__).parents[2] / "hpsearch/report/page.html").read_text()
    card = "#" + "".join(f"{part:02x}" for part in CARDS[scheme])
    assert f"--card: {card};" in page
    for colour in COLOURS:
        lighter, darker = sorted((luminance(colour), luminance(card)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 3, colour


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
