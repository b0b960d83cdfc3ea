"""The stock psycopg pool, a connection's limits, and the statement files."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from select import POLLIN
from threading import Lock
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

import psycopg
from flask import Flask, current_app, g
from gevent.monkey import get_original
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg.types.datetime import TimestampBinaryLoader
from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests

from todo_service import embedded
from todo_service.database_url import why_unreachable
from todo_service.log import Fields, RateLimit, Timings
from todo_service.settings import LOOPBACK, Settings

log = logging.getLogger(__name__)

_T = TypeVar("_T")

SQL = Path(__file__).parent.parent / "sql"

# Seconds that /ready waits for a connection, and as many for an answer.
CHECK_LIMIT = 2.5

# How many writes of one user may wait for each other in a worker.
MAX_WAITING = 32

# The system's own poll, under gevent too: it is called without waiting, and gevent's is slower.
_poll = get_original("select", "poll")


def statement(name: str, folder: str = "queries") -> str:
    """The SQL of sql/<folder>/<name>.sql, read when the module that needs it is imported.

    Its name takes the place of its comments, so that pg_stat_activity, which cuts a statement off
    after 1,023 bytes, shows both the name and the SQL. OpenTelemetry names a span after the first
    word, up to a space.
    """
    with (SQL / folder / f"{name}.sql").open() as lines:
        code = "".join(line for line in lines if not line.startswith("--"))
    verb, rest = code.split(maxsplit=1)
    # Once more behind the first word: from PostgreSQL 18 on, pg_stat_statements drops what comes
    # before that.
    return f"--{name}\n{verb} --{name}\n{rest}"


def run(
    query: str,
    parameters: Sequence[object],
    *,
    limit: float | None = None,
    retry: bool = False,
    turn: str | None = None,
) -> list[TupleRow]:
    """Run one statement on the current app's database; see Database.run.

    A statement that writes takes a turn, by the id of the user whose row it locks first.
    """
    database: Database = current_app.extensions["database"]
    with database.turn_of(turn) if turn is not None else nullcontext():
        return database.run(query, parameters, limit=limit, retry=retry)


def check(query: str, parameters: Sequence[object], *, limit: float) -> list[TupleRow]:
    """Run a statement to see whether the database is there.

    If all connections are busy, it is if it answers on one of them meanwhile; there are no rows
    then. Raises psycopg.Error.
    """
    database: Database = current_app.extensions["database"]
    asked = time.perf_counter()
    try:
        return database.run(query, parameters, limit=limit)
    except PoolTimeout:
        if database.answered < asked:
            raise
        return []


def init_app(app: Flask, settings: Settings) -> None:
    """Give the app its database. Nothing connects before the pool is opened or used."""
    app.extensions["database"] = Database(settings)


class Connection(psycopg.Connection[TupleRow]):
    """A connection on which every wait has a limit.

    The server's statement_timeout ends a slow statement. This limit, in seconds, is for a server
    that no longer can: its process is frozen, though the kernel still acknowledges packets, or its
    host is gone.
    """

    limit: float | None = None

    @cached_property
    def one_cursor(self) -> psycopg.Cursor[TupleRow]:
        """The cursor of all statements: a new one would look up each type again, which takes a
        tenth of the time of a request."""
        return self.cursor(binary=True)

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """As psycopg's own; `on_failure` is called with the error before that is raised."""
        on_failure: Callable[[psycopg.Error], None] | None = kwargs.pop("on_failure", None)
        try:
            return super().connect(*args, **kwargs)
        except psycopg.Error as error:
            if on_failure is not None:
                on_failure(error)
            raise

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        try:
            return super().wait(gen, interval, self.limit if timeout is None else timeout)
        except psycopg.OperationalError as error:
            # Still active although the wait is over: the time ran out before the server answered.
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.close()  # so that no later step waits for the same silent server once more
            raise NoAnswer("no answer from the server in time") from error


class NoAnswer(psycopg.OperationalError):
    """The server did not answer within the limit."""


class Turn:
    """The lock for which the writes of one user wait, and how many do."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.waiting = 0


class Database:
    """A pool of autocommit connections to one PostgreSQL database.

    Made before gunicorn forks, opened after: a pool's threads and sockets do not survive a fork
    (https://www.psycopg.org/psycopg3/docs/advanced/pool.html).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Else every write to a server that stays read-only would take the connections from those
        # who read there.
        self._renewals = RateLimit(times=1, seconds=1.0)
        # Over all workers, one line a second.
        self._complaints = RateLimit(times=1, seconds=settings.web_concurrency)
        self.answered = 0.0  # when the server last did, by time.perf_counter()
        self._turns: WeakValueDictionary[str, Turn] = WeakValueDictionary()
        self.pool = ConnectionPool(
            lambda: self.conninfo,
            connection_class=Connection,
            kwargs={
                "autocommit": True,
                "on_failure": self._complain,
                # PgBouncer in transaction mode may run each statement in another session.
                "prepare_threshold": None if settings.db_pooler else 0,
            },
            min_size=1,
            max_size=settings.db_pool_size,
            open=False,
            timeout=settings.db_pool_timeout,
            configure=self._configure,
            check=self._check,
            # Give up after 0.5 s and retry; the pool's back-off could wait as long as the outage
            # lasted.
            reconnect_timeout=0.5,
            reconnect_failed=lambda pool: pool.check(),
            name="todo-service",
        )

    @cached_property
    def conninfo(self) -> str:
        """The connection string with everything that a connection needs.

        Starts the embedded PostgreSQL if no DATABASE_URL is set.
        """
        return complete_conninfo(self.settings.database_url or embedded.start(), self.settings)

    def close(self) -> None:
        self.pool.close()

    @contextmanager
    def turn_of(self, user_id: str) -> Iterator[None]:
        """Let one write of a user at a time go to the database.

        There, each locks the user's row first, so they wait for each other anyway: but there, each
        would keep a connection from everybody else. Raises as the pool does for a connection.
        """
        started = time.perf_counter()
        turn = self._turns.setdefault(user_id, Turn())
        if turn.waiting >= MAX_WAITING:
            raise TooManyRequests("too many writes of one user")
        turn.waiting += 1
        try:
            taken = turn.lock.acquire(timeout=self.settings.db_pool_timeout)
        finally:
            turn.waiting -= 1
        g.setdefault("timings", Timings()).pool_wait += time.perf_counter() - started
        if not taken:
            raise PoolTimeout("other writes of the user took too long")
        try:
            yield
        finally:
            turn.lock.release()

    def run(
        self,
        query: str,
        parameters: Sequence[object],
        *,
        limit: float | None = None,
        retry: bool = False,
    ) -> list[TupleRow]:
        """Run one statement on a pooled connection and return all rows of its result.

        `limit`, in seconds, is for the wait for a connection, and again for the answer. Without
        one, those of the settings apply. With `retry`, for a statement that does no harm when it
        runs twice, it runs again if the server went away during the first try. Raises
        psycopg.OperationalError when the time is up, ReadOnlySqlTransaction where the server takes
        no writes.
        """
        try:
            return self._run(query, parameters, limit)
        except psycopg.errors.FeatureNotSupported:
            # "cached plan must not change result type": a column has got another type since the
            # statement was prepared. The statement has not run. New connections prepare it anew.
            self.pool.drain()
        except psycopg.errors.ReadOnlySqlTransaction:
            # The statement has not run. After a failover by name, the sessions on the old primary
            # live on, and a session keeps the default_transaction_read_only that it began with.
            if self._renewals.allows():
                self.pool.drain()
        except psycopg.OperationalError as error:
            if not (retry and _went_away(error)):
                raise
            # The other connections are like this one, or about to be.
            self.pool.drain()
        return self._run(query, parameters, limit)

    def _run(self, query: str, parameters: Sequence[object], limit: float | None) -> list[TupleRow]:
        if self.pool.closed:
            self.pool.open()
        asked = time.perf_counter()
        started = None
        try:
            with self.pool.connection(limit) as connection:
                started = time.perf_counter()
                connection.limit = limit or _answer_limit(self.settings)
                rows = connection.one_cursor.execute(query, parameters).fetchall()
                self.answered = time.perf_counter()
                return rows
        finally:
            ended = time.perf_counter()
            started = started or ended  # without a connection, all of it was waiting for one
            timings: Timings = g.setdefault("timings", Timings())
            timings.pool_wait += started - asked
            timings.database += ended - started

    def _complain(self, error: psycopg.Error) -> None:
        """In place of the pool's own warnings, which log.configure turns off: they come with each
        attempt, in the words of the driver."""
        if self._complaints.allows():
            reason, _ = why_unreachable(error)
            log.warning(Fields(event="database_unreachable", reason=reason))

    def _configure(self, connection: Connection) -> None:
        # Times come without a zone, in UTC whatever the session's zone is: with one, they take
        # seven times as long to be written as JSON.
        connection.adapters.register_loader("timestamptz", TimestampBinaryLoader)
        connection.limit = CHECK_LIMIT  # until its first statement sets another

    def _check(self, connection: Connection) -> None:
        """Refuse a connection that the server has closed, without a round trip.

        A server sends nothing on an idle connection until it closes it, so a closed one has a
        readable socket. The other idle connections have most likely been closed, too.
        """
        poller = _poll()
        poller.register(connection.fileno(), POLLIN)
        if poller.poll(0):
            self.pool.drain()
            raise psycopg.OperationalError("the server closed the idle connection")


def _went_away(error: psycopg.OperationalError) -> bool:
    """Whether the connection was lost under a statement: SQLSTATE 57P01, 57P02, ... or none."""
    if isinstance(error, PoolTimeout | NoAnswer):
        return False
    return error.sqlstate is None or error.sqlstate.startswith("57P")


def _answer_limit(settings: Settings) -> float:
    """Seconds to wait for an answer: the server gives the statement up first, where it can."""
    return settings.db_statement_timeout + 1


def complete_conninfo(url: str, settings: Settings) -> str:
    """Add what DATABASE_URL does not state. What it states is kept.

    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
    """
    stated = conninfo_to_dict(url)
    defaults: dict[str, Any] = {
        "application_name": "todo-service",
        "connect_timeout": 3,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        # As long as a request waits for its answer. What the server's host has not acknowledged by
        # then is not sent any more: it would change a task after a 503, when the network is back.
        "tcp_user_timeout": int(min(_answer_limit(settings), 30) * 1000),
    }
    host = str(stated.get("hostaddr") or stated.get("host") or "")
    if host and not host.startswith("/") and host not in LOOPBACK and "PGSSLMODE" not in os.environ:
        defaults["sslmode"] = "require"
    # Whatever the role or the URL says: in another encoding, most titles could not be sent.
    parameters = defaults | stated | {"client_encoding": "UTF8"}
    if settings.db_pooler is None:
        # PgBouncer refuses the start-up parameter "options"; there, only Connection's limit holds.
        timeout = f"-c statement_timeout={int(settings.db_statement_timeout * 1000)}"
        parameters["options"] = f"{stated.get('options') or ''} {timeout}".strip()
    return make_conninfo("", **parameters)
