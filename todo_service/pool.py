"""psycopg's connection pool, with a shelf where a request leaves its connection to the next."""

from __future__ import annotations

from collections import deque
from queue import Empty, SimpleQueue
from select import POLLIN
from time import monotonic
from typing import Any

from gevent.monkey import get_original
from psycopg import OperationalError
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from todo_service.connection import Connection

# The system's own, under gevent too: nothing here waits in them, and gevent's cost more.
_Lock = get_original("threading", "Lock")
_poll = get_original("select", "poll")


class Pool(ConnectionPool[Connection]):
    """A pool that passes a connection from request to request without waking psycopg's pool.

    psycopg makes, retires and replaces the connections all the same: each goes home to it when it
    breaks, when somebody waits there, when no request is left, and at intervals. What that saves
    stands in docs/performance.md.
    """

    # Under a load without a pause, the shelf goes home this often, in seconds: psycopg closes what
    # is past its lifetime.
    VISIT = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, check=self._check_alive, **kwargs)
        self._guard = _Lock()
        # How many more requests may have, or look for, a connection; and those that wait for that.
        self._turns = self.max_size
        self._line: deque[SimpleQueue[None]] = deque()
        self._shelf: list[Connection] = []
        # An entry for each request that has a turn but no connection yet. A list, because += on a
        # number is not atomic among threads.
        self._asking: list[None] = []
        self._visit_due = monotonic() + self.VISIT

    def getconn(self, timeout: float | None = None) -> Connection:
        """A connection for one request. Raises PoolTimeout after `timeout` seconds."""
        if timeout is None:
            timeout = self.timeout
        deadline = monotonic() + timeout
        try:
            self._wait_for_turn(timeout)
        except Empty:
            raise PoolTimeout(f"no connection was free for {timeout:.2f} s") from None
        self._asking.append(None)
        try:
            return self._take_alive() or super().getconn(deadline - monotonic())
        except BaseException:
            self._pass_turn()
            raise
        finally:
            self._asking.pop()

    def putconn(self, conn: Connection) -> None:
        """Leave a connection to the next request, or to psycopg."""
        try:
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                super().putconn(conn)
                return
            self._shelf.append(conn)
            # Only now: who asked before is seen here, who asks later finds it on the shelf.
            if self._asking or self.closed or monotonic() > self._visit_due:
                self._send_home()
        finally:
            self._pass_turn()

    def close(self, timeout: float = 5.0) -> None:
        """As psycopg's; connections in use are closed when they come back."""
        super().close(timeout)
        self._send_home()

    def _wait_for_turn(self, timeout: float) -> None:
        with self._guard:
            if self._turns:
                self._turns -= 1
                return
            place: SimpleQueue[None] = SimpleQueue()
            self._line.append(place)
        try:
            place.get(timeout=timeout)
        except BaseException:
            self._leave_line(place)
            raise

    def _leave_line(self, place: SimpleQueue[None]) -> None:
        with self._guard:
            if place in self._line:
                self._line.remove(place)
                return
        self._pass_turn()  # It had come meanwhile.

    def _pass_turn(self) -> None:
        """Give the turn to the first in line. If it were free, newcomers would push in."""
        with self._guard:
            if self._line:
                self._line.popleft().put(None)
                return
            self._turns += 1
            idle = self._turns == self.max_size
        if idle:
            self._send_home()

    def _take_alive(self) -> Connection | None:
        connection = self._take()
        if connection is None or not _was_closed(connection):
            return connection
        # The others have most likely gone with it: each would cost a request a look.
        self._shelf.append(connection)
        self.drain()
        self._send_home()
        return None

    def _take(self) -> Connection | None:
        try:
            return self._shelf.pop()
        except IndexError:
            return None

    def _send_home(self) -> None:
        self._visit_due = monotonic() + self.VISIT
        while connection := self._take():
            super().putconn(connection)

    def _check_alive(self, connection: Connection) -> None:
        """Refuse a connection that lay idle at psycopg's, and drop the others there, as above."""
        if _was_closed(connection):
            self.drain()
            raise OperationalError("the server closed the idle connection")


def _was_closed(connection: Connection) -> bool:
    """Whether the server has closed an idle connection, without a round trip.

    Nothing is due on an idle connection, so a readable socket means the server's goodbye.
    """
    poller = _poll()
    poller.register(connection.pgconn.socket, POLLIN)
    return bool(poller.poll(0))
