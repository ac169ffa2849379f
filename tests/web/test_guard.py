"""Hostile requests, each with the refusal that it gets."""

import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna_dashboard import wsgi
from werkzeug.test import Client, TestResponse

from benchmarks.filling import made_up
from hpsearch.settings import Settings
from hpsearch.storage.open import create
from hpsearch.storage.studies import study_names
from hpsearch.web.access import Sessions
from hpsearch.web.app import make_app
from hpsearch.web.source import Source
from tests.postgres import PostgresServer
from tests.web.serving import HOST, TOKEN, Opener, confuse, local, settings_for

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
OPEN = {"/hpsearch/sign-in", "/hpsearch/static/style.css"}
SAME = {"Origin": f"http://{HOST}"}


def ask(asker: Client, method: str, path: str, headers: dict[str, str] | None = None, **rest: Any) -> TestResponse:
    """One request to 127.0.0.1:8080, as tests know it."""
    return asker.open(path, method=method, buffered=True, headers={"Host": HOST} | (headers or {}), **rest)


def own_paths(settings: Settings) -> list[str]:
    """A path for every route of hpsearch's pages."""
    with create(settings.storage_url) as database:
        rules = list(make_app(Source(database, settings), local(), Sessions(None)).url_map.iter_rules())
    fill = {"study_id": "1", "number": "0", "filename": "live.js"}
    return sorted({re.sub(r"<(?:\w+:)?(\w+)>", lambda found: fill[found[1]], rule.rule) for rule in rules})


def their_paths(settings: Settings) -> list[str]:
    """A path for every route of optuna-dashboard."""
    found = set()
    with create(settings.storage_url) as database:
        for route in wsgi(database.storage).routes:
            path = re.sub(r"<[^<>]*(?:<[^<>]*>[^<>]*)*>", "1", route.rule)
            found.add(path if path.startswith("/") else f"/{path}")
    return sorted(found)


def sign_in(asker: Client, token: str = TOKEN) -> TestResponse:
    return ask(asker, "POST", "/hpsearch/sign-in", SAME, data={"token": token})


def unpacked(body: bytes) -> bytes:
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body


def form_token(asker: Client, path: str = "/hpsearch/") -> str:
    found = re.search(r'name="form_token" value="([^"]+)"', ask(asker, "GET", path).text)
    assert found
    return found[1]


def test_without_sign_in_nothing_opens(client: Opener, settings: Settings) -> None:
    asker = client(settings, local(token=TOKEN, allow_write=True))
    paths = [
        *own_paths(settings),
        *their_paths(settings),
        "/api/studies/1",
        "/artifacts/1/1/a",
        "/nowhere",
        "/hpsearch/x",
    ]
    assert len(paths) > 40
    for path in paths:
        for method in METHODS:
            answer = ask(asker, method, path, SAME)
            if path in OPEN and method in ("GET", "HEAD", "POST"):
                assert answer.status_code in (200, 403, 405), (method, path)
            else:
                assert answer.status_code in (401, 405), (method, path, answer.status)
            assert b"made-up" not in answer.data
    page = ask(asker, "GET", "/hpsearch/", {"Accept": "text/html"})
    assert (page.status_code, page.headers["Location"]) == (303, "/hpsearch/sign-in")


def test_the_sign_in_leads_to_the_page_that_was_asked_for(client: Opener, settings: Settings) -> None:
    asker = client(settings, local(token=TOKEN))
    page = ask(asker, "GET", "/hpsearch/compare?study=1&t=0", {"Accept": "text/html"})
    place = page.headers["Location"]
    assert (page.status_code, place) == (303, "/hpsearch/sign-in?next=%2Fhpsearch%2Fcompare%3Fstudy%3D1%26t%3D0")
    assert 'name="next" value="/hpsearch/compare?study=1&amp;t=0"' in ask(asker, "GET", place).text
    assert 'name="next" value="/hpsearch/compare?' in ask(asker, "POST", place, SAME, data={"token": "wrong"}).text

    def leads(wanted: str) -> str:
        answer = ask(asker, "POST", "/hpsearch/sign-in", SAME, data={"token": TOKEN, "next": wanted})
        assert answer.status_code == 303
        return answer.headers["Location"]

    assert leads("/hpsearch/compare?study=1&t=0") == "/hpsearch/compare?study=1&t=0"
    elsewhere = ("https://evil.example/hpsearch/", "//evil.example/hpsearch/", "/hpsearch.evil", "/\\evil.example", "")
    for wanted in (*elsewhere, "/api/studies", "/hpsearch/\r\nSet-Cookie: a=b", "javascript:alert(1)"):
        assert leads(wanted) == "/hpsearch/", wanted
    assert ask(asker, "GET", place).headers["Location"] == "/hpsearch/compare?study=1&t=0"  # signed in already


def test_sign_in_and_out(client: Opener, settings: Settings) -> None:
    asker = client(settings, local(token=TOKEN))
    wrong = sign_in(asker, "not-the-token")
    assert wrong.status_code == 403
    assert "Set-Cookie" not in wrong.headers
    right = sign_in(asker)
    assert right.status_code == 303
    flags = right.headers["Set-Cookie"]
    assert "HttpOnly" in flags
    assert "SameSite=Lax" in flags
    assert TOKEN not in flags
    assert ask(asker, "GET", "/hpsearch/study/1").status_code == 200
    assert ask(asker, "GET", "/api/studies").status_code == 200
    stolen = re.match(r"([^=]+)=([^;]+)", flags)
    assert stolen
    assert ask(asker, "POST", "/hpsearch/sign-out", SAME, data={"form_token": form_token(asker)}).status_code == 303
    again = client(settings, local(token=TOKEN))
    asker.set_cookie(stolen[1], stolen[2], domain="127.0.0.1")
    for other in (asker, again):  # the old cookie is worth nothing, here and in front of another server
        other.set_cookie(stolen[1], stolen[2], domain="127.0.0.1")
        assert ask(other, "GET", "/hpsearch/").status_code == 401


@pytest.mark.parametrize(
    "cookie", ["x", "x.y.z", "", "a" * 5000, '"', "é"], ids=["x", "dots", "empty", "long", "quote", "e"]
)
def test_forged_cookies(client: Opener, settings: Settings, cookie: str) -> None:
    asker = client(settings, local(token=TOKEN))
    assert ask(asker, "GET", "/hpsearch/", {"Cookie": f"hpsearch-8080={cookie}"}).status_code == 401


@pytest.mark.parametrize("theirs", ['prefs={"theme": "dark"}', "u=John, Doe", "a[b]=1", "flag", 'x="a b"', "n=\xff"])
def test_cookies_of_other_programs(client: Opener, settings: Settings, theirs: str) -> None:
    """They come along, as cookies do not tell ports apart."""
    asker = client(settings, local(token=TOKEN))
    own = sign_in(asker).headers["Set-Cookie"].partition(";")[0]
    other = Client(asker.application, use_cookies=False)
    for cookies in (f"{theirs}; {own}", f"{own}; {theirs}"):
        assert ask(other, "GET", "/hpsearch/", {"Cookie": cookies}).status_code == 200


def test_attempts_are_throttled(client: Opener, settings: Settings) -> None:
    asker = client(settings, local(token=TOKEN))
    assert [sign_in(asker, f"wrong-{n}").status_code for n in range(6)] == [403] * 5 + [429]
    late = sign_in(asker)  # the right token too has to wait
    assert late.status_code == 429
    assert 0 < int(late.headers["Retry-After"]) <= 60


def test_cookies_are_secure_behind_tls(client: Opener, settings: Settings) -> None:
    asker = client(settings, local(token=TOKEN, public_url="https://search.example.org"))
    public = {"Host": "search.example.org", "Origin": "https://search.example.org"}
    answer = ask(asker, "POST", "/hpsearch/sign-in", public, data={"token": TOKEN})
    assert "Secure" in answer.headers["Set-Cookie"]
    assert answer.headers["Set-Cookie"].startswith("__Host-")
    assert local(public_url="https://Search.Example.org").is_own_origin("https://search.example.org", HOST)
    assert not local(public_url="https://x.org").is_own_origin("http://x.org", "x.org")  # somebody between, without TLS
    assert local(public_url="https://x.org").is_own_origin(f"http://{HOST}", HOST)
    assert not local().is_own_origin("http://x.org", HOST)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8080", "10.0.0.1", "a b", "x/y", "", "::1"])
def test_foreign_hosts(client: Opener, settings: Settings, host: str) -> None:
    asker = client(settings, local())
    for path in ("/hpsearch/", "/api/studies", "/dashboard", "/hpsearch/static/style.css"):
        assert ask(asker, "GET", path, {"Host": host}).status_code == 403
    for own in ("127.0.0.1:8080", "localhost:9999", "[::1]:8080"):  # another port: an ssh tunnel
        assert ask(asker, "GET", "/api/studies", {"Host": own}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[evil"},
        {"Origin": "http://127.0.0.1:9999"},  # another program on this machine
        {"Origin": f"http://{HOST}.evil.example"},
        {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {},
    ],
)
def test_foreign_origins_cannot_write(client: Opener, settings: Settings, headers: dict[str, str]) -> None:
    asker = client(settings, local(allow_write=True))
    token = {"form_token": form_token(asker, "/hpsearch/study/1"), "state": "stopped"}
    for method, path in (
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/trials/1/tell"),
        ("PUT", "/api/studies/1/note"),
        ("POST", "/hpsearch/study/1/control"),
    ):
        assert ask(asker, method, path, headers, data=token).status_code == 403, (method, path)
    with create(settings.storage_url) as database:
        assert study_names(database) == ["made-up"]


def test_foreign_sites_cannot_embed_or_fetch(client: Opener, settings: Settings) -> None:
    asker = client(settings, local())
    for site in ("cross-site", "same-site"):
        embedded = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
        assert ask(asker, "GET", "/csv/1", embedded).status_code == 403
        assert (
            ask(asker, "GET", "/hpsearch/", {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 200
        )
    for path in ("/hpsearch/", "/dashboard", "/api/studies", "/csv/1"):
        answer = ask(asker, "GET", path, {"Origin": f"http://{HOST}"})
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src" in answer.headers["Content-Security-Policy"]
        assert "script-src 'self' 'unsafe-inline'" not in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_reading_only(client: Opener, settings: Settings) -> None:
    asker = client(settings, local())
    for path in their_paths(settings):
        for method in METHODS[2:]:
            answer = ask(asker, method, path, SAME)
            assert answer.status_code == 405, (method, path)
            assert "--allow-write" in answer.text or "answers to" in answer.text
    page = ask(asker, "GET", "/hpsearch/study/1")
    assert "Pause" not in page.text
    token = form_token(client(settings, local(allow_write=True)), "/hpsearch/study/1")
    refused = ask(asker, "POST", "/hpsearch/study/1/control", SAME, data={"state": "stopped", "form_token": token})
    assert refused.status_code == 403


def test_writing_where_it_is_allowed(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "mine", 2, 2)
    asker = client(settings, local(allow_write=True))
    saved = ask(asker, "PUT", "/api/studies/1/note", SAME, json={"version": 1, "body": "mine"})
    assert saved.status_code == 204
    for given in ("", "x", form_token(asker, "/hpsearch/study/1")[:-1]):
        data = {"state": "paused", "form_token": given}
        assert ask(asker, "POST", "/hpsearch/study/1/control", SAME, data=data).status_code == 403
    right = {"form_token": form_token(asker, "/hpsearch/study/1")}
    wrong = ask(asker, "POST", "/hpsearch/study/1/control", SAME, data=right | {"state": "deleted"})
    assert wrong.status_code == 400
    done = ask(asker, "POST", "/hpsearch/study/1/control", SAME, data=right | {"state": "paused"})
    assert done.status_code == 303
    assert "paused" in ask(asker, "GET", "/hpsearch/study/1").text
    missing = ask(asker, "POST", "/hpsearch/study/7/control", SAME, data=right | {"state": "paused"})
    assert missing.status_code == 404


def test_a_form_of_another_session_is_refused(client: Opener, settings: Settings) -> None:
    access = local(token=TOKEN, allow_write=True)
    first = client(settings, access)
    second = Client(first.application)
    sign_in(first)
    sign_in(second)
    data = {"state": "stopped", "form_token": form_token(first)}
    assert ask(second, "POST", "/hpsearch/study/1/control", SAME, data=data).status_code == 403


def test_artifacts_are_images_or_downloads(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    attack = "<script>document.title = 'attacked'</script>"
    with create(settings.storage_url) as database:
        study = optuna.create_study(storage=database.storage, study_name="s")
        store = FileSystemArtifactStore(str(tmp_path / "artifacts"))
        (tmp_path / "artifacts").mkdir()
        served = {}
        for name in ("page.html", "picture.svg", "picture.png", "page.xhtml", "x.js"):
            (tmp_path / name).write_text(attack)
            served[name] = upload_artifact(artifact_store=store, file_path=str(tmp_path / name), study_or_trial=study)
    asker = client(settings, local())
    for name, artifact in served.items():
        answer = ask(asker, "GET", f"/artifacts/1/{artifact}")
        assert answer.text == attack
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        if name == "picture.png":
            assert answer.headers["Content-Type"] == "image/png"
        else:
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Content-Disposition"] == "attachment"


NASTY = "x'); DROP TABLE studies; --<script>alert(1)</script>\"{{ 7777 * 7777 }}"


def test_sql_and_script_in_names_and_notes(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, NASTY, 3, 2, prune=False).fill(3)
        confuse(database, tmp_path, 1, NASTY)
        other = optuna.create_study(storage=database.storage, study_name=f"foreign {NASTY}")
        other.set_user_attr(NASTY, NASTY)
    asker = client(settings, local(allow_write=True))
    noted = ask(asker, "PUT", "/api/studies/1/note", SAME, json={"version": 1, "body": NASTY})
    assert noted.status_code == 204
    pages = ["/", "/study/1", "/study/2", "/study/1/trials", "/study/1/best", "/study/1/trial/0", "/workers"]
    for path in [
        *pages,
        "/compare?study=1&t=0,1",
        f"/compare?t={NASTY}&study={NASTY}",
        f"/study/1/trials?sort={NASTY}",
    ]:
        answer = ask(asker, "GET", f"/hpsearch{path}")
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.text
        assert str(7777 * 7777) not in answer.text  # shorter numbers come by chance: in ids of processes, in tokens
        live = ask(asker, "GET", f"/hpsearch{path}{'&' if '?' in path else '?'}live=1")
        if live.headers["Content-Type"] == "application/json":
            assert "<script>alert" not in json.dumps(json.loads(unpacked(live.get_data()))["parts"])
    assert ask(asker, "GET", "/hpsearch/study/1%20OR%201=1").status_code == 404
    with create(settings.storage_url) as database:
        assert len(study_names(database)) == 2


def test_the_contour_plot_of_many_trials_is_refused_with_a_sentence(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "small", 4, 1, prune=False).fill(4)
        made_up(database, "large", 800, 1, prune=False).fill(800)
    asker = client(settings, local())
    assert ask(asker, "GET", "/api/studies/1/plot/contour").status_code == 200
    began = time.monotonic()
    answer = ask(asker, "GET", "/api/studies/2/plot/contour")
    assert answer.status_code == 422
    assert "more than a browser can draw" in answer.json["reason"]
    assert time.monotonic() - began < 2


def test_a_reused_study_id_is_not_the_old_study(client: Opener, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with create(settings.storage_url) as database:
        made_up(database, "old", 3, 1, prune=False).fill(3)
    asker = client(settings, local())
    assert len(ask(asker, "GET", "/api/studies/1").json["trials"]) == 3
    assert "old" in ask(asker, "GET", "/hpsearch/study/1").text
    with create(settings.storage_url) as database:
        optuna.delete_study(study_name="old", storage=database.storage)
        made_up(database, "new", 2, 1, prune=False).fill(2)
    detail = ask(asker, "GET", "/api/studies/1").json
    assert (detail["name"], len(detail["trials"])) == ("new", 2)
    page = ask(asker, "GET", "/hpsearch/study/1").text
    assert "new" in page
    assert "2 of 2 trials" in page


def test_heads_are_those_of_gets(client: Opener, settings: Settings) -> None:
    asker = client(settings, local())
    for path in ("/dashboard", "/api/studies/1", "/csv/1", "/api/studies/999", "/hpsearch/"):
        got, head = (ask(asker, method, path) for method in ("GET", "HEAD"))
        assert (head.status, head.headers["Content-Length"]) == (got.status, got.headers["Content-Length"]), path
        assert head.data == b""


def test_the_database_password_appears_nowhere(
    client: Opener,
    postgres: PostgresServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = postgres.new_database().replace("hpsearch@", "hpsearch:s3cret-word@")
    settings = settings_for(tmp_path, url)
    with create(url) as database:
        made_up(database, "made-up", 6, 2).fill(6)
    asker = client(settings, local(allow_write=True))
    paths = [*own_paths(settings), *their_paths(settings), "/api/studies/1", "/nowhere"]

    def answers() -> list[TestResponse]:
        return [ask(asker, method, path, SAME) for path in paths for method in ("GET", "POST")]

    there = answers()
    postgres.drop_database(url)  # and now its driver has something to say
    away = answers()
    captured = capfd.readouterr()
    assert not [answer.request.path for answer in there if answer.status_code == 503]
    assert {"/hpsearch/", "/api/studies/1", "/csv/1"} <= {one.request.path for one in away if one.status_code == 503}
    said = captured.out + captured.err + caplog.text
    said += "".join(unpacked(answer.get_data()).decode(errors="replace") for answer in (*there, *away))
    assert "s3cret-word" not in said
    texts = b"".join(unpacked(answer.get_data()) for answer in away if answer.status_code >= 500)
    assert url.rpartition("/")[2].encode() not in texts  # of its name and place people hear nothing either
    assert str(postgres.port).encode() not in texts
