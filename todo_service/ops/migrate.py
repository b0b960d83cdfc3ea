"""sql/schema.sql: bringing a database to it, and telling what a database lacks of it."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from todo_service.database import SQL

INIT_DB = "Run `flask --app wsgi init-db`"

_DESCRIBE = (SQL / "doctor" / "describe_schema.sql").read_bytes()

# The definitions in a schema, by kind, table and name.
Parts = dict[tuple[str, str, str], str]

_MOVE_KEYS = (SQL / "upgrade" / "move_keys.sql").read_bytes()
_KEYS_TO_MOVE = (
    b"SELECT true FROM pg_attribute WHERE attrelid = 'tasks'::regclass"
    b" AND attname = 'idempotency_key'"
)

# Any fixed number: it names the lock under which the schema is applied.
_SCHEMA_LOCK = 7_036_874_417

# Seconds for which apply_schema tries to get the locks that it needs to change a table.
_LOCK_PATIENCE = 60


def apply_schema(conninfo: str) -> None:
    """Run sql/schema.sql: on a new database in one transaction, on one in use without a long lock.

    Safe when several run it at once. It needs the server's own address: in a pooler, the lock and
    the settings of its session would stay behind. A pooler refuses the settings, and so all of it.
    """
    schema = (SQL / "schema.sql").read_bytes()
    tables, *indexes = re.split(rb"^(?=CREATE (?:UNIQUE )?INDEX)", schema, flags=re.MULTILINE)
    # A large table takes its time. An index that waits for a lock keeps nobody else waiting;
    # where that is different, the schema sets a shorter limit itself.
    limits = "-c statement_timeout=0 -c lock_timeout=10min"
    options = f"{conninfo_to_dict(conninfo).get('options') or ''} {limits}"
    try:
        with psycopg.connect(conninfo, autocommit=True, options=options) as connection:
            _wait_for_turn(connection)
            if connection.execute("SELECT to_regclass('tasks')").fetchone() == (None,):
                _run_transaction(connection, schema)
                return
            _run_transaction(connection, tables)
            for index in indexes:
                _create_index(connection, index)
            _move_keys(connection)
    except psycopg.errors.LockNotAvailable as error:
        raise psycopg.errors.LockNotAvailable(
            "another session keeps the tables locked; docs/psql.md has a query that shows which"
        ) from error


def _wait_for_turn(connection: psycopg.Connection) -> None:
    """Take the lock that lets one session at a time apply the schema. It ends with the session.

    Not by pg_advisory_lock, a statement that lasts until it has the lock: a session that builds an
    index CONCURRENTLY waits for every statement under way, so the two would wait for each other.
    """
    turn = "SELECT pg_try_advisory_lock(%s)"
    while connection.execute(turn, (_SCHEMA_LOCK,)).fetchone() != (True,):
        time.sleep(0.1)


def _run_transaction(connection: psycopg.Connection, statements: bytes) -> None:
    """Run the statements in one transaction. If a lock is not free, try again for a while."""
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            with connection.transaction():
                connection.execute(statements)
            return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _create_index(connection: psycopg.Connection, statement: bytes) -> None:
    """Build an index while others write. If an interrupted run left an invalid one, drop it first.

    One that is in place is left alone: Citus would mark it as invalid, IF NOT EXISTS or not, and
    PostgreSQL would wait for the table's lock.
    https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
    """
    name = re.findall(rb"INDEX IF NOT EXISTS (\w+)", statement)[0].decode()
    is_valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
    match connection.execute(is_valid, (name,)).fetchone():
        case (True,):
            return
        case (False,):
            drop = psycopg.sql.SQL("DROP INDEX CONCURRENTLY {}")
            connection.execute(drop.format(psycopg.sql.Identifier(name)))
    connection.execute(statement.replace(b"INDEX IF", b"INDEX CONCURRENTLY IF", 1))


def _move_keys(connection: psycopg.Connection) -> None:
    """Take the keys of 0.2.0 or earlier from tasks to the table that they have since.

    Their columns stay for this release, unused: until the last worker of the old one has stopped,
    it writes them. What it writes after this is moved when init-db runs again.
    """
    if connection.execute(_KEYS_TO_MOVE).fetchone() != (True,):
        return
    last: tuple[str, str] | None = ("", "")
    while last is not None:
        with suppress(psycopg.errors.ForeignKeyViolation):  # a user was erased meanwhile: again
            last = connection.execute(_MOVE_KEYS, last).fetchone()


def differences(connection: psycopg.Connection[Any]) -> list[str]:
    """What is missing or different, and what to do about each. What is there besides does no harm.

    Takes no lock on the tables that a request would have to wait for. Needs the right TEMPORARY on
    the database, which every role has unless it was taken away.
    """
    expected = _expected(connection)
    found = _describe(connection, [table for _, table, _ in expected])
    missing, others = [], []
    for (kind, table, name), definition in expected.items():
        there = found.get((kind, table, name))
        if there == definition or (kind != "table" and ("table", table, table) not in found):
            continue  # of a table that is missing, nothing else is reported
        part = f"column {table}.{name}" if kind == "column" else f"{kind} {name}"
        if there is None and kind == "constraint":
            add = f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"
            others.append(f"{part} is missing. Run in psql: {add}")
        elif there is None:
            missing.append(part)
        elif kind == "index":
            others.append(f"{part} is {there}. Run in psql: DROP INDEX {name}; and then init-db")
        else:
            others.append(f"{part} is {there}. Alter it to {definition}")
    if missing:
        others.insert(0, f"not there: {', '.join(missing)}. {INIT_DB}")
    return others


def _expected(connection: psycopg.Connection[Any]) -> Parts:
    """What sql/schema.sql makes, in temporary tables that are gone afterwards."""
    with connection.transaction(force_rollback=True):
        connection.execute("SET LOCAL search_path = pg_temp")
        connection.execute((SQL / "schema.sql").read_bytes())
        return _describe(connection, None)


def _describe(connection: psycopg.Connection[Any], tables: list[str] | None) -> Parts:
    rows = connection.execute(_DESCRIBE, (tables, tables)).fetchall()
    return {(kind, table, name): definition for kind, table, name, definition in rows}
