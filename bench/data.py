"""The tasks that every competitor finds, in a database of this run's own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import jwt
import psycopg
from psycopg import sql

from bench.trees import TODAY, Tree, environ, run

USERS = 1000
TASKS_EACH = 100
SECRET = "a secret that only the benchmark knows, 0123456789"

# A digit string, since pgbench's variables are numbers. First ids of six digits and a time with
# microseconds make all tasks equally long, so that the floor can answer with the same size.
FIRST_USER = 4_700_000_000
FIRST_TASK = 100_001
FIRST_TIME = datetime(2025, 1, 1, 9, 30, 0, 123456, UTC)
TITLE = "Call the plumber about the tap, case "
DESCRIPTION = "The one in the kitchen. Ask for a morning next week, and what the visit costs."

_SEED_USERS = """
INSERT INTO users (id, created_at)
SELECT (%s::bigint + number)::text, %s
FROM generate_series(0, %s - 1) AS number
"""

# User after user within each round of tasks, as they would arrive: the tasks of one user are
# spread over the table rather than side by side.
_SEED_TASKS = """
INSERT INTO tasks (user_id, title, description, created_at, updated_at)
SELECT
    (%s::bigint + mod(number, %s))::text,
    %s || lpad(number::text, 7, '0'),
    %s,
    %s + number * interval '1 second',
    %s + number * interval '1 second'
FROM generate_series(0, %s - 1) AS number
ORDER BY number
"""

# What the workloads change.
_RESTORE_TASKS = """
UPDATE tasks
SET title = %s || lpad((id - %s::bigint)::text, 7, '0'),
    status = 'incomplete',
    updated_at = created_at
WHERE updated_at <> created_at
"""


def user_id(number: int) -> str:
    return str(FIRST_USER + number)


def title(number: int) -> str:
    return f"{TITLE}{number:07}"


def sign(user: str) -> str:
    now = int(time.time())
    return jwt.encode({"sub": user, "iat": now, "exp": now + 24 * 3600}, SECRET, "HS256")


def on_database(url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextmanager
def own_database(server: str, label: str, tree: Tree = TODAY) -> Iterator[str]:
    """A new database with the tree's schema, dropped in the end; yields its URL.

    Never the database that the URL names: seeding starts with TRUNCATE.
    """
    name = f"todo_bench_{label}_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            url = on_database(server, name)
            variables = environ(DATABASE_URL=url, JWT_SECRET=SECRET)
            run(tree.program("flask"), "--app", "wsgi", "init-db", cwd=tree.root, env=variables)
            with psycopg.connect(url) as inside:
                for table in tables(inside):
                    # `seed` and `restore` vacuum; PostgreSQL itself would do it amid a measurement.
                    off = sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(table)
                    inside.execute(off)
            yield url
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


def tables(connection: psycopg.Connection) -> list[sql.Identifier]:
    """All tables: each tree has its own."""
    query = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    return [sql.Identifier(name) for (name,) in connection.execute(query)]


def seed(url: str, users: int = USERS, tasks_each: int = TASKS_EACH) -> None:
    """Put the tables into the one state from which everything is measured."""
    count = users * tasks_each
    restart = sql.SQL("ALTER TABLE tasks ALTER COLUMN id RESTART WITH {}").format(FIRST_TASK)
    with psycopg.connect(url, autocommit=True) as connection:
        everything = sql.SQL(", ").join(tables(connection))
        with connection.transaction():
            connection.execute(sql.SQL("TRUNCATE {}").format(everything))
            connection.execute(restart)
            connection.execute(_SEED_USERS, (FIRST_USER, FIRST_TIME, users))
            connection.execute(
                _SEED_TASKS,
                (FIRST_USER, users, TITLE, DESCRIPTION, FIRST_TIME, FIRST_TIME, count),
            )
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(everything))


def restore(url: str) -> None:
    """Undo what a workload has done to seeded tables.

    Quicker than to seed them again, which is only done where tasks were deleted.
    """
    count = USERS * TASKS_EACH
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM tasks WHERE id >= %s", (FIRST_TASK + count,))
        if connection.execute("SELECT count(*) FROM tasks").fetchone() != (count,):
            seed(url)
            return
        connection.execute(_RESTORE_TASKS, (TITLE, FIRST_TASK))
        everything = sql.SQL(", ").join(tables(connection))
        connection.execute(sql.SQL("VACUUM ANALYZE {}").format(everything))
