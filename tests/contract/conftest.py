"""The document, a browser, and a service that pages of another origin may call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import ROOT, SECRET, Server

DOCUMENT = ROOT / "todo_service" / "openapi.yaml"
OTHER_ORIGINS = [
    "http://[::1]:3000",
    *("capacitor://localhost", "ionic://localhost", "tauri://localhost", "app://obsidian.md"),
    *("app://-", "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb"),
]

# What a browser needs as root in a container, and no requests that it makes for itself.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    return yaml.safe_load(DOCUMENT.read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 2600})
    page.set_default_timeout(20_000)
    yield page
    page.close()


class Blank(BaseHTTPRequestHandler):
    """Answers every GET with an empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def other_port() -> Iterator[int]:
    """The port of a site that is not ours; its two names make two origins."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as site:
        Thread(target=site.serve_forever, daemon=True).start()
        yield site.server_port
        site.shutdown()


@pytest.fixture(scope="session")
def allowed_origin(other_port: int) -> str:
    return f"http://localhost:{other_port}"


@pytest.fixture(scope="session")
def refused_origin(other_port: int) -> str:
    return f"http://127.0.0.1:{other_port}"


@pytest.fixture(scope="session")
def open_server(
    database_url: str, allowed_origin: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The base URL of a service with CORS_ORIGINS."""
    log = tmp_path_factory.mktemp("open-server") / "log"
    server = Server(
        log,
        DATABASE_URL=database_url,
        JWT_SECRET=SECRET,
        CORS_ORIGINS=", ".join([allowed_origin, *OTHER_ORIGINS]),
        WEB_CONCURRENCY="1",
    )
    server.wait("/ready")
    yield server.url
    assert server.stop() == 0, log.read_text()
