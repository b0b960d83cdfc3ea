"""sql/schema.sql: bringing a database to it, and telling what a database lacks of it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from todo_service.database import SQL
from todo_service.database_url import first_line

INIT_DB = "Run `flask --app wsgi init-db`"
NEEDS_UTF8 = (
    "The service needs one that was made by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
)

_DESCRIBE = (SQL / "doctor" / "describe_schema.sql").read_bytes()

# The definitions in a schema, by kind, table and name.
Part = tuple[str, str, str]
Parts = dict[Part, str]

_MOVE_KEYS = (SQL / "upgrade" / "move_keys.sql").read_bytes()
_KEYS_TO_MOVE = (
    b"SELECT true FROM pg_attribute WHERE attrelid = 'tasks'::regclass"
    b" AND attname = 'idempotency_key'"
)

# Any fixed number: it names the lock under which the schema is applied.
_SCHEMA_LOCK = 7_036_874_417

# Seconds for which apply_schema tries to get the locks that it needs to change a table.
_LOCK_PATIENCE = 60


class Refused(Exception):
    """Why the database is left as it is, and what to do."""


def needs_owner(error: psycopg.Error) -> Refused:
    return Refused(
        f"{first_line(error)}. OWNER_DATABASE_URL has to name the role that owns the tables"
    )


def apply_schema(conninfo: str) -> None:
    """Run sql/schema.sql: on a new database in one transaction, on one in use without a long lock.

    Safe when several run it at once. Raises Refused for a database that is none of ours, or cannot
    be. A role without the rights may run it where nothing is to do.
    """
    schema = (SQL / "schema.sql").read_bytes()
    tables, *indexes = re.split(rb"^(?=CREATE (?:UNIQUE )?INDEX)", schema, flags=re.MULTILINE)
    try:
        with connect_as_owner(conninfo) as connection:
            _wait_for_turn(connection)
            there = _tables_here(connection)
            refuse_foreign_tables(connection, there)
            try:
                if not there:
                    _run_transaction(connection, schema)
                    return
                _run_transaction(connection, tables)
                for index in indexes:
                    _create_index(connection, index)
                _move_keys(connection)
            except psycopg.errors.InsufficientPrivilege as error:
                if PARTS - _describe(connection, there).keys():
                    raise needs_owner(error) from error
    except psycopg.errors.LockNotAvailable as error:
        raise psycopg.errors.LockNotAvailable(
            "another session keeps the tables locked; docs/psql.md has a query that shows which"
        ) from error


def connect_as_owner(conninfo: str) -> psycopg.Connection:
    """A session on the server itself, with time for large tables. Raises Refused.

    In a pooler, a lock and the settings of the session would stay behind, for others.
    """
    # An index that waits for a lock keeps nobody else waiting; where that is different, the schema
    # sets a shorter limit itself. Its literals are written for standard strings.
    limits = "-c statement_timeout=0 -c lock_timeout=10min -c standard_conforming_strings=on"
    options = f"{conninfo_to_dict(conninfo).get('options') or ''} {limits}"
    pooler = Refused("this is the address of a pooler. Set OWNER_DATABASE_URL to the server's own")
    try:
        connection = psycopg.connect(
            conninfo, autocommit=True, options=options, client_encoding="UTF8"
        )
    except psycopg.OperationalError as error:
        if "startup parameter" in str(error):
            raise pooler from error
        raise
    if connection.execute("SHOW lock_timeout").fetchone() != ("10min",):
        connection.close()
        raise pooler
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise Refused(f"the database is encoded in {encoding}. {NEEDS_UTF8}")
    return connection


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


def _tables_here(connection: psycopg.Connection) -> list[str]:
    """Those with a name of ours in the schema in which a table would be created."""
    rows = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE nspname = current_schema() AND relname = ANY (%s)",
        (TABLES,),
    )
    return [name for (name,) in rows]


def refuse_foreign_tables(
    connection: psycopg.Connection[Any], there: Sequence[str] | None = None
) -> None:
    """Raise Refused if tables with a name of ours belong to another application.

    Ours have the columns and constraints of the first release; what was added does no harm.
    `there` are the tables to look at: those that the session finds, unless given.
    """
    if there is None:
        names = "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
        there = [name for (name,) in connection.execute(names, (TABLES,))]
    missing = _FIRST_RELEASE - _describe(connection, list(there)).keys()
    lacks = [
        f"{table} (no {', '.join(sorted(name for _, of, name in missing if of == table))})"
        for table in there
        if any(of == table for _, of, _ in missing)
    ]
    if lacks:
        raise Refused(
            f"there are tables of these names that are not ours: {'; '.join(lacks)}. They are left"
            " as they are. Give the service a schema of its own: CREATE SCHEMA todo, and add"
            " ?options=-csearch_path%3Dtodo to DATABASE_URL"
        )


def differences(connection: psycopg.Connection[Any]) -> list[str]:
    """What is missing or different, and what to do about each. What is there besides does no harm.

    Takes no lock on the tables that a request would have to wait for. Needs the right TEMPORARY on
    the database, which every role has unless it was taken away.
    """
    with connection.transaction(force_rollback=True):
        # What the role sets otherwise would change the texts that are compared.
        connection.execute("SET LOCAL standard_conforming_strings = on")
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
        elif there is None and kind == "column" and (kind, table, name) in _FIRST_RELEASE:
            add = f"ALTER TABLE {table} ADD COLUMN {name} {definition}"
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


def _names_in(schema: str) -> tuple[set[Part], set[Part]]:
    """The names in sql/schema.sql, and those of them that the first statement of a table gives."""
    first: set[Part] = set()
    for table, body in re.findall(
        r"^CREATE TABLE IF NOT EXISTS (\w+) \((.*?)^\);", schema, re.MULTILINE | re.DOTALL
    ):
        first.add(("table", table, table))
        columns = set(re.findall(r"^    (\w+) ", body, re.MULTILINE)) - {"CONSTRAINT"}
        first |= {("column", table, name) for name in columns}
        first |= {("constraint", table, name) for name in re.findall(r"CONSTRAINT (\w+)", body)}
    added = {
        (kind.lower(), table, name)
        for table, kind, name in re.findall(
            r"ALTER TABLE (\w+) ADD (COLUMN|CONSTRAINT) (?:IF NOT EXISTS )?(\w+)", schema
        )
    }
    indexes = {
        ("index", table, name)
        for name, table in re.findall(r"INDEX IF NOT EXISTS (\w+) ON (\w+)", schema)
    }
    return first | added | indexes, first - added


PARTS, _FIRST_RELEASE = _names_in((SQL / "schema.sql").read_text())
TABLES = sorted(table for kind, table, _ in PARTS if kind == "table")
