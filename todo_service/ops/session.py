"""The connection that the checks of `doctor` share."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import psycopg

from todo_service.database import Connection, Database, complete_conninfo
from todo_service.database_url import first_line, why_unreachable
from todo_service.settings import Settings

_LIMIT = 5.0  # seconds that a statement may take


class Wrong(Exception):
    """What is wrong, and what to set or to run."""


class Session(NamedTuple):
    """The connection that the checks share."""

    connection: Connection
    conninfo: str
    settings: Settings
    # Whether it took the start-up option that the service sends, or had to be made without one.
    takes_options: bool

    def ask(self, query: bytes) -> Any:
        """The first value of the answer."""
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def reach(database: Database) -> Session:
    """Connect as the service does; if that fails, as it does where DB_POOLER is set."""
    settings = database.settings
    try:
        conninfo = database.conninfo
    except Exception as error:  # whatever stops a PostgreSQL from starting
        raise Wrong(
            f"the embedded PostgreSQL does not start: {first_line(error)}. Set DATABASE_URL"
        ) from None
    try:
        return Session(connect(conninfo), conninfo, settings, takes_options=True)
    except psycopg.Error as error:
        if settings.database_url is not None and settings.db_pooler is None:
            pooled = replace(settings, db_pooler="transaction")
            conninfo = complete_conninfo(settings.database_url, pooled)
            with suppress(psycopg.Error):
                return Session(connect(conninfo), conninfo, settings, takes_options=False)
        raise Wrong(why_unreachable(error)[1]) from None


def connect(conninfo: str) -> Connection:
    connection = Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    connection.limit = _LIMIT
    return connection
