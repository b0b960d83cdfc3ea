"""gunicorn's worker: connections that wait for a request, and clients that read slowly."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event
from gevent.socket import create_connection, socket, socketpair

from todo_service.worker import DrainingServer, PatientSocket, RequestWait

ANSWER = bytes(4 * 1024 * 1024)


def serve(waiting: set[RequestWait], arrived: Event, log: list[str]) -> None:
    """What the worker does with a connection: wait for a request, then handle it."""
    request = None
    with RequestWait(10, waiting):
        arrived.wait()
        request = "GET /"
    if request is None:
        log.append("closed")
        return
    gevent.sleep(0.01)
    log.append("answered")


def test_a_connection_without_a_request_is_closed() -> None:
    waiting: set[RequestWait] = set()
    log: list[str] = []
    connection = gevent.spawn(serve, waiting, Event(), log)
    gevent.sleep(0)

    (wait,) = waiting
    gevent.get_hub().loop.run_callback(wait.give_up)
    connection.join(5)

    assert log == ["closed"]


def test_a_request_that_comes_in_the_same_moment_is_answered() -> None:
    waiting: set[RequestWait] = set()
    log: list[str] = []
    arrived = Event()
    connection = gevent.spawn(serve, waiting, arrived, log)
    gevent.sleep(0)

    (wait,) = waiting
    arrived.set()
    gevent.get_hub().loop.run_callback(wait.give_up)
    connection.join(5)

    assert log == ["answered"]


def test_a_slow_client_that_reads_all_the_time_gets_its_whole_answer() -> None:
    server, client = socketpair()

    def read() -> int:
        received = 0
        while received < len(ANSWER):
            gevent.sleep(0.01)
            received += len(client.recv(32 * 1024))
        return received

    with server, client:
        server.settimeout(0.3)  # the answer takes more than a second
        reader = gevent.spawn(read)
        PatientSocket(server).sendall(ANSWER)
        assert reader.get(timeout=10) == len(ANSWER)


def test_a_client_that_stops_reading_is_given_up() -> None:
    server, client = socketpair()

    with server, client, pytest.raises(TimeoutError):
        server.settimeout(0.3)
        PatientSocket(server).sendall(ANSWER)


def test_a_worker_takes_one_connection_of_a_burst_and_the_rest_when_it_stops() -> None:
    taken: list[object] = []
    answering = Event()

    def handle(client: socket, _: object) -> None:
        taken.append(client)
        # What one look at the listening socket brought: there is no second one.
        server.stop_accepting()
        answering.set()

    server = DrainingServer(("127.0.0.1", 0), handle)
    server.init_socket()
    clients = [create_connection(("127.0.0.1", server.server_port)) for _ in range(5)]

    server.start()
    answering.wait(5)
    gevent.sleep(0)
    assert len(taken) == 1

    server.close()
    gevent.sleep(0)
    assert len(taken) == len(clients)
    for client in clients:
        client.close()
