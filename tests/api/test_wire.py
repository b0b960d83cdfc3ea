"""Bytes that no HTTP library would send: malformed, cut short, smuggled."""

from __future__ import annotations

import json
import re
import socket
from email.message import Message
from http.client import HTTPResponse

import httpx
import pytest

from tests.conftest import User


def connect(alice: User) -> socket.socket:
    return socket.create_connection((alice.base_url.host, alice.base_url.port), 10)


def send(alice: User, request: bytes, half_close: bool = False) -> tuple[int, Message, bytes]:
    """Status, headers and body of the first answer to raw bytes."""
    with connect(alice) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.headers, answer.read()


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def start(alice: User, method: str = "POST") -> bytes:
    return (
        f"{method} {alice.tasks} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {alice.headers['Authorization']}\r\n"
    ).encode()


@pytest.mark.parametrize(
    "request_head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n folded: 1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_a_json_error(alice: User, request_head: bytes) -> None:
    status, headers, body = send(alice, request_head)

    assert 400 <= status < 500
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert re.fullmatch(r"\{\"error\":\"[A-Z][A-Za-z0-9, -]+\"\}", body.decode())


@pytest.mark.parametrize(
    "rest",
    [b" HTTP/1.1\r\n\r\n", b" HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", b" HTTP/9.9\r\n\r\n"],
)
def test_a_head_request_that_is_refused_has_no_body(alice: User, rest: bytes) -> None:
    with connect(alice) as connection:
        connection.sendall(b"HEAD /health" + rest)
        answer = read_all(connection)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert re.search(rb"\r\nContent-Length: [1-9]", answer)
    assert answer.endswith(b"\r\n\r\n")


def test_an_absolute_form_without_a_path_is_the_index(alice: User) -> None:
    status, _, body = send(alice, b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n")

    assert (status, json.loads(body)["name"]) == (200, "todo-service")


def test_http_1_0_needs_no_host(alice: User) -> None:
    status, headers, _ = send(alice, b"GET /health HTTP/1.0\r\n\r\n")

    assert (status, headers["connection"]) == (200, "close")


def head_of(size: int) -> bytes:
    """A head of so many bytes, each field of which is within its own limit."""
    head = b"GET /health HTTP/1.1\r\nHost: x\r\n"
    while (left := size - len(head) - 2) > 8000:
        head += b"X: " + b"x" * 3995 + b"\r\n"
    return head + b"X: " + b"x" * (left - 5) + b"\r\n\r\n"


@pytest.mark.parametrize("packet", [1, 4096, 2**20])
def test_a_head_has_32_kib_at_most(alice: User, packet: int) -> None:
    for size, status in ((2**15, b"200"), (2**15 + 1, b"431")):
        with connect(alice) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head = head_of(size)
            for start in range(0, size, packet):
                connection.sendall(head[start : start + packet])
            answer = connection.recv(65536)
            while b"}" not in answer:
                answer += connection.recv(65536)

        head, _, body = answer.partition(b"\r\n\r\n")
        assert head[9:12] == status
        assert b"Content-Type: application/json" in head
        assert list(json.loads(body)) == [{b"200": "status", b"431": "error"}[status]]


@pytest.mark.parametrize(
    ("coding", "status"), [("identity", 201), ("IDENTITY", 201), ("Identity", 201), ("gzip", 415)]
)
def test_a_content_coding_is_read_in_any_letter_case(alice: User, coding: str, status: int) -> None:
    answer = alice.post(alice.tasks, json={"title": "x"}, headers={"Content-Encoding": coding})

    assert answer.status_code == status


BIG = b"x" * 3_000_000


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n" + BIG, 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: 1\r\n" * 500_000, 431),
        (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + BIG, 405),
        (
            b"POST /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Length: 3000000\r\n\r\n" + BIG,
            405,
        ),
        (
            b"POST /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2dc6c0\r\n" + BIG + b"\r\n0\r\n\r\n",
            405,
        ),
    ],
    ids=["no HTTP", "too many fields", "a body", "a last body", "a last chunk"],
)
def test_who_sends_all_of_it_before_reading_gets_the_answer(
    alice: User, sent: bytes, status: int
) -> None:
    assert send(alice, sent)[0] == status


def test_a_body_announced_too_large_is_refused_before_it_is_sent(alice: User) -> None:
    head = start(alice) + b"Content-Type: application/json\r\nContent-Length: 5000000\r\n\r\n"

    status, _, body = send(alice, head)

    message = "Request body must be at most 64 KiB"
    assert (status, json.loads(body)) == (413, {"error": message})


def test_a_body_that_is_cut_short_creates_nothing(alice: User) -> None:
    """The prefix is a whole JSON object: only the length tells that something is missing."""
    body = json.dumps({"title": "Buy milk"}).encode()
    head = start(alice) + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    status, _, _ = send(alice, head % (len(body) + 10) + body, half_close=True)

    assert status == 400
    assert alice.get(alice.tasks).json() == []


def test_a_chunked_body_that_is_cut_short_creates_nothing(alice: User) -> None:
    head = start(alice) + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'{"title": "Buy milk"}'

    status, _, _ = send(alice, head + b"%x\r\n%s\r\n" % (len(body), body), half_close=True)

    assert status == 400
    assert alice.get(alice.tasks).json() == []


def test_a_chunked_body_is_read(alice: User) -> None:
    head = start(alice) + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

    status, _, _ = send(alice, head + b'd\r\n{"title": "Bu\r\n8\r\ny milk"}\r\n0\r\n\r\n')

    assert status == 201
    assert [task["title"] for task in alice.get(alice.tasks).json()] == ["Buy milk"]


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"\r\n"])
def test_a_malformed_chunk_creates_nothing(alice: User, chunk: bytes) -> None:
    head = start(alice) + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

    status, headers, body = send(alice, head + chunk + b"0\r\n\r\n", half_close=True)

    assert status == 400
    assert headers["content-type"] == "application/json"
    assert list(json.loads(body)) == ["error"]
    assert alice.get(alice.tasks).json() == []


@pytest.mark.parametrize(("fields", "status"), [(3, 201), (97, 400)])
def test_trailers_may_take_as_much_as_a_head(alice: User, fields: int, status: int) -> None:
    head = start(alice) + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'e\r\n{"title": "x"}\r\n0\r\n' + fields * (b"X: " + 8000 * b"x" + b"\r\n") + b"\r\n"

    assert send(alice, head + body)[0] == status
    assert len(alice.get(alice.tasks).json()) == (1 if status == 201 else 0)


def test_expect_continue_is_answered(alice: User) -> None:
    head = start(alice) + b"Content-Type: application/json\r\nContent-Length: 14\r\n"

    with connect(alice) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b'{"title": "x"}')
        assert connection.recv(1000).startswith(b"HTTP/1.1 201")


def test_a_connection_is_kept_alive_after_an_error(alice: User) -> None:
    with httpx.Client(base_url=alice.base_url, headers=alice.headers) as client:
        for _ in range(3):
            assert client.get("/nothing").headers.get("Connection") != "close"
            assert client.post(alice.tasks, content=b"x").status_code == 415
            assert client.get(alice.tasks).status_code == 200


def test_a_method_nobody_knows_is_refused(alice: User) -> None:
    status, _, body = send(alice, start(alice, "BREW") + b"\r\n")

    assert (status, json.loads(body)) == (405, {"error": "Method not allowed"})


@pytest.mark.parametrize("rest", [b"zz\r\n", b"5\r\nabcdefgh\r\n", b"0\r\nBad Trailer\r\n\r\n"])
def test_a_malformed_body_that_nobody_reads_is_not_answered_twice(alice: User, rest: bytes) -> None:
    task = alice.create()
    head = f"DELETE {alice.path(task)} HTTP/1.1\r\nHost: x\r\n"
    head += f"Transfer-Encoding: chunked\r\nAuthorization: {alice.headers['Authorization']}\r\n\r\n"

    with connect(alice) as connection:
        connection.sendall(head.encode() + rest)
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)

    assert received.startswith(b"HTTP/1.1 204")
    assert received.count(b"HTTP/1.1") == 1


def test_an_unread_body_does_not_run_into_the_next_request(alice: User) -> None:
    smuggled = b"DELETE " + alice.tasks.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: {len(smuggled)}\r\n\r\n"

    with connect(alice) as connection:
        connection.sendall(head.encode() + smuggled + b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)

    assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1") == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"},
        {"Script-Name": "/foo", "Path-Info": "/bar"},
        {"SCRIPT_NAME": "/foo", "PATH_INFO": "/bar"},
        {"SCRIPT_NAME": "/api"},
        {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"},
        {"X-Forwarded-Proto": "http", "X-Forwarded-Ssl": "on"},
        {"X-Forwarded-Host": "evil.example"},
    ],
)
def test_headers_for_other_servers_change_nothing(alice: User, headers: dict[str, str]) -> None:
    task = alice.create()

    answer = alice.get(alice.tasks, headers=headers)
    assert (answer.status_code, answer.json()) == (200, [task])


def test_a_host_that_cannot_be_one_is_refused(alice: User) -> None:
    answer = alice.get(alice.tasks, headers={"Host": "a..example"})

    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("sent", "prefix"),
    [
        ("/todo", "/todo"),
        ("/todo/", "/todo"),
        ("/api-2.0/~todo_/x", "/api-2.0/~todo_/x"),
        *((ignored, "") for ignored in [
            "", "/", "todo", "//evil.example", "//evil.example/", "/a//b", "/todo//", "/a b", "/a>",
            "/%61", "/a,/b", "https://evil.example", "/ä", "/a?b", "/a#b", "/a;b", "/a:b",
            "/\\evil",
        ]),
    ],
)  # fmt: skip
def test_links_begin_with_the_path_that_a_proxy_has_stripped_if_it_is_one(
    alice: User, sent: str, prefix: str
) -> None:
    headers = {"X-Forwarded-Prefix": sent.encode()}

    answers = [alice.post(alice.tasks, json={"title": "x"}, headers=headers) for _ in "12"]
    page = alice.get(f"{alice.tasks}?limit=1", headers=headers)

    assert [answer.headers["Location"] for answer in answers] == [
        prefix + alice.path(answer.json()) for answer in answers
    ]
    assert page.headers["Link"].startswith(f"<{prefix}{alice.tasks}?limit=1&cursor=")


def test_the_service_listens_on_ipv6_where_there_is_any(alice: User) -> None:
    host = "::1" if socket.has_dualstack_ipv6() else "127.0.0.1"
    with socket.create_connection((host, alice.base_url.port), 10) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.0 200 OK")


@pytest.mark.parametrize("path", ["/openapi.yaml", "/docs/", "/docs/init.js"])
@pytest.mark.parametrize(
    "headers",
    [
        {"If-Modified-Since": "Mon, 01 Jan 99999999999 00:00:00 GMT"},
        {"Range": "bytes=0-5", "If-Range": "Mon, 01 Jan 2020 00:00:00 +99999999999999"},
        {"Range": "bytes=-5000000"},
        {"Range": "items=0-1"},
        {"If-Match": '"x"'},
    ],
)
def test_odd_conditions_and_ranges_are_ignored_where_nothing_depends_on_them(
    server: str, path: str, headers: dict[str, str]
) -> None:
    plain = httpx.get(server + path)

    answer = httpx.get(server + path, headers=headers)

    assert answer.status_code == 200
    assert answer.content == plain.content
    known = httpx.get(server + path, headers={"If-None-Match": plain.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")
