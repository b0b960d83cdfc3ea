"""gunicorn's worker: what shutting down does to connections that wait for a request."""

from __future__ import annotations

import gevent
from gevent.event import Event

from todo_service.worker import RequestWait


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
