"""The environment's settings, and passwords that must not be seen."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from hpsearch.errors import UsageError
from hpsearch.settings import Settings, redact
from hpsearch.storage.open import connect, create
from hpsearch.storage.studies import study_names


def test_defaults():
    settings = Settings.from_environment({"HPSEARCH_DATA": ""})
    assert settings == Settings("sqlite:///storage/hpsearch.db", Path("storage"), None, "auto")


def test_from_environment():
    given = {"HPSEARCH_HOME": "/home/me", "HPSEARCH_DATA": "/data", "HPSEARCH_DEVICE": "cuda:1"}
    assert Settings.from_environment(given) == Settings(
        "sqlite:////home/me/hpsearch.db", Path("/home/me"), Path("/data"), "cuda:1"
    )
    assert Settings.from_environment({"HPSEARCH_STORAGE": "sqlite:///x.db"}).storage_url == "sqlite:///x.db"


@pytest.mark.parametrize("home", ["my studies", "what?", "100%", "50%20off", "a#b", "é"])
def test_a_home_of_any_name_holds_its_database(home, tmp_path):
    settings = Settings.from_environment({"HPSEARCH_HOME": str(tmp_path / home)})
    with create(settings.storage_url):
        assert (tmp_path / home / "hpsearch.db").is_file()
    with connect(settings.storage_url) as database:
        assert study_names(database) == []
    assert [path.name for path in tmp_path.iterdir()] == [home]


@pytest.mark.parametrize("name", ["HPSEARCH_HOME", "HPSEARCH_DATA"])
def test_the_home_of_nobody(name):
    with pytest.raises(UsageError, match=f"{name}=~nobody-of-that-name/x: there is no such user"):
        Settings.from_environment({name: "~nobody-of-that-name/x"})


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


def test_secrets_from_files(tmp_path):
    (tmp_path / "password").write_text("p@ss/w:rd?\n")
    (tmp_path / "token").write_text("a-long-enough-token\n")
    given = {
        "HPSEARCH_STORAGE": "postgresql+psycopg://me@host:5432/db?sslmode=require",
        "HPSEARCH_STORAGE_PASSWORD_FILE": str(tmp_path / "password"),
        "HPSEARCH_DASHBOARD_TOKEN_FILE": str(tmp_path / "token"),
    }
    settings = Settings.from_environment(given)
    url = make_url(settings.storage_url)
    assert (url.username, url.password, url.host, url.query["sslmode"]) == ("me", "p@ss/w:rd?", "host", "require")
    assert settings.dashboard_token == "a-long-enough-token"
    assert "ss/w" not in redact(settings.storage_url)
    again = Settings.from_environment(given | {"HPSEARCH_STORAGE": settings.storage_url})  # as worker processes get it
    assert again.storage_url == settings.storage_url


@pytest.mark.parametrize("url", ["sqlite:////tmp/me@x/a.db", "postgresql://host/db", "postgresql://me:own@host/db"])
def test_a_password_goes_nowhere_else(tmp_path, url):
    (tmp_path / "password").write_text("secret")
    given = {"HPSEARCH_STORAGE": url, "HPSEARCH_STORAGE_PASSWORD_FILE": str(tmp_path / "password")}
    assert Settings.from_environment(given).storage_url == url


def test_a_secret_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"HPSEARCH_DASHBOARD_TOKEN_FILE=.*absent: cannot be read: No such file"):
        Settings.from_environment({"HPSEARCH_DASHBOARD_TOKEN_FILE": str(tmp_path / "absent")})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="the file is empty"):
        Settings.from_environment({"HPSEARCH_STORAGE_PASSWORD_FILE": str(tmp_path / "empty")})
