"""Who gets in: tokens and where they are needed, names of this server, and how long wrong guesses wait."""

import http.client
from typing import Any
from urllib.parse import urlencode

import pytest

from hpsearch.cli.main import main
from hpsearch.errors import UsageError
from hpsearch.settings import Settings
from hpsearch.web.access import Access, Sessions, choose_token
from hpsearch.web.server import listen
from tests.web.serving import TOKEN, serving


def test_the_throttle_forgets(settings: Settings) -> None:
    clock = [1000.0]
    sessions = Sessions(TOKEN, lambda: clock[0])
    for _ in range(5):
        assert sessions.open("wrong", "1.2.3.4") is None
    assert sessions.wait_seconds("1.2.3.4") == 60
    assert sessions.wait_seconds("5.6.7.8") == 0
    clock[0] += 61
    assert sessions.wait_seconds("1.2.3.4") == 0
    cookie = sessions.open(TOKEN, "1.2.3.4")
    assert sessions.name(cookie)
    clock[0] += 13 * 3600
    assert sessions.name(cookie) is None


def test_an_address_waits_for_its_own_failures() -> None:
    clock = [1000.0]
    sessions = Sessions(TOKEN, lambda: clock[0])
    sessions.is_token("wrong", "1.2.3.4")
    clock[0] += 59
    for _ in range(5):
        sessions.is_token("wrong", "5.6.7.8")
    assert sessions.wait_seconds("5.6.7.8") == 60
    assert sessions.wait_seconds("1.2.3.4") == 0
    for other in range(100):  # the limit in all
        sessions.is_token("wrong", f"10.0.0.{other}")
    assert sessions.wait_seconds("9.9.9.9") == 60


@pytest.mark.parametrize("public_url", [None, "http://hpsearch.example:8080", "https://hpsearch.example"])
def test_behind_a_proxy_its_clients_wait_for_their_own_failures(settings: Settings, public_url: str | None) -> None:
    with serving(settings, token=TOKEN, public_url=public_url) as address:

        def sign_in(token: str, client: str) -> int:
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
            headers = {"X-Forwarded-For": f"9.9.9.9, {client}", "Content-Type": "application/x-www-form-urlencoded"}
            form = urlencode({"token": token})
            connection.request("POST", "/hpsearch/sign-in", form, {**headers, "Origin": address})
            status = connection.getresponse().status
            connection.close()
            return status

        assert [sign_in("wrong", "1.2.3.4") for _ in range(6)] == [403] * 5 + [429]
        assert sign_in(TOKEN, "1.2.3.4") == 429
        assert sign_in(TOKEN, "5.6.7.8") == (
            303 if "https" in (public_url or "") else 429
        )  # else everybody could say who he is


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(UsageError, match="is no name of a machine"):
        listen(host, 0)


def test_every_loopback_address_answers_to_itself() -> None:
    assert Access("127.0.0.2", 8080).knows_host("127.0.0.2")
    assert not Access("127.0.0.2", 8080).knows_host("127.0.0.3")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_other_hosts_get_a_token(host: str) -> None:
    token = choose_token(host, None, None)
    assert token is not None
    assert len(token) >= 32
    assert choose_token(host, None, "a-given-token") == "a-given-token"


def test_tokens_that_can_be_guessed(monkeypatch: pytest.MonkeyPatch, settings: Settings, capsys: Any) -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        assert choose_token(host, None, None) is None
    with pytest.raises(UsageError, match="at least 12"):
        choose_token("127.0.0.1", None, "short")
    wrong = ("search.example.org", "https://[bad", "https://x/path", "https://x:99999", "https://user@x", "https://x?q")
    for url in (*wrong, "https://münchen.de"):  # which browsers call xn--mnchen-3ya.de
        with pytest.raises(UsageError, match="without a path"):
            choose_token("127.0.0.1", url, None)
    for url in ("https://search.example.org", "https://search.example.org:8443/"):
        assert choose_token("127.0.0.1", url, None) is not None
    monkeypatch.setenv("HPSEARCH_DASHBOARD_TOKEN", "short")
    with pytest.raises(SystemExit) as ended:
        main(["dashboard", "--storage", settings.storage_url])
    assert ended.value.code == 2
    assert "HPSEARCH_DASHBOARD_TOKEN" in capsys.readouterr().err


def test_secrets_are_not_in_representations() -> None:
    access = Access("0.0.0.0", 1, token="very-secret-token")
    settings = Settings.from_environment({"HPSEARCH_DASHBOARD_TOKEN": "very-secret-token"})
    assert "very-secret-token" not in repr(access) + repr(settings)
