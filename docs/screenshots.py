"""Takes the pictures of the dashboard's pages that docs/dashboard.md shows: wide and light, narrow and dark.

Run: python docs/screenshots.py STUDY [--storage URL]     on a study that has trials, best while it runs; needs Chromium
"""

import argparse
import io
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # the code beside this page, not an installed one

from PIL import Image  # noqa: E402
from selenium.webdriver import Chrome  # noqa: E402

from hpsearch.settings import Settings  # noqa: E402
from hpsearch.storage.open import connect  # noqa: E402
from hpsearch.storage.studies import load_study  # noqa: E402
from hpsearch.web import figures, queries  # noqa: E402
from hpsearch.web.access import Access  # noqa: E402
from hpsearch.web.server import application, listen, make_server  # noqa: E402
from tests.web.browser import NARROW, WIDE, browser, look, missing  # noqa: E402

FOLDER = DOCS / "dashboard"
MAX_HEIGHT = 3400  # pixels of one picture
COLOURS = 128  # of one picture: enough for pages, and a third of the bytes
PATIENCE_SECONDS = 4.0  # until figures stand


def pages(settings: Settings, name: str) -> dict[str, str]:
    """The pages to look at, by the name of their picture."""
    with connect(settings.storage_url) as database:
        study = load_study(database, name)
        with database.engine.connect() as connection:
            trials = queries.trials(connection, study.study_id)
    best = figures.ranked(trials, study.spec.objective.direction == "maximize")[:3]
    here, numbers = f"/hpsearch/study/{study.study_id}", ",".join(str(trial.number) for trial in best)
    return {
        "study": here,
        "workers": "/hpsearch/workers",
        "studies": "/hpsearch/",
        "trials": f"{here}/trials?sort=value",
        "best": f"{here}/best",
        "trial": f"{here}/trial/{best[1].number}",
        "compare": f"/hpsearch/compare?study={study.study_id}&t={numbers}",
        "optuna-dashboard": f"/dashboard/studies/{study.study_id}/note",
    }


def picture(driver: Chrome, address: str, size: tuple[int, int], scheme: str, path: Path) -> None:
    """One page from top to bottom."""
    look(driver, size, scheme)
    driver.get(address)
    time.sleep(PATIENCE_SECONDS)
    height = min(MAX_HEIGHT, int(driver.execute_script("return document.documentElement.scrollHeight")))
    look(driver, (size[0], max(height, size[1])), scheme)
    # Images of data sets are not part of the project.
    driver.execute_script(
        "document.querySelectorAll('.samples').forEach((one) => { one.style.visibility = 'hidden'; })"
    )
    time.sleep(1)
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(f"wrote {path.relative_to(DOCS.parent)}")


def main() -> None:
    """Serve the storage, and take every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--storage")
    parser.add_argument("--pages", nargs="*", help="take these alone, such as study workers")
    arguments = parser.parse_args()
    if missing():
        sys.exit(missing())
    settings = Settings.from_environment()
    settings = replace(settings, storage_url=arguments.storage or settings.storage_url)
    FOLDER.mkdir(exist_ok=True)
    listener = listen("127.0.0.1", 0)
    access = Access("127.0.0.1", listener.getsockname()[1], allow_write=True)
    with application(settings, access) as both, browser() as driver:
        threading.Thread(target=make_server(both, listener, access).run, daemon=True).start()
        for name, path in pages(settings, arguments.study).items():
            if arguments.pages and name not in arguments.pages:
                continue
            address = f"http://127.0.0.1:{access.port}{path}"
            picture(driver, address, WIDE, "light", FOLDER / f"{name}.png")
            if name != "optuna-dashboard":
                picture(driver, address, NARROW, "dark", FOLDER / f"{name}-narrow.png")


if __name__ == "__main__":
    main()
