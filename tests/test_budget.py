"""The line about connections that is logged at start."""

from __future__ import annotations

import logging
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from todo_service import budget
from todo_service.settings import Settings


@pytest.fixture
def granted(connection: psycopg.Connection) -> int:
    (count,) = connection.execute(
        "SELECT current_setting('max_connections')::integer"
        " - current_setting('superuser_reserved_connections')::integer"
    ).fetchone()
    return count


def reported(
    caplog: pytest.LogCaptureFixture, connection: psycopg.Connection, **settings: object
) -> tuple[str, str]:
    with caplog.at_level(logging.INFO):
        budget.report(connection, Settings(**settings))
    (record,) = caplog.records
    return record.levelname, record.getMessage()


def test_a_budget_that_fits_is_told(
    caplog: pytest.LogCaptureFixture, connection: psycopg.Connection, granted: int
) -> None:
    assert reported(caplog, connection, web_concurrency=2, db_pool_size=granted // 2) == (
        "INFO",
        f"event=connection_budget workers=2 pool_size={granted // 2}"
        f" connections={granted // 2 * 2} granted={granted}",
    )


def test_a_budget_beyond_the_server_is_a_warning(
    caplog: pytest.LogCaptureFixture, connection: psycopg.Connection, granted: int
) -> None:
    assert reported(caplog, connection, web_concurrency=1, db_pool_size=granted + 1) == (
        "WARNING",
        f"event=connection_budget workers=1 pool_size={granted + 1}"
        f" connections={granted + 1} granted={granted}",
    )


def test_a_limit_of_the_role_counts(
    caplog: pytest.LogCaptureFixture, connection: psycopg.Connection
) -> None:
    role = sql.Identifier(f"role_{uuid4().hex}")
    with connection.transaction(force_rollback=True):
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT 7").format(role))
        connection.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(role))

        level, message = reported(caplog, connection, web_concurrency=2, db_pool_size=4)

    assert level == "WARNING"
    assert message.endswith("connections=8 granted=7")


def test_behind_a_pooler_nothing_is_compared(
    caplog: pytest.LogCaptureFixture, connection: psycopg.Connection
) -> None:
    settings = {"web_concurrency": 100, "db_pool_size": 1000, "db_pooler": "transaction"}

    level, message = reported(caplog, connection, **settings)

    assert level == "INFO"
    assert message.endswith("connections=100000 granted=-")


def test_a_server_that_does_not_tell_is_no_reason_to_fail(
    caplog: pytest.LogCaptureFixture, connection: psycopg.Connection
) -> None:
    connection.execute("BEGIN")
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1 / 0")

    assert reported(caplog, connection) == (
        "WARNING",
        "event=connection_budget_unknown reason=InFailedSqlTransaction",
    )
