"""The interactive page, used in a real browser by somebody with a mouse and a keyboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import User, sign


@pytest.mark.slow
def test_a_task_is_created_by_clicking(
    page: Page, server: str, alice: User, tmp_path: Path
) -> None:
    complaints: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))

    page.goto(f"{server}/docs/")
    page.get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    dialog.locator("input").fill(sign(alice.id))
    dialog.get_by_role("button", name="Apply credentials").click()
    dialog.get_by_role("button", name="Close").first.click()

    operation = page.locator("#operations-Tasks-createTask")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_placeholder("user_id").fill(alice.id)
    operation.locator("textarea.body-param__text").fill('{"title": "Buy milk in a browser"}')
    operation.get_by_role("button", name="Execute").click()

    answer = operation.locator(".live-responses-table")
    expect(answer.locator("tbody td.response-col_status")).to_have_text("201")
    expect(answer).to_contain_text("Buy milk in a browser")
    page.screenshot(path=tmp_path / "created.png")
    (task,) = alice.get(alice.tasks).json()
    assert task["title"] == "Buy milk in a browser"
    shown = answer.locator(".highlight-code code").first.inner_text()
    assert json.loads(shown) == task

    assert complaints == []
    # data: URLs, of which the icons are, have no host.
    assert hosts - {""} == {urlsplit(server).netloc}


@pytest.mark.slow
def test_the_page_says_how_to_get_a_token_keeps_it_and_asks_for_the_user_first(
    page: Page, server: str, alice: User
) -> None:
    page.goto(f"{server}/docs/")
    page.get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    expect(dialog).to_contain_text("flask --app wsgi token alice")
    dialog.locator("input").fill(sign(alice.id))
    dialog.get_by_role("button", name="Apply credentials").click()
    expect(dialog.get_by_role("button", name="Remove authorization")).to_be_visible()

    page.reload()
    operation = page.locator("#operations-Tasks-listTasks")
    operation.locator(".opblock-summary-control").click()
    names = operation.locator(".parameters-container").first.locator(".parameter__name")
    expect(names.first).to_have_text(re.compile("user_id"))
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_placeholder("user_id").fill(alice.id)
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table")
    expect(answer.locator("tbody td.response-col_status")).to_have_text("200")


def test_the_page_runs_no_script_but_its_own_files(server: str) -> None:
    answer = httpx.get(f"{server}/docs/")

    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in answer.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"


def test_the_page_is_found_without_the_slash(server: str) -> None:
    assert httpx.get(f"{server}/docs").content == httpx.get(f"{server}/docs/").content


@pytest.mark.parametrize("name", ["init.js", "swagger-ui-bundle.js", "swagger-ui.css"])
def test_a_file_of_the_page_is_cached_for_an_hour_and_then_revalidated(
    server: str, name: str
) -> None:
    answer = httpx.get(f"{server}/docs/{name}")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "public, max-age=3600"

    again = httpx.get(f"{server}/docs/{name}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "index.html",
        "swagger-ui.js",
        "oauth2-redirect.html",
        "..%2Fwsgi.py",
        "%2E%2E/openapi.yaml",
        "/etc/passwd",
        "init.js/",
        "init.js%00",
    ],
)
def test_other_files_are_not_found(server: str, path: str) -> None:
    answer = httpx.get(f"{server}/docs/{path}")

    assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})
