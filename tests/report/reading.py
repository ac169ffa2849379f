"""What the tests of the page read it with."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from hpsearch.settings import Settings

NAMES = ["small", "small-confirm", "lenet-to-digits-5-9-16", "lenet-to-digits-5-9-24"]


def settings(tmp_path: Path) -> Settings:
    return Settings(storage_url="", home=tmp_path, data_dir=None, device="cpu")


class Seen(HTMLParser):
    """Tags, and what they would fetch."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.titles: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self._in_title = tag == "h3"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.titles.append(data)
            self._in_title = False


def seen(text: str) -> Seen:
    parser = Seen()
    parser.feed(text)
    return parser


def drawn(text: str) -> dict[str, dict]:
    """The figures that the page's script reads."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])
