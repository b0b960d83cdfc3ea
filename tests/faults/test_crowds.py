"""Nobody takes the service from the others: not with a thousand clients, not with one request.

SECURITY.md says what each of these tests shows. A crowd is larger than one worker has places; two
workers stand twice as many.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.conftest import NO_TLS, Server, User, until
from tests.faults.conftest import serving
from tests.faults.crowd import Crowd
from tests.faults.test_clients import (
    HEALTH,
    JSON,
    connect,
    fresh_health,
    head,
    memory,
    peers,
    read_answer,
    read_to_the_end,
    workers,
)
from todo_service import create_app
from todo_service.database import Database
from todo_service.settings import Settings

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
Measure = Callable[..., None]
NewUser = Callable[[Server], User]

MIB = 2**20
GUNICORN = str(Path(sys.executable).parent / "gunicorn")
FILES = {
    "the largest": b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n",
    "many": b"GET /openapi.yaml HTTP/1.1\r\nHost: x\r\n\r\n" * 60,
}


@pytest.fixture
def serve(database_url: str, tmp_path: Path) -> Iterator[Serve]:
    """On the database that all tests share: here, nobody breaks it."""
    yield from serving(database_url, tmp_path)


@pytest.fixture
def user_with(connection: psycopg.Connection) -> Iterator[Callable[[int, int], str]]:
    """Make a user with so many incomplete tasks, of descriptions of so many characters."""
    users = []

    def make(tasks: int, length: int) -> str:
        users.append(f"user-{uuid4()}")
        connection.execute("INSERT INTO users (id) VALUES (%s)", (users[-1],))
        connection.execute(
            "INSERT INTO tasks (user_id, title, description)"
            " SELECT %s, 'x', repeat('x', %s) FROM generate_series(1, %s)",
            (users[-1], length, tasks),
        )
        return users[-1]

    yield make
    connection.execute("DELETE FROM users WHERE id = ANY (%s)", (users,))


def probe(server: Server, count: int = 8) -> str:
    """Ask for /health as new clients, one after another; what the slowest waited."""
    return f"{max(fresh_health(server) for _ in range(count)):.2f} s"


@pytest.mark.parametrize("kind", FILES)
def test_readers_who_take_nothing_shut_nobody_out(
    serve: Serve, measured: Measure, kind: str
) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait("/ready")
    before = workers(server)

    crowd = Crowd(server.port, 1150, FILES[kind], window=2048, stubborn=True)
    with crowd.running():
        until(lambda: crowd.cut_off > 100, 120)
        slowest = probe(server)

    measured(slowest=slowest, cut_off=crowd.cut_off)
    assert workers(server) == before


def announced(user: str, sent: int) -> bytes:
    """So much of a push of 1 MiB."""
    length = f"Content-Length: {MIB}"
    start = head(f"/api/{user}/tasks/changes", JSON, length, method="POST", user=user)
    return start + b" " * sent


def trailers() -> bytes:
    """A body of no bytes and 780 KiB of trailer fields, of which another would have to follow."""
    start = head("/health", "Transfer-Encoding: chunked")
    return start + b"0\r\n" + 97 * (b"X: " + 8000 * b"x" + b"\r\n")


@pytest.mark.parametrize(
    ("count", "sent"),
    [
        (1100, partial(announced, "mallory", 320 * 1024)),
        (950, partial(announced, "mallory", MIB - 1)),
        (900, trailers),
    ],
)
def test_bodies_that_do_not_come_to_an_end_take_little_memory(
    serve: Serve, measured: Measure, count: int, sent: Callable[[], bytes]
) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait("/ready")
    before = memory(server)

    with Crowd(server.port, count, sent()).running() as crowd:
        highest = watch(server, lambda: crowd.cut_off > 100)
        slowest = probe(server)
    after = settled(server)

    measured(slowest=slowest, cut_off=crowd.cut_off, MB=f"{before}, {highest}, {after}")
    assert highest < before + 150
    assert after < before + 100


@pytest.mark.parametrize("query", ["", "?limit=1000"])
def test_readers_of_a_list_who_stall_take_little_memory(
    serve: Serve, user_with: Callable[[int, int], str], measured: Measure, query: str
) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait("/ready")
    user = user_with(1200, 5000)
    before = memory(server)
    asking = head(f"/api/{user}/tasks{query}", user=user)

    with Crowd(server.port, 250, asking, window=2048).running() as crowd:
        highest = watch(server, lambda: crowd.cut_off > 100)
        slowest = probe(server)
    after = settled(server)

    measured(slowest=slowest, cut_off=crowd.cut_off, MB=f"{before}, {highest}, {after}")
    assert highest < before + 150
    assert after < before + 100


def watch(server: Server, reached: Callable[[], bool]) -> int:
    """The most memory that it took until then, and for five seconds more."""
    highest = 0

    def look() -> bool:
        nonlocal highest
        highest = max(highest, memory(server))
        return reached()

    until(look, 240)
    ends = time.monotonic() + 5
    until(lambda: look() and time.monotonic() > ends)
    return highest


def settled(server: Server) -> int:
    """What it holds when all clients have gone."""
    until(lambda: not peers(server))
    return memory(server)


def test_with_few_files_the_service_goes_on_letting_clients_in(serve: Serve) -> None:
    limited = f"ulimit -n 1024; exec {GUNICORN} wsgi:app"
    server = serve("sh", "-c", limited, WEB_CONCURRENCY="1")
    server.wait("/ready")

    with Crowd(server.port, 600, FILES["the largest"], window=2048).running() as crowd:
        until(lambda: crowd.cut_off > 20)
        probe(server)


def test_slow_clients_are_served_beside_many_others(
    serve: Serve, user_with: Callable[[int, int], str], measured: Measure
) -> None:
    server = serve()
    server.wait("/ready")
    user = user_with(200, 3000)
    change = b'{"tasks": [{"key": "k", "title": "x"}], "deleted": []'
    body = change + b" " * (600 * 1024 - len(change) - 1) + b"}"
    length = f"Content-Length: {len(body)}"
    fields = JSON, length, "Connection: close"
    push = head(f"/api/{user}/tasks/changes", *fields, method="POST", user=user)
    with ExitStack() as opened:
        regulars = [opened.enter_context(connect(server)) for _ in range(1500)]
        sender = opened.enter_context(connect(server))
        reader = opened.enter_context(connect(server, window=4096))
        reader.sendall(head(f"/api/{user}/tasks", "Connection: close", user=user))
        received, slowest = bytearray(), 0.0
        rest = memoryview(push + body)
        started = time.monotonic()
        # 40 KiB a second to the server, 20 from it, and a request of each regular every 5 seconds.
        while rest:
            asked = time.monotonic()
            for regular in regulars:
                regular.sendall(HEALTH)
            for regular in regulars:
                assert read_answer(regular).startswith(b"HTTP/1.1 200 ")
            slowest = max(slowest, time.monotonic() - asked)
            for second in range(5):
                time.sleep(max(0.0, asked + second + 1 - time.monotonic()))
                sender.sendall(rest[: 40 * 1024])
                rest = rest[40 * 1024 :]
                due = int(20 * 1024 * (time.monotonic() - started)) - len(received)
                received += reader.recv(max(due, 1))
        answer = read_to_the_end(sender)
        received += read_to_the_end(reader)

    measured(rounds_of=f"{slowest:.2f} s")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"]\r\n0\r\n\r\n")


@contextmanager
def busy(server: Server, user: str, count: int, *request: object, **body: object) -> Iterator[list]:
    """So many clients of one user that send a request again and again; what was answered."""
    stop, statuses = threading.Event(), []

    def send() -> None:
        with User(server.url, user) as client:
            while not stop.is_set():
                answer = client.request(request[0], client.tasks + request[1], json=body)
                statuses.append(answer.status_code)

    with ThreadPoolExecutor(count) as pool:
        sending = [pool.submit(send) for _ in range(count)]
        try:
            yield statuses
        finally:
            stop.set()
    for sender in sending:
        sender.result()


def ask(user: User, ready: bool = True) -> float:
    """Create, read and list as somebody else, and ask whether the service is ready; the median."""
    seconds = []
    for number in range(10):
        started = time.monotonic()
        task = user.create()
        assert user.get(user.path(task)).status_code == 200
        assert user.get(f"{user.tasks}?limit=10").status_code == 200
        seconds.append((time.monotonic() - started) / 3)
        if number % 2 == 0:
            assert httpx.get(f"{user.server}/ready", timeout=20, verify=NO_TLS).status_code == 200
    return median(seconds)


@pytest.mark.parametrize(
    ("tasks", "clients", "method", "path"),
    [(30_000, 24, "PATCH", "?status="), (5, 32, "POST", "")],
    ids=["many at once", "single writes"],
)
def test_a_user_who_only_writes_leaves_the_others_their_connections(
    serve: Serve,
    user_with: Callable[[int, int], str],
    new_user_at: NewUser,
    measured: Measure,
    tasks: int,
    clients: int,
    method: str,
    path: str,
) -> None:
    server = serve()
    server.wait("/ready")
    user, other = user_with(tasks, 20), new_user_at(server)
    idle = ask(other)

    with ExitStack() as writing:
        if path:
            for status, to in (("incomplete", "complete"), ("complete", "incomplete")):
                sent = busy(server, user, clients // 2, method, path + status, status=to)
                answers = writing.enter_context(sent)
        else:
            answers = writing.enter_context(busy(server, user, clients, method, path, title="x"))
        until(lambda: len(answers) > 10)
        beside = ask(other)

    measured(idle=f"{idle * 1000:.1f} ms", beside=f"{beside * 1000:.1f} ms")
    assert set(answers) <= {200, 201, 503}


def test_only_so_many_writes_of_a_user_wait(
    serve: Serve, connection: psycopg.Connection, new_user_at: NewUser
) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait("/ready")
    user, other = new_user_at(server), new_user_at(server)
    task = user.create()
    with ThreadPoolExecutor(40) as pool:
        with connection.transaction():
            connection.execute("SELECT FROM users WHERE id = %s FOR UPDATE", (user.id,))

            def write(_: int) -> httpx.Response:
                url, fields = server.url + user.path(task), {"title": "y"}
                return httpx.patch(url, json=fields, headers=user.headers, verify=NO_TLS)

            writes = [pool.submit(write, number) for number in range(40)]
            until(lambda: sum(write.done() for write in writes) == 7)
            assert other.create()
            assert user.get(user.path(task)).status_code == 200
            refused = [write.result() for write in writes if write.done()]
        answers = [write.result().status_code for write in writes]

    assert {(answer.status_code, answer.headers["Retry-After"]) for answer in refused} == {
        (503, "1")
    }
    assert sorted(answers) == [200] * 33 + [503] * 7


@pytest.mark.parametrize(("seconds", "status"), [(0.7, 200), (4, 503)])
def test_a_pool_that_is_merely_busy_is_ready(
    settings: Settings, seconds: float, status: int
) -> None:
    app = create_app(replace(settings, db_pool_size=1))
    database: Database = app.extensions["database"]

    def sleep() -> None:
        with app.app_context():
            database.run(b"SELECT FROM pg_sleep(%s)", (seconds,))

    with ThreadPoolExecutor(5) as pool:
        # Longer than /ready waits. It is ready if one of them is answered meanwhile.
        sleeping = [pool.submit(sleep) for _ in range(5 if status == 200 else 1)]
        until(lambda: database.pool.get_stats().get("requests_num", 0) >= len(sleeping))
        answer = app.test_client().get("/ready")
        for sleeper in sleeping:
            sleeper.result()
    database.close()

    assert answer.status_code == status
