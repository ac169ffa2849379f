"""The environment's settings, and passwords that must not be seen."""

from pathlib import Path

import pytest

from hpsearch.settings import Settings, redact


def test_defaults():
    settings = Settings.from_environment({"HPSEARCH_DATA": ""})
    assert settings == Settings("sqlite:///storage/hpsearch.db", Path("storage"), None, "auto")


def test_from_environment():
    given = {"HPSEARCH_HOME": "/home/me", "HPSEARCH_DATA": "/data", "HPSEARCH_DEVICE": "cuda:1"}
    assert Settings.from_environment(given) == Settings(
        "sqlite:////home/me/hpsearch.db", Path("/home/me"), Path("/data"), "cuda:1"
    )
    assert Settings.from_environment({"HPSEARCH_STORAGE": "sqlite:///x.db"}).storage_url == "sqlite:///x.db"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:SECRET@host:5432/db",
        "postgresql://me:SEC@RET@host/db",
        "postgresql://me:SEC/RET@host/db",
        "postgresql://me:SEC:RET@host/db",
        "postgresql://me:SEC?RET#@host/db",
        "postgresql://:SECRET@host/db",
        "postgresql:///db?host=/run&user=me&password=SECRET",
        "postgresql://host/db?sslpassword=SECRET&x=1",
        "host=h user=me password=SECRET dbname=d",
        "host=h password='SECRET RET'",
        "me:SECRET@host/db",
        "redis://:SECRET@[::1]:6379/0",
        "://me:SECRET@",
        "PASSWORD = SECRET",
    ],
)
def test_passwords_are_never_shown(url):
    shown = redact(url)
    assert "SEC" not in shown
    assert "RET" not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "url", ["sqlite:///storage/hpsearch.db", "sqlite:////tmp/me:x@y/a.db", "postgresql://me@host/db", "", "nonsense"]
)
def test_what_has_no_password_is_left_alone(url):
    assert redact(url) == url


def test_the_rest_of_the_url_stays():
    assert redact("postgresql+psycopg://me:p@host:5432/db?a=b") == "postgresql+psycopg://me:***@host:5432/db?a=b"
