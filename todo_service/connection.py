"""One connection to PostgreSQL: how it is made, and how long it waits."""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import Any, TypeVar

import psycopg
from gevent.monkey import is_module_patched
from gevent.socket import wait_read, wait_readwrite, wait_write
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait
from psycopg_pool import PoolTimeout

from todo_service.settings import LOOPBACK, Settings

_T = TypeVar("_T")

# As psycopg decides it: once, when it is imported.
_UNDER_GEVENT = is_module_patched("select")
_WAITS = {Wait.R: wait_read, Wait.W: wait_write, Wait.RW: wait_readwrite}


class Connection(psycopg.Connection[TupleRow]):
    """A connection on which no wait is endless.

    The server's statement_timeout ends a slow statement; this limit, in seconds, is for a server
    that cannot (a frozen process, a vanished host), whose kernel may go on acknowledging packets.
    """

    limit: float | None = None

    @cached_property
    def own_cursor(self) -> psycopg.Cursor[TupleRow]:
        """For one statement after another: a new cursor would look up each type anew."""
        return self.cursor(binary=True)

    def commit(self) -> None:
        """Nothing to do: in autocommit mode, every statement commits itself."""

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        limit = self.limit if timeout is None else timeout
        try:
            if _UNDER_GEVENT:
                return _wait_in_hub(gen, self.fileno(), limit)
            return super().wait(gen, interval, limit)
        except psycopg.errors._WaitTimeout:
            # Closed, so that no later step waits for the same silent server once more.
            self.close()
            raise NoAnswer("no answer from the server in time") from None


def _wait_in_hub(gen: PQGen[_T], fileno: int, limit: float | None) -> _T:
    """Let other requests run until the server has answered, for `limit` seconds at most.

    psycopg's own way would do, but under gevent it makes a dozen objects for each wait and wakes up
    every 0.1 s.
    """
    deadline = None if limit is None else time.monotonic() + limit
    try:
        wanted = next(gen)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            _WAITS[wanted](fileno, left, psycopg.errors._WaitTimeout)
            # RW also where one of them was waited for: psycopg tries, and waits once more.
            wanted = gen.send(Ready.RW)
    except StopIteration as end:
        result: _T = end.value
        return result


class NoAnswer(psycopg.OperationalError):
    """The server kept silent for longer than the limit."""


def went_away(error: psycopg.OperationalError) -> bool:
    """Whether the connection was lost under a statement: SQLSTATE 57P01, 57P02, ... or none."""
    if isinstance(error, PoolTimeout | NoAnswer):
        return False
    return error.sqlstate is None or error.sqlstate.startswith("57P")


def complete_conninfo(url: str, settings: Settings) -> str:
    """Add to DATABASE_URL what it leaves open; whatever it states itself stands.

    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
    """
    stated = conninfo_to_dict(url)
    defaults: dict[str, Any] = {
        "application_name": "todo-service",
        "connect_timeout": 3,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
    host = str(stated.get("hostaddr") or stated.get("host") or "")
    if host and not host.startswith("/") and host not in LOOPBACK and "PGSSLMODE" not in os.environ:
        defaults["sslmode"] = "require"
    parameters = defaults | stated
    if settings.db_pooler is None:
        # PgBouncer refuses the start-up parameter "options"; there, only Connection's limit holds.
        timeout = f"-c statement_timeout={int(settings.db_statement_timeout * 1000)}"
        parameters["options"] = f"{stated.get('options') or ''} {timeout}".strip()
    return make_conninfo("", **parameters)
