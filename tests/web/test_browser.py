"""The dashboard in a real browser, on a study that runs while the test looks."""

import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from benchmarks.filling import made_up
from hpsearch.storage import fleet
from hpsearch.storage.open import create
from hpsearch.web.source import Source
from tests.cli.running import hpsearch, start
from tests.studies import TINY
from tests.web.browser import NARROW, SCHEMES, WIDE, browser, complaints, faults, hosts, look, missing
from tests.web.serving import TOKEN, confuse, serving, settings_for

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

DRAWN = "return typeof known === 'undefined' || known.tag !== null"  # the first live answer has been drawn
# Words of a state that are wider than their cell, which hides what it cannot hold.
CUT_OFF = """const right = (one) => one.getBoundingClientRect().right;
    const states = [...document.querySelectorAll('.facts .state')];
    return states.filter((one) => right(one) > right(one.closest('dd')) + 1).map((one) => one.innerText)"""
MADE_UP, TRAINING = 1, 2  # ids of the studies
PAGES = {
    "studies": "/hpsearch/",
    "running study": f"/hpsearch/study/{TRAINING}",
    "made-up study": f"/hpsearch/study/{MADE_UP}",
    "trials": f"/hpsearch/study/{MADE_UP}/trials",
    "best": f"/hpsearch/study/{MADE_UP}/best",
    "running trial": f"/hpsearch/study/{TRAINING}/trial/0",
    "failed trial": f"/hpsearch/study/{MADE_UP}/trial/1",
    "trial with confusions": f"/hpsearch/study/{MADE_UP}/trial/0",
    "compare": f"/hpsearch/compare?t={MADE_UP}-0&t={MADE_UP}-2&t={TRAINING}-0",
    "workers": "/hpsearch/workers",
    "missing": "/hpsearch/study/77",
}


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    """A browser for all tests of this file."""
    with browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def folder(home: Path) -> Iterator[Path]:
    """The home folder with the made-up study, and a second study that a real worker trains without end."""
    (home / "tiny.toml").write_text(TINY)
    place = {"HPSEARCH_HOME": str(home), "HPSEARCH_STORAGE": settings_for(home).storage_url}
    endless = ("--set", "training.epochs=1000000", "--set", "pruner.name=none")
    hpsearch(home, "create-study", "tiny.toml", *endless, **place)
    worker = start(home, "worker", "tiny", "--max-idle", "60", **place)
    yield home
    worker.terminate()
    worker.communicate(timeout=60)
    with create(settings_for(home).storage_url) as database:
        database.storage.delete_study(TRAINING)


@pytest.fixture(scope="module")
def writing(folder: Path) -> Iterator[str]:
    """The address of a dashboard that may write."""
    with serving(settings_for(folder), allow_write=True) as address:
        yield address


@pytest.fixture(scope="module")
def reading(folder: Path) -> Iterator[str]:
    """The address of a dashboard behind a token, for reading."""
    with serving(settings_for(folder), token=TOKEN) as address:
        yield address


def wait_until(true: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something holds in the page."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def text(driver: Chrome, part: str) -> str:
    """What a live part of the page says."""
    return str(driver.execute_script(f"return document.querySelector('[data-part={part}]').innerText"))


def press(driver: Chrome, button: str) -> None:
    """Press a button of the study that trains, and wait for its page, which must not come after another one."""
    driver.execute_script("window.before = true")
    row = driver.find_element(By.XPATH, "//*[@aria-label='Control of study tiny']")
    row.find_element(By.XPATH, f".//button[text()='{button}']").click()
    wait_until(lambda: driver.execute_script("return !window.before && document.readyState === 'complete'"))


@pytest.mark.parametrize("name", PAGES)
def test_every_page_at_both_widths_and_in_both_schemes(chrome: Chrome, writing: str, name: str) -> None:
    hosts(chrome)
    complaints(chrome)
    for size in (NARROW, WIDE):
        for scheme in SCHEMES:
            look(chrome, size, scheme)
            chrome.get(writing + PAGES[name])
            wait_until(lambda: chrome.execute_script(DRAWN))
            width = chrome.execute_script("return document.documentElement.scrollWidth")
            assert width <= size[0], f"{name} is {width} pixels wide on a screen of {size[0]}"
            assert faults(chrome) == [], (size, scheme)
            assert chrome.execute_script(CUT_OFF) == [], (size, scheme)
            paper = chrome.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    said = [line for line in complaints(chrome) if not (name == "missing" and "404" in line)]
    assert said == []
    assert hosts(chrome) == {writing.removeprefix("http://")}


def test_a_running_study_updates_without_a_reload_and_keeps_the_zoom(chrome: Chrome, writing: str) -> None:
    look(chrome, WIDE, "light")
    chrome.get(f"{writing}/hpsearch/study/{TRAINING}")
    plot = "document.querySelector('[data-figure=validation_loss]')"
    wait_until(lambda: chrome.execute_script(f"return {plot}.querySelector('svg') && {plot}.data.length"))
    chrome.execute_script("window.kept = true; document.querySelector('[data-part=running] a').focus()")
    chrome.execute_script(f"Plotly.relayout({plot}, {{'xaxis.range': [2, 5]}})")
    epochs, last = text(chrome, "running"), f"return {plot}.data[0].x.at(-2)"
    before = chrome.execute_script(last)
    wait_until(lambda: text(chrome, "running") != epochs and chrome.execute_script(last) > before)
    assert chrome.execute_script("return window.kept")
    assert chrome.execute_script(f"return {plot}.layout.xaxis.range") == [2, 5]
    assert chrome.execute_script("return document.activeElement.closest('[data-part]').dataset.part") == "running"


def test_the_state_of_a_study_is_whole(chrome: Chrome, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database, serving(settings) as address:
        made_up(database, "s", 4, 2, prune=False)
        for width in (400, 800, 1280):
            look(chrome, (width, 800), "light")
            chrome.get(f"{address}/hpsearch/study/1")
            assert "waiting for workers" in text(chrome, "summary")
            assert chrome.execute_script(CUT_OFF) == [], width


def test_figures_have_their_titles_as_names(chrome: Chrome, writing: str) -> None:
    for page in ("made-up study", "trial with confusions", "compare"):
        chrome.get(writing + PAGES[page])
        nodes = chrome.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        found = [node for node in nodes if node["role"]["value"] == "figure" and not node["ignored"]]
        assert found, page
        assert all(node["name"]["value"] for node in found), page
        levels = chrome.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map((h) => +h.tagName[1])")
        assert all(after <= before + 1 for before, after in pairwise(levels)), (page, levels)


def test_a_person_who_marks_text_keeps_it(chrome: Chrome, writing: str) -> None:
    chrome.get(f"{writing}/hpsearch/study/{TRAINING}")
    chrome.execute_script("getSelection().selectAllChildren(document.querySelector('[data-part=running]'))")
    before = text(chrome, "running")
    time.sleep(5)
    assert text(chrome, "running") == before
    chrome.execute_script("getSelection().removeAllRanges()")
    wait_until(lambda: text(chrome, "running") != before)


def test_what_was_refused_while_text_was_marked_comes_afterwards(chrome: Chrome, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database, serving(settings) as address:
        made_up(database, "s", 4, 2, prune=False)
        chrome.get(f"{address}/hpsearch/study/1")
        wait_until(lambda: chrome.execute_script(DRAWN))
        chrome.execute_script("getSelection().selectAllChildren(document.querySelector('[data-part=summary]'))")
        fleet.control(database, 1, "paused")
        wait_until(lambda: "paused" in text(chrome, "events"))  # nothing else will change after this
        assert "paused" not in text(chrome, "summary")
        chrome.execute_script("getSelection().removeAllRanges()")
        wait_until(lambda: "paused" in text(chrome, "summary"))


def test_a_page_says_once_that_its_study_is_gone(chrome: Chrome, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database, serving(settings) as address:
        made_up(database, "s", 4, 2, prune=False)
        chrome.get(f"{address}/hpsearch/study/1")
        wait_until(lambda: chrome.execute_script(DRAWN))
        database.storage.delete_study(1)
        news = "return document.getElementById('news').textContent"
        wait_until(lambda: chrome.execute_script(news) == "This is no longer here.")
        complaints(chrome)
        chrome.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
        time.sleep(5)
        assert complaints(chrome) == []  # it has not asked again
        assert chrome.execute_script(news) == "This is no longer here."


def test_one_page_that_is_missing_does_not_end_the_looks(
    chrome: Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database, serving(settings) as address:
        made_up(database, "s", 4, 2, prune=False)
        chrome.get(f"{address}/hpsearch/study/1")
        wait_until(lambda: chrome.execute_script(DRAWN))
        missing = []
        find = Source.find
        monkeypatch.setattr(Source, "find", lambda *given: find(*given) if missing else missing.append(1))
        fleet.control(database, 1, "paused")
        wait_until(lambda: "paused" in text(chrome, "events"))
        assert missing
    complaints(chrome)


def test_what_comes_later_needs_no_reload(chrome: Chrome, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    look(chrome, WIDE, "light")
    with create(settings.storage_url) as database, serving(settings, allow_write=True) as address:
        filled = made_up(database, "s", 4, 2, prune=False)
        chrome.get(f"{address}/hpsearch/workers")
        wait_until(lambda: chrome.execute_script(DRAWN))
        assert "Pause" not in text(chrome, "control")
        filled.beat()
        wait_until(lambda: "Pause" in text(chrome, "control"))
        filled.fill(1)
        chrome.get(f"{address}/hpsearch/study/1/trial/0")
        wait_until(lambda: chrome.execute_script(DRAWN))
        heading = chrome.find_element(By.XPATH, "//h2[text()='Confusions']")
        assert not heading.is_displayed()
        assert "Next" not in text(chrome, "neighbours")
        filled.fill(1)
        confuse(database, tmp_path, 1, "class")
        wait_until(lambda: "Next" in text(chrome, "neighbours"))
        plot = "document.querySelector('[data-figure=confusion] svg')"
        wait_until(lambda: chrome.execute_script(f"return {plot} && {plot}.getBoundingClientRect().width > 200"))
        assert heading.is_displayed()


def test_ticks_follow_the_best_trials_until_somebody_changes_one(chrome: Chrome, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    boxes = "[...document.querySelectorAll('[data-part=top] input[type=checkbox]')]"

    def after(*best: int) -> list[int]:
        """What is ticked once these trials are the best."""
        ticks = [f'<input type="checkbox" value="{n}"{" checked" if n in best[:2] else ""}>' for n in best]
        chrome.execute_script("replace('top', arguments[0])", "".join(ticks))
        return list(chrome.execute_script(f"return {boxes}.filter((one) => one.checked).map((one) => +one.value)"))

    with create(settings.storage_url) as database, serving(settings) as address:
        made_up(database, "s", 4, 2, prune=False).fill(3)
        chrome.get(f"{address}/hpsearch/study/1")
        wait_until(lambda: chrome.execute_script(DRAWN))
        assert after(7, 8, 9) == [7, 8]
        assert after(5, 6, 7, 8) == [5, 6]
        chrome.execute_script(f"{boxes}[2].click()")
        assert after(4, 3, 5, 6, 7) == [5, 6, 7]
    complaints(chrome)


def test_long_names_fit_on_narrow_screens(chrome: Chrome, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database, serving(settings) as address:
        made_up(database, "w" * 200, 2, 1, prune=False).fill(2)
        look(chrome, NARROW, "light")
        for path in ("", "study/1", "study/1/best", "study/1/trials", "study/1/trial/0", "compare?study=1&t=0,1"):
            chrome.get(f"{address}/hpsearch/{path}")
            wait_until(lambda: chrome.execute_script(DRAWN))
            assert chrome.execute_script("return document.documentElement.scrollWidth") <= NARROW[0], path
        look(chrome, (1280, 800), "light")
        for path in ("", "compare?study=1&t=0,1"):  # all columns are seen
            chrome.get(f"{address}/hpsearch/{path}")
            room = "const one = document.querySelector('.scroll'); return [one.scrollWidth, one.clientWidth]"
            wide, room_for = chrome.execute_script(room)
            assert wide <= room_for, path
    complaints(chrome)


def test_pause_and_resume_reach_a_worker(chrome: Chrome, writing: str) -> None:
    look(chrome, WIDE, "dark")
    chrome.get(f"{writing}/hpsearch/workers")
    wait_until(lambda: "training" in text(chrome, "workers"))
    press(chrome, "Pause")
    wait_until(lambda: "has paused" in text(chrome, "workers"))
    press(chrome, "Resume")
    wait_until(lambda: "training" in text(chrome, "workers"))
    chrome.get(f"{writing}/hpsearch/study/{TRAINING}")
    wait_until(lambda: "released" in text(chrome, "events"))


def test_sign_in_with_the_keyboard_and_out_again(chrome: Chrome, reading: str) -> None:
    for size, scheme in ((NARROW, "dark"), (WIDE, "light")):
        look(chrome, size, scheme)
        chrome.get(f"{reading}/hpsearch/study/{MADE_UP}")
        assert chrome.current_url == f"{reading}/hpsearch/sign-in?next=%2Fhpsearch%2Fstudy%2F{MADE_UP}"
        assert faults(chrome) == []
        chrome.switch_to.active_element.send_keys("not-the-token", Keys.ENTER)
        wait_until(lambda: any("not the token" in one.text for one in chrome.find_elements(By.ID, "problem")))
        chrome.find_element(By.ID, "token").send_keys(TOKEN, Keys.ENTER)
        wait_until(lambda: chrome.current_url == f"{reading}/hpsearch/study/{MADE_UP}")
        assert "made-up" in chrome.find_element(By.TAG_NAME, "main").text
        assert "Pause" not in chrome.page_source
        chrome.find_element(By.XPATH, "//button[text()='Sign out']").click()
        wait_until(lambda: chrome.current_url == f"{reading}/hpsearch/sign-in")
        chrome.get(f"{reading}/dashboard")
        assert chrome.current_url == f"{reading}/hpsearch/sign-in"
    complaints(chrome)


def test_optuna_dashboard_read_only_draws_no_write_controls(chrome: Chrome, folder: Path, writing: str) -> None:
    icons = "return [...document.querySelectorAll('[data-testid]')].filter((one) => one.getClientRects().length)"
    icons += ".map((one) => one.dataset.testid)"
    write = {"AddBoxIcon", "DeleteIcon", "EditIcon", "DriveFileRenameOutlineIcon", "StopCircleIcon", "UploadFileIcon"}
    look(chrome, WIDE, "light")
    pages = ("", f"/studies/{MADE_UP}", f"/studies/{MADE_UP}/note", f"/studies/{MADE_UP}/trials?numbers=39")
    with serving(settings_for(folder)) as address:
        for page in pages:
            found = {}
            for place in (writing, address):
                chrome.get(f"{place}/dashboard{page}")
                wait_until(lambda: chrome.execute_script(icons))
                time.sleep(1)
                found[place] = set(chrome.execute_script(icons))
            assert found[writing] & write, page
            assert not found[address] & write, page
        way = chrome.find_element(By.CLASS_NAME, "hpsearch-way")
        chrome.get(way.get_attribute("href") or "")
        assert chrome.current_url == f"{address}/hpsearch/study/{MADE_UP}"
        theirs = chrome.find_element(By.LINK_TEXT, "optuna-dashboard")
        assert theirs.get_attribute("href") == f"{address}/dashboard/studies/{MADE_UP}"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(chrome: Chrome, writing: str) -> None:
    look(chrome, WIDE, "light")
    chrome.get(f"{writing}/hpsearch/study/{MADE_UP}")
    reached = set()
    body = chrome.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert chrome.switch_to.active_element.text == "To the content"
    for _ in range(25):
        chrome.switch_to.active_element.send_keys(Keys.TAB)
        here = chrome.switch_to.active_element
        reached.add(here.text)
        style = chrome.execute_script("return getComputedStyle(arguments[0]).outlineStyle", here)
        assert style != "none", here.text
    assert {"Studies", "Workers", "Trials", "Best", "Pause", "Stop", "Compare"} <= reached


def test_the_checks_of_pages_find_what_is_wrong(chrome: Chrome, writing: str) -> None:
    chrome.get(f"{writing}/hpsearch/")
    hosts(chrome)
    complaints(chrome)
    chrome.execute_script("document.querySelector('main').innerHTML = '<img src=\"http://127.0.0.2:9/x.png\">'")
    assert any("image-alt" in fault for fault in faults(chrome))
    assert any("Content Security Policy" in line for line in complaints(chrome))
    chrome.execute_script("fetch('/hpsearch/study/77')")
    wait_until(lambda: complaints(chrome))


def test_without_a_browser_the_tests_say_so() -> None:
    shell = "command() { return 1; }; id() { echo 1000; }; source tests/web/install.sh"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "apt-get install chromium chromium-driver npm" in done.stderr
