"""Behind the real nginx, HAProxy and Apache httpd, each compressing what it can.

And behind nginx with the configuration of docs/deploy.md.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from tests.api.test_conditional import WRITES
from tests.conftest import NO_TLS, ROOT, User, free_port

pytestmark = pytest.mark.slow

# The programs of Debian's packages, which the Makefile installs.
NGINX = os.environ.get("NGINX", "/usr/sbin/nginx")
HAPROXY = os.environ.get("HAPROXY", "/usr/sbin/haproxy")
APACHE = os.environ.get("APACHE", "/usr/sbin/apache2")

NGINX_CONF = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""
NGINX_HTTP = """
    gzip on;
    gzip_types application/json;
    gzip_proxied any;
    server {{
        listen {listen};
        location / {{
            proxy_pass http://{service};
            proxy_http_version 1.1;
        }}
    }}
"""
HAPROXY_CONF = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen all
    bind {listen}
    compression algo gzip
    compression type application/json
    server service {service}
"""
APACHE_CONF = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
ErrorLog /dev/stderr
DefaultRuntimeDir {folder}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
LoadModule filter_module {modules}/mod_filter.so
LoadModule deflate_module {modules}/mod_deflate.so
User www-data
Group www-data
Listen {listen}
AllowEncodedSlashes NoDecode
ProxyPass / http://{service}/ nocanon
SetOutputFilter DEFLATE
"""
APACHE_MODULES = "/usr/lib/apache2/modules"


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[str]:
    """Run a proxy until the block ends, and yield its address once it answers."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(url, verify=NO_TLS)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def nginx(folder: Path, http: str, port: int) -> Iterator[str]:
    config = folder / "nginx.conf"
    # Its workers give root's rights up, and would then not get into a folder of root's.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(user + NGINX_CONF.format(folder=folder, http=http))
    with running([NGINX, "-e", "stderr", "-c", str(config)], port, folder / "log") as url:
        yield url


@pytest.fixture(scope="module", params=["nginx", "haproxy", "apache"])
def proxy(
    request: pytest.FixtureRequest, server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    port = free_port()
    folder = tmp_path_factory.mktemp(request.param)
    template, command = {
        "nginx": (NGINX_HTTP, []),
        "haproxy": (HAPROXY_CONF, [HAPROXY, "-db"]),
        "apache": (APACHE_CONF, [APACHE, "-DFOREGROUND"]),
    }[request.param]
    text = template.format(
        folder=folder,
        modules=APACHE_MODULES,
        listen=f"127.0.0.1:{port}",
        service=urlsplit(server).netloc,
    )
    if request.param == "nginx":
        running_proxy = nginx(folder, text, port)
    else:
        config = folder / "proxy.conf"
        config.write_text(text)
        running_proxy = running([*command, "-f", str(config)], port, folder / "log")
    with running_proxy as url:
        yield url


@pytest.fixture
def alice(proxy: str) -> Iterator[User]:
    """A client in its default settings, which accepts compressed answers."""
    with User(proxy, f"alice-{uuid4()}") as alice:
        assert "gzip" in alice.headers["Accept-Encoding"]
        yield alice


LONG = "Buy milk " * 20  # nginx and HAProxy leave short answers alone


def test_the_proxy_compresses_and_rewrites_the_tags_of_tasks(alice: User) -> None:
    task = alice.create(LONG)
    answer = alice.get(alice.path(task))

    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.json() == task
    assert answer.headers["ETag"] != f'"{task["updated_at"]}"'


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
def test_a_write_with_the_tag_as_it_came_succeeds_and_a_stale_one_changes_nothing(
    alice: User, method: str, suffix: str, body: dict | None
) -> None:
    created = alice.post(alice.tasks, json={"title": LONG})
    path = alice.path(created.json())
    changed = alice.patch(
        path, json={"description": "x"}, headers={"If-Match": created.headers["ETag"]}
    )
    assert changed.status_code == 200
    read = alice.get(path)

    def write(tag: str) -> httpx.Response:
        return alice.request(method, path + suffix, json=body, headers={"If-Match": tag})

    refused = write(created.headers["ETag"])
    assert (refused.status_code, refused.json()) == (412, {"error": "Task was modified"})
    assert alice.get(path).json() == changed.json()
    for answer in (changed, refused):  # as good as the one that was read
        known = alice.get(path, headers={"If-None-Match": answer.headers["ETag"]})
        assert known.status_code == 304
    assert write(read.headers["ETag"]).status_code == (204 if method == "DELETE" else 200)


def test_of_writes_with_the_tag_of_a_task_in_a_list_the_first_succeeds(alice: User) -> None:
    alice.create(LONG)
    (task,) = alice.get(alice.tasks).json()
    headers = {"If-Match": f'"{task["updated_at"]}"'}

    answers = [alice.patch(alice.path(task), json={"title": LONG}, headers=headers) for _ in "12"]

    assert [answer.status_code for answer in answers] == [200, 412]


# Sixty tasks of this length are streamed, unless a page is asked for.
@pytest.mark.parametrize(
    ("count", "query"), [(3, ""), (60, ""), (60, "?status=incomplete"), (60, "?limit=2")]
)
def test_what_the_client_has_is_not_sent_again(alice: User, count: int, query: str) -> None:
    task, *_ = [alice.create(LONG, description="x" * 5000) for _ in range(count)]
    paths = [alice.tasks + query, alice.path(task)]

    tags = []
    for path in paths:
        answer = alice.get(path)
        assert answer.headers["Content-Encoding"] == "gzip"
        tags.append({"If-None-Match": answer.headers["ETag"]})
        known = alice.get(path, headers=tags[-1])
        assert (known.status_code, known.content) == (304, b"")
    alice.patch(f"{alice.path(task)}/complete")

    for path, tag in zip(paths, tags, strict=True):
        assert alice.get(path, headers=tag).status_code == 200


DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
PAGE, *_ = re.findall(r"```nginx\n(.*?)```", DEPLOY, re.DOTALL)


@contextmanager
def nginx_of_the_page(folder: Path, service: str) -> Iterator[str]:
    """Run the configuration of docs/deploy.md; only the two addresses are other ones."""
    port = free_port()
    text = PAGE.replace("listen 80;", f"listen 127.0.0.1:{port};")
    text = text.replace("server 127.0.0.1:8000;", f"server {service};")
    with nginx(folder, text, port) as url:
        yield f"{url}/todo"


@pytest.fixture
def mounted(server: str, tmp_path: Path) -> Iterator[str]:
    with nginx_of_the_page(tmp_path, urlsplit(server).netloc) as url:
        yield url


@pytest.mark.parametrize("user_id", ["auth0|5f7c", "a/b", "a//b", "ä%2F", "100% ?#", ".."])
def test_with_the_nginx_of_the_page_links_work_below_its_path(mounted: str, user_id: str) -> None:
    origin = mounted.removesuffix("/todo")
    with User(mounted, f"{user_id}/{uuid4()}") as user:
        created = [user.post(user.tasks, json={"title": LONG}) for _ in "123"]
        for answer in created:
            location = answer.headers["Location"]
            assert location.startswith("/todo/api/")
            assert user.get(origin + location).json() == answer.json()
        path, seen = f"{mounted}{user.tasks}?limit=1", []
        while path:
            page = user.get(path)
            assert page.headers["Content-Encoding"] == "gzip"
            seen += page.json()
            path = origin + page.links["next"]["url"] if "next" in page.links else ""
        assert [task["id"] for task in seen] == [answer.json()["id"] for answer in created][::-1]
        headers = {"If-Match": created[0].headers["ETag"], "X-Forwarded-Prefix": "/other"}
        moved = user.patch(user.path(seen[-1]), json={"title": "x"}, headers=headers)
        assert moved.status_code == 200


def test_the_nginx_of_the_page_takes_the_largest_body(mounted: str) -> None:
    with User(mounted, f"alice-{uuid4()}") as alice:
        body = b'{"title": "x"}'.ljust(1024 * 1024)
        answer = alice.post(alice.tasks, content=body, headers={"Content-Type": "application/json"})

    # Refused by the service, in JSON.
    assert answer.status_code == 413
    assert answer.json() == {"error": "Request body must be at most 64 KiB"}


@pytest.fixture
def behind_the_page(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Put the nginx of the page in front of a handler, and give its address."""
    with ExitStack() as stack:

        def start(handler: type[BaseRequestHandler]) -> str:
            service = stack.enter_context(ThreadingTCPServer(("127.0.0.1", 0), handler))
            service.daemon_threads = True
            stack.callback(service.shutdown)
            threading.Thread(target=service.serve_forever, daemon=True).start()
            address = f"127.0.0.1:{service.server_address[1]}"
            return stack.enter_context(nginx_of_the_page(tmp_path, address))

        yield start


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "POST"])
def test_the_nginx_of_the_page_sends_nothing_twice(
    behind_the_page: Callable[..., str], method: str
) -> None:
    requests: list[bytes] = []

    class Breaking(BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                requests.append(data.partition(b" ")[0])
                if len(requests) == 3:  # on a connection that was good for two
                    return
                self.request.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    url = behind_the_page(Breaking)
    statuses = [httpx.request(method, f"{url}/", verify=NO_TLS).status_code for _ in "123"]

    assert statuses == [204, 204, 502]
    assert requests == [method.encode()] * 3


def test_slow_clients_wait_at_the_nginx_of_the_page(behind_the_page: Callable[..., str]) -> None:
    bodies: list[bytes] = []
    answered = threading.Event()
    size = 64 * 1024 * 1024  # more than sockets hold on the way

    class Answering(BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                bodies.append(data.partition(b"\r\n\r\n")[2])
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"
                self.request.sendall(head.encode() + b"x" * size)
                answered.set()

    url = urlsplit(behind_the_page(Answering))
    head = b"POST /todo/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 4\r\n\r\n"
    with (
        socket.create_connection((url.hostname, url.port)) as slow,
        socket.create_connection((url.hostname, url.port)) as whole,
    ):
        slow.sendall(head + b"sl")
        whole.sendall(head + b"fast")
        # Nobody reads its answer, and the service is done with it; of the slow one, nothing came.
        assert answered.wait(30)
        assert bodies == [b"fast"]
        answered.clear()
        slow.sendall(b"ow")
        assert answered.wait(30)
        assert bodies == [b"fast", b"slow"]


def test_an_address_gets_so_many_answers_and_connections(server: str, tmp_path: Path) -> None:
    section = DEPLOY.partition("### Limits in front")[2].partition("\n## ")[0]
    zones, limits = re.findall("```nginx\n(.*?)```", section, re.DOTALL)
    port = free_port()
    location = f"location / {{ proxy_pass {server}; }}"
    http = f"{zones} server {{ listen 127.0.0.1:{port}; {limits} {location} }}"

    with nginx(tmp_path, http, port) as url, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> int:
            return httpx.get(f"{url}/health", timeout=20, verify=NO_TLS).status_code

        statuses = list(pool.map(ask, range(400)))

    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 100
