"""Workers are killed, the service is stopped, clients stall: accepted requests are answered."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import psutil
import pytest

from tests.conftest import NO_TLS, Server, User, until
from tests.faults.conftest import Cluster, Load

pytestmark = pytest.mark.slow

Measure = Callable[..., None]
Serve = Callable[..., Server]


def test_a_killed_worker_is_replaced_and_loses_nothing_acknowledged(
    cluster: Cluster, serve: Serve, measured: Measure
) -> None:
    server = serve()
    server.wait("/ready")
    load = Load(server)
    master = psutil.Process(server.process.pid)

    with load.running():
        for _ in range(3):
            time.sleep(0.7)
            master.children()[0].send_signal(signal.SIGKILL)
        time.sleep(1.5)
        settled = time.monotonic()
        time.sleep(0.5)

    lost = load.check(cluster)
    measured(acknowledged=len(load.acknowledged), cut=len(load.dropped), lost=len(lost))
    assert not lost
    assert load.statuses() == {201}
    assert load.statuses(since=settled) == {201}
    # Each kill can cut what its worker had in hand: at most one request per writer.
    assert len(load.dropped) <= 3 * 8
    assert len(master.children()) == 2


def test_sigterm_under_load_drops_no_accepted_request(
    cluster: Cluster, serve: Serve, measured: Measure
) -> None:
    server = serve()
    server.wait("/ready")
    load = Load(server)

    with load.running():
        time.sleep(1)
        # One that is connected and idle must not hold up the stop.
        with socket.create_connection(("127.0.0.1", server.port)):
            started = time.monotonic()
            status = server.stop()
            seconds = time.monotonic() - started
        connections = cluster.connections()

    lost = load.check(cluster)
    measured(
        acknowledged=len(load.acknowledged),
        dropped=len(load.dropped),
        stopped_in=f"{seconds:.1f} s",
        connections_left=connections,
    )
    assert load.dropped == []
    assert not lost
    assert load.statuses() == {201}
    assert status == 0
    assert seconds < 20
    assert connections == 0


def test_who_is_sent_away_at_the_stop_finds_nobody_listening(serve: Serve) -> None:
    # Were it still listening, clients that come back would meet the closing, and be reset.
    server = serve(WEB_CONCURRENCY="1")
    server.wait()

    with httpx.Client(verify=NO_TLS) as client:
        client.get(server.url)  # from here on connected
        server.process.terminate()
        while (answer := client.get(server.url)).headers.get("Connection") != "close":
            assert answer.status_code == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))
    assert server.process.wait(30) == 0


def test_clients_that_stall_do_not_slow_the_others(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    server = serve()
    server.wait("/ready")
    alice = new_user_at(server)
    alice.create()
    cluster.execute(
        "INSERT INTO tasks (user_id, title, description)"
        " SELECT %s, 'x', repeat('y', 5000) FROM generate_series(1, 3000)",
        alice.id,
    )
    head = f"Host: x\r\nAuthorization: {alice.headers['Authorization']}\r\n"
    stalls = [
        "",
        f"POST {alice.tasks} HTTP/1.1\r\nHost: x\r\nAuth",
        f"POST {alice.tasks} HTTP/1.1\r\n{head}Content-Type: application/json\r\n"
        'Content-Length: 100\r\n\r\n{"title": ',
        f"GET {alice.tasks} HTTP/1.1\r\n{head}\r\n",
    ]
    slowest = 0.0
    limits = httpx.Limits(max_keepalive_connections=0)  # each on a connection of its own
    with (
        ExitStack() as opened,
        httpx.Client(headers=alice.headers, limits=limits, verify=NO_TLS) as client,
    ):
        for number in range(60):
            connection = opened.enter_context(socket.socket())
            # A small window: the server is soon left with a list that nobody takes.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(stalls[number % 4].encode())
        for _ in range(60):
            started = time.monotonic()
            answer = client.get(f"{server.url}{alice.tasks}?limit=1")
            slowest = max(slowest, time.monotonic() - started)
            assert answer.status_code == 200
        # The lists go on until the sockets are full; then none may hold on to a statement.
        until(lambda: not statements_running(cluster), 10)

    measured(slowest=f"{slowest:.3f} s")
    assert slowest < 5


def statements_running(cluster: Cluster) -> int:
    ((count,),) = cluster.query(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'todo-service' AND state <> 'idle'"
    )
    return count


def test_a_list_whose_database_goes_away_is_cut_and_never_looks_whole(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    server = serve(DB_POOL_TIMEOUT="1")
    server.wait("/ready")
    alice = new_user_at(server)
    alice.create()
    cluster.execute(
        "INSERT INTO tasks (user_id, title, description)"
        " SELECT %s, 'x', repeat('y', 5000) FROM generate_series(1, 5000)",
        alice.id,
    )
    received = b""
    with (
        pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"),
        alice.stream("GET", alice.tasks) as answer,
    ):
        assert answer.status_code == 200
        for data in answer.iter_raw(65536):
            if not received:
                cluster.stop("immediate")
            received += data

    measured(received=f"{len(received)} of about 25,000,000 bytes")
    assert received.startswith(b"[{")
    assert not received.endswith(b"]")
    lines = server.log.read_text().splitlines()
    (line,) = (line for line in lines if "event=list_cut_short" in line)
    assert line.endswith(f"request_id={answer.headers['X-Request-ID']}")
