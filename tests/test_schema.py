"""sql/schema.sql: what it refuses, that it can be applied again, and that it equals the service."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from todo_service import auth, schemas
from todo_service.database import SQL, apply_schema


@pytest.fixture
def owner(connection: psycopg.Connection) -> str:
    user_id = f"owner-{uuid4()}"
    connection.execute("INSERT INTO users (id) VALUES (%s)", (user_id,))
    return user_id


@pytest.fixture
def empty_database(connection: psycopg.Connection, database_url: str):
    name = f"todo_{uuid4().hex}"
    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield make_conninfo(database_url, dbname=name)
    connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def insert(connection: psycopg.Connection, user_id: str, **columns: object) -> None:
    names = ["user_id", *columns]
    connection.execute(
        sql.SQL("INSERT INTO tasks ({}) VALUES ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(sql.Placeholder() for _ in names),
        ),
        [user_id, *columns.values()],
    )


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"title": ""}, "tasks_title_blank_check"),
        ({"title": "x" * 256}, "tasks_title_length_check"),
        ({"title": " \t\n\u00a0\u3000"}, "tasks_title_blank_check"),
        ({"title": "x", "description": "x" * 5001}, "tasks_description_length_check"),
        ({"title": "x", "status": "done"}, "tasks_status_check"),
        ({"title": "x", "idempotency_key": "k"}, "tasks_idempotency_digest_check"),
        ({"title": "x", "idempotency_digest": b"d"}, "tasks_idempotency_digest_check"),
        (
            {"title": "x", "idempotency_key": "k" * 256, "idempotency_digest": b"d"},
            "tasks_idempotency_key_length_check",
        ),
    ],
)
def test_a_constraint_refuses_what_the_service_refuses(
    connection: psycopg.Connection, owner: str, columns: dict[str, object], constraint: str
) -> None:
    with pytest.raises(errors.CheckViolation) as caught:
        insert(connection, owner, **columns)

    assert caught.value.diag.constraint_name == constraint


def test_a_task_needs_an_owner(connection: psycopg.Connection) -> None:
    with pytest.raises(errors.ForeignKeyViolation) as caught:
        insert(connection, f"nobody-{uuid4()}", title="x")

    assert caught.value.diag.constraint_name == "tasks_user_id_fkey"


def test_the_limits_of_the_service_are_those_of_the_schema(
    connection: psycopg.Connection,
) -> None:
    checks = dict(
        connection.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c'"
            " AND conrelid IN ('tasks'::regclass, 'users'::regclass)"
        ).fetchall()
    )

    def numbers(name: str) -> list[int]:
        return [int(number) for number in re.findall(r"\b\d+\b", checks[name])]

    assert numbers("tasks_title_length_check") == [1, schemas.TITLE_LENGTH]
    assert numbers("tasks_description_length_check") == [schemas.DESCRIPTION_LENGTH]
    assert numbers("users_id_length_check") == [1, auth.USER_ID_BYTES]
    assert set(re.findall(r"'(\w+)'", checks["tasks_status_check"])) == set(schemas.STATUSES)


def test_white_space_is_the_same_for_the_service_and_the_schema(
    connection: psycopg.Connection, owner: str
) -> None:
    space = [c for c in map(chr, range(1, sys.maxunicode + 1)) if c.isspace()]
    with pytest.raises(errors.CheckViolation):
        insert(connection, owner, title="".join(space))

    # What neither takes for white space, although it prints nothing.
    for character in "\u200b\ufeff\u2060\u180e":
        insert(connection, owner, title=character)


def test_deleting_a_user_deletes_the_tasks(connection: psycopg.Connection, owner: str) -> None:
    insert(connection, owner, title="x")

    connection.execute("DELETE FROM users WHERE id = %s", (owner,))

    rows = connection.execute("SELECT FROM tasks WHERE user_id = %s", (owner,)).fetchall()
    assert rows == []


def test_every_table_and_column_is_explained(connection: psycopg.Connection) -> None:
    silent = connection.execute(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relname IN ('users', 'tasks') AND c.relkind = 'r' AND a.attnum > 0"
        " AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)"
    ).fetchall()

    assert silent == []


def test_every_unique_key_starts_with_the_user(connection: psycopg.Connection) -> None:
    keys = connection.execute(
        "SELECT i.indexrelid::regclass::text, a.attname FROM pg_index i"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE i.indrelid IN ('users'::regclass, 'tasks'::regclass)"
    ).fetchall()

    assert dict(keys) == {
        "users_pkey": "id",
        "tasks_pkey": "user_id",
        "tasks_newest_idx": "user_id",
        "tasks_idempotency_idx": "user_id",
    }


def describe(url: str) -> list[tuple]:
    """Columns, constraints, indexes and comments of a database, to compare it with another."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT 'column', table_name || '.' || column_name,"
            " concat_ws(' ', data_type, is_nullable, column_default, is_identity),"
            " col_description(table_name::text::regclass, ordinal_position)"
            " FROM information_schema.columns WHERE table_schema = 'public'"
            " UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid), NULL"
            " FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
            " UNION ALL SELECT 'index', indexname, indexdef, NULL"
            " FROM pg_indexes WHERE schemaname = 'public'"
            " UNION ALL SELECT 'table', relname, relkind::text, obj_description(oid)"
            " FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1, 2"
        ).fetchall()


def test_the_first_released_schema_can_be_brought_up_to_date(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute((SQL.parent / "tests" / "schema-0.1.0.sql").read_bytes())
        connection.execute("INSERT INTO users (id) VALUES ('alice')")
        insert(connection, "alice", title="kept")
    apply_schema(empty_database)
    upgraded = describe(empty_database)

    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT title FROM tasks").fetchall() == [("kept",)]
        connection.execute("DROP TABLE tasks, users")
    apply_schema(empty_database)

    assert upgraded == describe(empty_database)


def test_the_schema_can_be_applied_by_several_at_once_and_again(empty_database: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(apply_schema, [empty_database] * 8))
    first = describe(empty_database)
    assert len(first) > 20

    apply_schema(empty_database)

    assert describe(empty_database) == first


def test_a_schema_that_fails_leaves_nothing_behind(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        # In the way of the last table: the statements before it succeed.
        connection.execute("CREATE VIEW tasks AS SELECT 1 AS id")
    with pytest.raises(psycopg.Error):
        apply_schema(empty_database)

    with psycopg.connect(empty_database) as connection:
        (users,) = connection.execute("SELECT to_regclass('users')").fetchone()
    assert users is None
