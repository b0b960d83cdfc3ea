"""Pages of other origins: the ones of CORS_ORIGINS may call the service, the rest may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from flask import Flask, Request
from playwright.sync_api import Error, Page

from tests.conftest import SECRET, User
from tests.contract.conftest import OTHER_ORIGINS
from todo_service import create_app
from todo_service.settings import Settings

pytestmark = pytest.mark.slow

EXPOSED = "ETag, Idempotency-Replayed, Link, Location, Retry-After, X-Request-ID"
HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-ID,"
    " traceparent, baggage, sentry-trace, x-datadog-trace-id, X-Requested-With, X-Made-Up"
)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}

# Runs in the page: change a task unless it was modified, and say what can be seen of the answer.
PATCH = """async ([url, token, tag]) => {
  const answer = await fetch(url, {
    method: 'PATCH',
    headers: {
      'Authorization': token,
      'Content-Type': 'application/json',
      'If-Match': tag,
      'X-Requested-With': 'XMLHttpRequest',
      'baggage': 'sentry-release=1',
    },
    body: JSON.stringify({title: 'Changed by a page'}),
  });
  return {
    status: answer.status,
    title: (await answer.json()).title,
    tag: answer.headers.get('ETag'),
    requestId: answer.headers.get('X-Request-ID'),
    timing: answer.headers.get('Server-Timing'),
  };
}"""


def preflight(
    url: str, origin: str, method: str = "PATCH", headers: str = HEADERS
) -> httpx.Response:
    return httpx.options(
        url,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers.lower(),
        },
    )


def cors_headers(answer: httpx.Response) -> dict[str, str]:
    return {k: v for k, v in answer.headers.items() if k.startswith("access-control-")}


def split(header: str) -> set[str]:
    return {part.strip() for part in header.split(",")}


@pytest.fixture
def task(alice: User) -> dict[str, object]:
    return alice.create()


def test_a_page_of_an_allowed_origin_patches_with_if_match_and_reads_the_etag(
    page: Page, open_server: str, allowed_origin: str, alice: User, task: dict[str, object]
) -> None:
    tag = alice.get(alice.path(task)).headers["ETag"]
    arguments = [open_server + alice.path(task), alice.headers["Authorization"], tag]
    page.goto(allowed_origin)

    changed = page.evaluate(PATCH, arguments)
    again = page.evaluate(PATCH, arguments)

    now = alice.get(alice.path(task))
    assert (changed["status"], changed["title"]) == (200, "Changed by a page")
    assert changed["tag"] == now.headers["ETag"] != tag
    assert changed["requestId"]
    assert changed["timing"] is None  # not exposed
    assert again["status"] == 412
    assert now.json()["title"] == "Changed by a page"


def test_a_page_whose_library_includes_credentials_is_answered_all_the_same(
    page: Page, open_server: str, allowed_origin: str, alice: User, task: dict[str, object]
) -> None:
    page.goto(allowed_origin)

    title = page.evaluate(
        """async ([url, token]) => {
          const headers = {Authorization: token, 'sentry-trace': '1'};
          const answer = await fetch(url, {credentials: 'include', headers});
          return (await answer.json()).title;
        }""",
        [open_server + alice.path(task), alice.headers["Authorization"]],
    )

    assert title == task["title"]


def test_a_page_of_another_origin_changes_nothing_and_learns_nothing(
    page: Page, open_server: str, refused_origin: str, alice: User, task: dict[str, object]
) -> None:
    page.goto(refused_origin)
    path, token = alice.path(task), alice.headers["Authorization"]

    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate(PATCH, [open_server + path, token, "*"])
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate("url => fetch(url)", f"{open_server}/health")

    assert alice.get(path).json() == task


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_preflight_says_what_is_allowed_and_for_how_long(
    open_server: str, allowed_origin: str, method: str
) -> None:
    answer = preflight(f"{open_server}/api/alice/tasks/1", allowed_origin, method)

    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == allowed_origin
    assert split(answer.headers["Access-Control-Allow-Methods"]) == METHODS
    assert split(answer.headers["Access-Control-Allow-Headers"].lower()) == split(HEADERS.lower())
    assert int(answer.headers["Access-Control-Max-Age"]) >= 600
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert answer.headers["Vary"] == "Origin"


def test_a_preflight_that_asks_for_no_header_is_answered(
    open_server: str, allowed_origin: str
) -> None:
    headers = {"Origin": allowed_origin, "Access-Control-Request-Method": "GET"}

    answer = httpx.options(f"{open_server}/api/alice/tasks", headers=headers)

    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == allowed_origin
    assert "Access-Control-Allow-Headers" not in answer.headers


def test_answers_expose_their_headers_to_an_allowed_origin(
    open_server: str, allowed_origin: str, alice: User
) -> None:
    answer = alice.post(
        open_server + alice.tasks, json={"title": "x"}, headers={"Origin": allowed_origin}
    )

    assert answer.status_code == 201
    assert cors_headers(answer) == {
        "access-control-allow-credentials": "true",
        "access-control-allow-origin": allowed_origin,
        "access-control-expose-headers": EXPOSED,
    }
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "mangle",
    [
        lambda origin: origin + "0",
        lambda origin: origin + ".example.com",
        lambda origin: origin.replace("http:", "https:"),
        lambda origin: origin.replace("localhost", "LOCALHOST"),
        lambda origin: origin.replace("localhost", "localhost."),
        lambda origin: origin.replace("localhost", "evil.localhost"),
        lambda origin: origin + "/",
        lambda _: "null",
        lambda _: "*",
        lambda _: "",
        # What the IPv6 origin would let in if it were taken for a regular expression.
        lambda _: "http://1:3000",
        lambda _: "http://:",
    ],
)
def test_another_origin_gets_no_cors_headers(
    open_server: str, allowed_origin: str, mangle: Callable[[str], str]
) -> None:
    origin = mangle(allowed_origin)

    for answer in (
        preflight(f"{open_server}/api/alice/tasks", origin),
        httpx.get(f"{open_server}/health", headers={"Origin": origin}),
        httpx.get(f"{open_server}/api/alice/tasks", headers={"Origin": origin}),
    ):
        assert cors_headers(answer) == {}
        # A cache may not hand this answer to a page of an allowed origin.
        assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_an_ipv6_origin_and_those_of_apps_are_allowed(open_server: str, origin: str) -> None:
    answer = preflight(f"{open_server}/api/alice/tasks", origin)

    assert answer.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize("cors_origins", [(), ("https://app.example.com",)])
def test_a_refused_origin_stands_in_the_line_of_its_request(
    database_url: str, caplog: pytest.LogCaptureFixture, cors_origins: tuple[str, ...]
) -> None:
    settings = Settings(database_url=database_url, jwt_secret=SECRET, cors_origins=cors_origins)
    app = create_app(settings)
    caplog.set_level("INFO", "todo_service.requests")

    def line(**headers: str) -> str:
        app.test_client().open("/health", method="OPTIONS", headers=headers)
        return caplog.messages[-1]

    assert line(Origin="https://other.example").endswith(' user=- origin="https://other.example"')
    assert line(Origin="null").endswith(" user=- origin=null")
    assert line(Origin='x" user=root \x85' + "y" * 5000).endswith(
        r' user=- origin="x\" user=root \u0085' + "y" * 242 + '"'
    )
    assert line().endswith(" user=-")
    # A proxy of the page's own origin, such as the rewrites of Next.js, hands it on.
    same = {"Origin": "https://same.example", "Sec-Fetch-Site": "same-origin"}
    assert line(**same).endswith(" user=-")
    for origin in cors_origins:
        assert line(Origin=origin).endswith(" user=-")
    app.extensions["database"].close()


def test_without_an_origin_there_are_no_cors_headers(open_server: str) -> None:
    answer = httpx.get(f"{open_server}/health")

    assert cors_headers(answer) == {}
    assert answer.headers["Vary"] == "Origin"


def test_without_cors_origins_no_origin_is_allowed(server: str, allowed_origin: str) -> None:
    for answer in (
        preflight(f"{server}/api/alice/tasks", allowed_origin),
        httpx.get(f"{server}/health", headers={"Origin": allowed_origin}),
    ):
        assert answer.status_code == 200
        assert cors_headers(answer) == {}
        assert "Vary" not in answer.headers


def test_a_page_of_an_allowed_origin_can_read_errors(
    open_server: str, allowed_origin: str, alice: User, bob: User
) -> None:
    origin = {"Origin": allowed_origin}
    answers = {
        400: alice.post(open_server + alice.tasks, headers=origin),
        401: httpx.get(open_server + alice.tasks, headers=origin),
        403: alice.get(open_server + bob.tasks, headers=origin),
        404: httpx.get(f"{open_server}/nothing", headers=origin),
        405: httpx.delete(f"{open_server}/health", headers=origin),
    }

    for status, answer in answers.items():
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == allowed_origin
        assert answer.headers["Access-Control-Expose-Headers"] == EXPOSED


@pytest.fixture
def broken_app() -> Iterator[Flask]:
    """An app whose database is away and whose authenticator has a bug."""

    def authenticate(_: Request) -> str:
        raise RuntimeError("a bug")

    settings = Settings(
        database_url="postgresql://127.0.0.1:1/nothing",
        jwt_secret=SECRET,
        cors_origins=("https://app.example.com",),
    )
    app = create_app(settings, authenticate)
    yield app
    app.extensions["database"].close()


@pytest.mark.parametrize(("path", "status"), [("/api/alice/tasks", 500), ("/ready", 503)])
def test_a_page_of_an_allowed_origin_can_read_failures(
    broken_app: Flask, path: str, status: int
) -> None:
    answer = broken_app.test_client().get(path, headers={"Origin": "https://app.example.com"})

    assert answer.status_code == status
    assert answer.headers.getlist("Access-Control-Allow-Origin") == ["https://app.example.com"]
    assert answer.headers.getlist("Access-Control-Expose-Headers") == [EXPOSED]
