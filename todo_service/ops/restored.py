"""After a restore or a move of the data: `flask --app wsgi after-restore`."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql

from todo_service.ops import migrate

# More than what the lost server may have given since the backup, which is not in the data.
_ID_GAP = 1_000_000

_BATCH = 1000  # users whose rows are locked at a time

# Where the ids are of tasks that are or were there.
_IDS = {"tasks": "id", "deleted_tasks": "id", "idempotency_keys": "task_id"}


def start_again(conninfo: str) -> tuple[int, int]:
    """Leave out a million ids, and make every copy that a client keeps start again.

    Returns the id after which new ones go on, and the number of users. Raises migrate.Refused.
    """
    with migrate.connect_as_owner(conninfo) as connection:
        migrate.refuse_foreign_tables(connection)
        try:
            # Ids first: where they are behind the data, every other create fails until then.
            return _leave_ids_out(connection), _expire_cursors(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise migrate.needs_owner(error) from error


def highest_id(connection: psycopg.Connection[Any]) -> int:
    """The highest id that a task has or had, as far as it is known; 0 if there is none."""
    highest = 0
    for table, column in _IDS.items():
        if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() != (None,):
            query = sql.SQL("SELECT coalesce(max({}), 0) FROM {}").format(
                sql.Identifier(column), sql.Identifier(table)
            )
            ((found,),) = connection.execute(query)
            highest = max(highest, found)
    return highest


def last_id(connection: psycopg.Connection[Any]) -> int | None:
    """The last id that was given; 0 before the first, None if the role may not know."""
    row = connection.execute(
        "SELECT CASE WHEN has_sequence_privilege(id, 'SELECT, USAGE')"
        " THEN coalesce(pg_sequence_last_value(id), 0) END"
        " FROM (SELECT pg_get_serial_sequence('tasks', 'id')::regclass AS id) AS sequence"
    ).fetchone()
    assert row is not None
    last: int | None = row[0]
    return last


def _leave_ids_out(connection: psycopg.Connection[Any]) -> int:
    # Ids beyond the highest may have been given, too, to tasks of users who were erased.
    last = max(highest_id(connection), last_id(connection) or 0) + _ID_GAP
    connection.execute("SELECT setval(pg_get_serial_sequence('tasks', 'id'), %s)", (last,))
    return last


def _expire_cursors(connection: psycopg.Connection[Any]) -> int:
    """Move created_at, which every cursor holds, and changed_at, of which a list's tag is made.

    created_at moves by a random time: the same backup may be restored twice. changed_at moves past
    every time that was given since the backup, also where it was ahead of the server's clock.
    """
    offset = timedelta(microseconds=1 + secrets.randbelow(60_000_000))
    count, last = 0, ""
    while ids := [
        row[0]
        for row in connection.execute(
            "SELECT id FROM users WHERE id > %s ORDER BY id LIMIT %s", (last, _BATCH)
        )
    ]:
        # In UTC, where the sums do not depend on the session's time zone: Citus wants that.
        connection.execute(
            "UPDATE users"
            " SET created_at = (created_at AT TIME ZONE 'UTC' + %s::interval) AT TIME ZONE 'UTC',"
            " changed_at = greatest("
            "now(), (changed_at AT TIME ZONE 'UTC' + interval '1 second') AT TIME ZONE 'UTC')"
            " WHERE id = ANY (%s)",
            (offset, ids),
        )
        count, last = count + len(ids), ids[-1]
    return count
