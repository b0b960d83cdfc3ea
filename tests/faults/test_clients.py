"""Clients that stall, never pause, or are many: nobody else notices, and memory comes back.

The limits are those of todo_service/serving/worker.py.
"""

from __future__ import annotations

import re
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import gevent.socket
import httpx
import psutil
import psycopg
import pytest
from gevent.pool import Pool

from tests.conftest import NO_TLS, Server, sign, until
from tests.faults.conftest import serving
from todo_service.serving.worker import Client

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
Measure = Callable[..., None]

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def serve(database_url: str, tmp_path: Path) -> Iterator[Serve]:
    """On the database that all tests share: here, nobody breaks it."""
    yield from serving(database_url, tmp_path)


def connect(server: Server, window: int | None = None) -> socket.socket:
    """With a small window, the server is soon left with an answer that nobody takes."""
    connection = socket.socket()
    if window is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", server.port))
    return connection


def workers(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def peers(server: Server) -> set[int]:
    """The clients' ports of the connections that a worker has not closed. What the kernel still
    has to send does not count."""
    return {
        connection.raddr.port
        for worker in workers(server)
        for connection in worker.net_connections("tcp")
        if connection.raddr
    }


def held(server: Server, connections: list[socket.socket]) -> list[socket.socket]:
    """Those that a worker has not closed."""
    ports = peers(server)
    return [connection for connection in connections if connection.getsockname()[1] in ports]


def read_to_the_end(connection: socket.socket) -> bytes:
    received = bytearray()
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def read_answer(connection: socket.socket) -> bytes:
    """One answer, up to the end of its JSON."""
    received = b""
    while not received.endswith(b"}"):
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def fresh_health(server: Server) -> float:
    """The seconds that a new client waits for /health."""
    started = time.monotonic()
    answer = httpx.get(f"{server.url}/health", timeout=20, verify=NO_TLS)
    assert answer.status_code == 200
    return time.monotonic() - started


def head(path: str, *fields: str, method: str = "GET", user: str = "mallory") -> bytes:
    token = sign(user, exp=int(time.time()) + 3600)
    lines = f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", *fields
    return "\r\n".join([*lines, "", ""]).encode()


JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
NEVER_PAUSING = {
    "one request after another": (b"", HEALTH * 2000),
    "chunks of one byte": (head("/health", CHUNKED, method="POST"), b"1\r\nx\r\n" * 10_000),
    "chunks of one byte that are read": (
        head("/api/mallory/tasks", JSON, CHUNKED, method="POST"),
        b"1\r\n \r\n" * 10_000,
    ),
    "long chunk extensions": (
        head("/health", CHUNKED, method="POST"),
        (b"1;" + b"x" * 8000 + b"\r\nx\r\n") * 10,
    ),
}


@contextmanager
def never_pausing(server: Server, first: bytes, more: bytes) -> Iterator[None]:
    """Four clients that send without a pause and drop what comes; from when all are under way."""
    stop, under_way = threading.Event(), threading.Semaphore(0)

    def go_on() -> None:
        announced = False
        while not stop.is_set():
            with connect(server) as connection, suppress(ConnectionError):  # cut off: comes again
                connection.setblocking(False)
                rest = memoryview(first + more)
                while not stop.is_set():
                    readable, writable, _ = select.select([connection], [connection], [], 0.1)
                    if readable and not connection.recv(2**20):
                        break
                    if writable:
                        rest = rest[connection.send(rest) :]
                    if not rest:
                        rest = memoryview(more)
                        if not announced:
                            announced = True
                            under_way.release()

    clients = [threading.Thread(target=go_on) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for _ in clients:
            assert under_way.acquire(timeout=60)
        yield
    finally:
        stop.set()
        for client in clients:
            client.join()


@pytest.mark.parametrize("kind", NEVER_PAUSING)
def test_a_client_that_never_pauses_does_not_hold_up_the_others(
    serve: Serve, measured: Measure, kind: str
) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait()
    before = workers(server)

    with never_pausing(server, *NEVER_PAUSING[kind]):
        slowest = max(fresh_health(server) for _ in range(20))

    measured(kind=kind, slowest=f"{slowest * 1000:.0f} ms")
    # Without turns, the first of them would wait for the end of the attack, which does not come.
    assert slowest < 5
    assert workers(server) == before


@pytest.fixture(params=["\U0001f600", "\x01"], ids=["four bytes each", "six bytes each in JSON"])
def long_list(request: pytest.FixtureRequest, connection: psycopg.Connection) -> Iterator[str]:
    """A user with 1,200 tasks of 5,000 characters."""
    user = f"user-{uuid4()}"
    connection.execute("INSERT INTO users (id) VALUES (%s)", (user,))
    connection.execute(
        "INSERT INTO tasks (user_id, title, description)"
        " SELECT %s, 'x', repeat(%s, 5000) FROM generate_series(1, 1200)",
        (user, request.param),
    )
    yield user
    connection.execute("DELETE FROM users WHERE id = %s", (user,))


def memory(server: Server) -> int:
    """What all workers hold together, in MB."""
    return sum(worker.memory_info().rss for worker in workers(server)) // 2**20


def highest_until_it_settles(server: Server) -> int:
    samples = [memory(server)]
    while len(samples) < 20 or max(samples[-20:]) - min(samples[-20:]) > 2:
        time.sleep(0.1)
        samples.append(memory(server))
    return max(samples)


def test_readers_that_stall_make_the_service_hold_little(
    serve: Serve, long_list: str, measured: Measure
) -> None:
    server = serve()
    server.wait("/ready")
    until(lambda: len(workers(server)) == 2)
    before = memory(server)

    def stall() -> int:
        """What 60 of them make the workers grow by."""
        with ExitStack() as opened:
            readers = [opened.enter_context(connect(server, window=4096)) for _ in range(60)]
            for number, reader in enumerate(readers):
                query = "?limit=1000" if number % 2 else ""
                reader.sendall(head(f"/api/{long_list}/tasks{query}", user=long_list))
            for reader in readers:
                assert reader.recv(1) == b"H"
            highest = highest_until_it_settles(server)
            ports = {reader.getsockname()[1] for reader in readers}
        until(lambda: ports.isdisjoint(peers(server)))
        return highest - before

    first, second = stall(), stall()

    measured(grown=f"{first} MB, then {second} MB")
    assert max(first, second) < 200
    # What the first ones took is there for the second ones.
    assert second < first + 40


@pytest.mark.parametrize("long_list", ["x"], indirect=True)
def test_a_reader_that_takes_too_little_is_cut_off_and_a_slow_one_gets_everything(
    serve: Serve, long_list: str, measured: Measure
) -> None:
    server = serve()
    server.wait("/ready")
    tasks = head(f"/api/{long_list}/tasks", "Connection: close", user=long_list)
    page = head(f"/api/{long_list}/tasks?limit=1000", "Connection: close", user=long_list)
    expecting = head("/health", "Expect: 100-continue", "Content-Length: 0", method="POST")
    sent = {"list": tasks, "page": page, "dripping": tasks, "expecting": expecting * 9000}

    with ExitStack() as opened:
        readers = {name: opened.enter_context(connect(server, window=4096)) for name in sent}
        for name, reader in readers.items():
            reader.settimeout(1)
            with suppress(TimeoutError):
                reader.sendall(sent[name])
            reader.settimeout(30)
        # With a large window, for which the kernel would take far more than the client does.
        slow = readers["slow"] = opened.enter_context(connect(server))
        slow.sendall(tasks)
        received = {name: bytearray() for name in readers}
        # Bytes a second: 64 KiB in 15 seconds is in between.
        rates = {"dripping": 1_500, "slow": 10_000}
        started = time.monotonic()

        def only_the_slow_one_is_left() -> bool:
            for name, rate in rates.items():
                due = int(rate * (time.monotonic() - started)) - len(received[name])
                with suppress(ConnectionResetError):
                    received[name] += readers[name].recv(max(due, 1))
            return held(server, list(readers.values())) == [slow]

        seconds = until(only_the_slow_one_is_left)
        for name, reader in readers.items():
            received[name] += read_to_the_end(reader)

    measured(cut_off_after=f"{seconds:.0f} s")
    assert seconds > 13
    assert all(answer.startswith(b"HTTP/1.1 ") for answer in received.values())
    assert {name for name in sent if received[name].endswith((b"]", b"0\r\n\r\n"))} == set()
    assert received["slow"].endswith(b"]\r\n0\r\n\r\n")


@contextmanager
def dripping(connections: list[socket.socket], data: bytes = b"x") -> Iterator[None]:
    """Send a little, twice a second, on each of the connections."""
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.5):
            for connection in connections:
                with suppress(OSError):
                    connection.sendall(data)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


UNREAD = b"POST /api/mallory/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n"
STALLING = {
    "half a head": b"GET /health HTTP/1.1\r\nHost: x\r\nX: ",
    "half a body": head("/api/mallory/tasks", JSON, "Content-Length: 1000", method="POST"),
    "half a chunk": head("/api/mallory/tasks", JSON, CHUNKED, method="POST") + b"1000\r\n",
    "half a body that nobody reads": UNREAD + b"\r\n",
    "the same, to be closed": UNREAD + b"Connection: close\r\n\r\n",
    "no HTTP": b"HELLO\r\n\r\n",
}

STALLED = [b"", *STALLING.values(), HEALTH]


def test_who_does_not_come_to_an_end_is_cut_off_after_15_seconds(
    serve: Serve, measured: Measure
) -> None:
    server = serve()
    server.wait()
    with ExitStack() as opened:
        silent = {name: opened.enter_context(connect(server)) for name in STALLING}
        slow = {name: opened.enter_context(connect(server)) for name in STALLING}
        idle = opened.enter_context(connect(server))
        for connections in (silent, slow):
            for name, sent in STALLING.items():
                connections[name].sendall(sent)
        stalling = [*silent.values(), *slow.values()]
        until(lambda: len(held(server, stalling)) == len(stalling))
        # A body that nobody reads may come faster than one that is read has to.
        unread = [slow[name] for name, sent in STALLING.items() if sent.startswith(UNREAD)]
        others = [connection for connection in slow.values() if connection not in unread]
        with dripping(others), dripping(unread, b"x" * 4000):
            first = until(lambda: len(held(server, stalling)) < len(stalling))
            last = first + until(lambda: not held(server, stalling))
        assert held(server, [idle])
        answers = [
            {name: read_to_the_end(connections[name]) for name in STALLING}
            for connections in (silent, slow)
        ]

    measured(cut_off_after=f"{first:.0f} to {last:.0f} s")
    assert first > 13
    assert last < 27  # not 15 seconds more after the answer
    for answer in answers:
        statuses = {name: text[9:12] for name, text in answer.items()}
        assert statuses == {
            "half a head": b"",
            "half a body": b"400",
            "half a chunk": b"400",
            "half a body that nobody reads": b"401",
            "the same, to be closed": b"401",
            "no HTTP": b"400",
        }


def test_an_idle_connection_is_kept_for_the_time_that_is_set_and_a_head_has_its_own(
    serve: Serve, measured: Measure
) -> None:
    server = serve(GUNICORN_CMD_ARGS="--keep-alive 3")
    server.wait()
    with connect(server) as fresh, connect(server) as used, connect(server) as sending:
        used.sendall(HEALTH)
        assert read_answer(used).startswith(b"HTTP/1.1 200 ")
        sending.sendall(HEALTH[:10])

        seconds = until(lambda: held(server, [fresh, used, sending]) == [sending])

        sending.sendall(HEALTH[10:])
        assert read_answer(sending).startswith(b"HTTP/1.1 200 ")
    measured(closed_after=f"{seconds:.0f} s")
    assert seconds > 1


def test_who_has_waited_longest_makes_room(serve: Serve, measured: Measure) -> None:
    server = serve(WEB_CONCURRENCY="1", GUNICORN_CMD_ARGS="--worker-connections 20")
    server.wait("/ready")
    with ExitStack() as opened:
        # No kind of client outlasts another.
        waiting = [opened.enter_context(connect(server)) for _ in range(40)]
        slowest = 0.0
        for number, connection in enumerate(waiting):
            connection.sendall(STALLED[number % len(STALLED)])
            slowest = max(slowest, fresh_health(server))

        left = held(server, waiting)

    measured(slowest=f"{slowest:.3f} s", left=len(left))
    assert slowest < 5
    assert left == waiting[-len(left) :]
    assert 10 <= len(left) < 20


def test_who_goes_away_at_any_point_leaves_nothing_behind(serve: Serve) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait("/ready")
    (worker,) = workers(server)
    before = worker.num_fds()
    body = b'{"title": "x"}'
    create = head("/api/mallory/tasks", JSON, f"Content-Length: {len(body)}", method="POST") + body
    with ThreadPoolExecutor(8) as pool:

        def come_and_go(number: int) -> None:
            with connect(server) as connection:
                connection.sendall((create * 2)[: number * 5])
                if number % 3 == 0:
                    connection.shutdown(socket.SHUT_WR)
                elif number % 3 == 1:  # a reset in the place of an end
                    connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                if number % 2:
                    connection.setblocking(False)
                    with suppress(BlockingIOError, ConnectionError):
                        connection.recv(100)

        list(pool.map(come_and_go, range(len(create) * 2 // 5)))

    # The pool may have connected to the database for the tasks.
    until(lambda: worker.num_fds() <= before + 8)
    assert fresh_health(server) < 5


def test_a_stop_does_not_wait_for_clients_that_do_nothing(serve: Serve, measured: Measure) -> None:
    server = serve()
    server.wait()
    nothing = [b"", HEALTH, STALLING["half a head"], STALLING["half a body that nobody reads"]]
    with ExitStack() as opened:
        connections = [opened.enter_context(connect(server)) for _ in range(40)]
        for number, connection in enumerate(connections):
            connection.sendall(nothing[number % 4])
        for connection in connections[1::4] + connections[3::4]:
            assert read_answer(connection).startswith(b"HTTP/1.1 ")
        with dripping(connections[3::4]):
            started = time.monotonic()
            status = server.stop()
            seconds = time.monotonic() - started

    measured(stopped_in=f"{seconds:.1f} s")
    assert status == 0
    assert seconds < 10


def test_who_was_connected_when_the_stop_began_is_answered(serve: Serve) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait()
    (worker,) = workers(server)
    with ExitStack() as opened:
        # The kernel connects them, and holds the signal, while the worker does not run.
        worker.suspend()
        connections = [opened.enter_context(connect(server)) for _ in range(50)]
        for connection in connections:
            connection.sendall(HEALTH)
        server.process.terminate()
        until(lambda: is_told_to_stop(worker))
        worker.resume()
        answers = [read_to_the_end(connection) for connection in connections]

    assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * 50
    assert server.process.wait(30) == 0


def test_a_request_that_comes_while_the_worker_hangs_up_is_answered(serve: Serve) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait()
    (worker,) = workers(server)
    with connect(server) as late, connect(server) as gone, connect(server) as idle:
        for connection in (late, gone, idle):
            connection.sendall(HEALTH)
            assert read_answer(connection).startswith(b"HTTP/1.1 200 ")
        server.process.terminate()
        until(lambda: refuses(server))
        # The worker has stopped listening. It wakes up when it is time to hang up, and finds a
        # request, and a connection that was reset.
        worker.suspend()
        time.sleep(3)
        late.sendall(HEALTH)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        worker.resume()

        answer = read_to_the_end(late)
        assert read_to_the_end(idle) == b""
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in answer
    assert server.process.wait(10) == 0


def test_a_stop_does_not_wait_for_a_client_whose_request_came_to_an_end_late(
    serve: Serve, measured: Measure
) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait("/ready")
    body = b'{"title": "Buy milk"}'
    start = head("/api/mallory/tasks", JSON, f"Content-Length: {len(body)}", method="POST")
    with connect(server) as late:
        late.sendall(start + body[:5])
        until(lambda: held(server, [late]) == [late])
        server.process.terminate()
        until(lambda: refuses(server))
        time.sleep(3)  # by then, the worker has hung up on whoever did nothing
        late.sendall(body[5:])
        assert read_answer(late).startswith(b"HTTP/1.1 201 ")
        answered = time.monotonic()
        assert server.process.wait(30) == 0
        seconds = time.monotonic() - answered

    measured(stopped_after=f"{seconds:.1f} s")
    # Else at the end of gunicorn's graceful_timeout, 20 seconds after SIGTERM.
    assert seconds < 10


def test_a_worker_that_has_served_its_number_does_not_wait_for_idle_clients(
    serve: Serve, measured: Measure
) -> None:
    server = serve(WEB_CONCURRENCY="1", GUNICORN_CMD_ARGS="--max-requests 20")
    server.wait()
    (worker,) = workers(server)
    with connect(server) as idle:
        idle.sendall(HEALTH)
        assert read_answer(idle).startswith(b"HTTP/1.1 200 ")
        for _ in range(20):
            fresh_health(server)
        seconds = until(lambda: worker not in workers(server))
        assert read_to_the_end(idle) == b""

    measured(replaced_after=f"{seconds:.1f} s")
    # Else after gunicorn's graceful_timeout, 20 seconds in which nobody is let in.
    assert seconds < 10
    assert fresh_health(server) < 5


def refuses(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_request_that_comes_in_the_moment_of_hanging_up_is_not_lost() -> None:
    """By hand, because from outside nobody can hit the moment."""
    server, client = gevent.socket.socketpair()
    worker = SimpleNamespace(clients={}, held=0, cfg=SimpleNamespace(keepalive=95))
    patient = Client(server, worker, Pool(1))
    with client:
        received = gevent.spawn(patient.recv, 8192)
        gevent.sleep(0.01)  # until it waits

        client.sendall(HEALTH)
        patient.hang_up()  # before the loop has looked at the socket

        assert received.get(timeout=10) == HEALTH
        assert patient.recv(8192) == b""
        patient.close()


def is_told_to_stop(process: psutil.Process) -> bool:
    """Whether SIGTERM is waiting for a process that does not run."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(pending, 16) >> (signal.SIGTERM - 1) & 1)


UNPARSED = [
    b"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {secret}\r\n\r\n",
    b'{"title": "{secret}"}\r\n\r\n',
    b"GET /{secret} HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\x00\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: {secret}\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {secret}\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /{secret}\r\n\r\n",
    b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{secret}\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nX: {secret}",
]


def test_what_could_not_be_parsed_is_not_quoted_in_the_log(serve: Serve) -> None:
    server = serve(LOG_LEVEL="DEBUG")
    server.wait()
    for number, sent in enumerate(UNPARSED):
        with connect(server) as connection:
            connection.sendall(sent.replace(b"{secret}", b"hush-hush-%d" % number))
            connection.shutdown(socket.SHUT_WR)
            read_to_the_end(connection)
    assert server.stop() == 0

    assert re.findall("hush.*", server.log.read_text()) == []


def test_what_could_not_be_parsed_is_found_in_the_log_by_its_request_id(serve: Serve) -> None:
    server = serve()
    server.wait()
    with connect(server) as connection:
        connection.sendall(b"HELLO\r\n\r\n")
        (request_id,) = re.findall(rb"X-Request-ID: (\w+)", read_to_the_end(connection))

    reason = "event=malformed_request status=400 reason=InvalidRequestLine"
    assert f"{reason} request_id={request_id.decode()}\n" in server.log.read_text()
