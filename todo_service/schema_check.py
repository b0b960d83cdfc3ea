"""Whether a database holds what sql/schema.sql says, and how to bring it there."""

from __future__ import annotations

from typing import Any

import psycopg

from todo_service.database import SQL

INIT_DB = "Run `flask --app wsgi init-db`"

_DESCRIBE = (SQL / "doctor" / "describe_schema.sql").read_bytes()

# The definitions in a schema, by kind, table and name.
Parts = dict[tuple[str, str, str], str]


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
