"""The worker's own pieces; what they do for a client is in tests/faults."""

from __future__ import annotations

import gevent
import pytest
from gevent.socket import socketpair

from todo_service.worker import PatientSocket

ANSWER = bytes(4 * 1024 * 1024)


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
