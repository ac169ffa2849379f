"""Debian's Chromium, driven by its driver: what tests and screenshots look at pages with."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

NARROW, WIDE = (400, 860), (1600, 1000)  # CSS pixels
SCHEMES = ("light", "dark")
AXE = Path(__file__).parents[2] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
GRAVE = ("serious", "critical")


def missing() -> str:
    """What is missing for a browser, as a sentence; empty if all is there."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    absent += [] if AXE.is_file() else ["axe-core"]
    return f"{' and '.join(absent)} not found: `make browser` installs it" if absent else ""


@contextmanager
def browser() -> Iterator[Chrome]:
    """A browser without a window, which asks no other host for anything."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",  # the tests may run as root, which Chromium's sandbox refuses
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(60)
        yield driver
    finally:
        driver.quit()


def look(driver: Chrome, size: tuple[int, int], scheme: str) -> None:
    """See pages at that width and height, light or dark, from now on."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def complaints(driver: Chrome) -> list[str]:
    """What the browser's console has said since the last look: errors and warnings."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def faults(driver: Chrome) -> list[str]:
    """What axe-core finds grave about the page's accessibility: rule, element, and why."""
    driver.execute_script(AXE.read_text())
    found = driver.execute_async_script("const done = arguments[0]; axe.run().then((found) => done(found.violations));")
    return [
        f"{rule['id']}: {node['target']}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]


def hosts(driver: Chrome) -> set[str]:
    """The hosts that pages have asked since the last look."""
    found = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            place = urlsplit(message["params"]["request"]["url"])
            if place.scheme in ("http", "https", "ws", "wss"):
                found.add(place.netloc)
    return found
