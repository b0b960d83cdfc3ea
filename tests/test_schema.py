"""sql/schema.sql: what it refuses, and how it is applied."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql

from tests.conftest import SECRET, app_with_commands
from todo_service.ops.migrate import SQL, apply_schema
from todo_service.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture
def owner(connection: psycopg.Connection) -> str:
    user_id = f"owner-{uuid4()}"
    connection.execute("INSERT INTO users (id) VALUES (%s)", (user_id,))
    return user_id


@pytest.fixture
def empty_database(new_database: Callable[..., str]) -> str:
    return new_database(schema=False)


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


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_has_1_to_255_characters(
    connection: psycopg.Connection, owner: str, key: str
) -> None:
    with pytest.raises(errors.CheckViolation) as caught:
        connection.execute(
            "INSERT INTO idempotency_keys (user_id, key, digest, created_at)"
            " VALUES (%s, %s, '', now())",
            (owner, key),
        )

    assert caught.value.diag.constraint_name == "idempotency_keys_key_length_check"


def test_a_deleted_task_needs_an_owner(connection: psycopg.Connection) -> None:
    with pytest.raises(errors.ForeignKeyViolation) as caught:
        connection.execute(
            "INSERT INTO deleted_tasks (user_id, id, deleted_at) VALUES (%s, 1, now())",
            (f"nobody-{uuid4()}",),
        )

    assert caught.value.diag.constraint_name == "deleted_tasks_user_id_fkey"


def test_every_table_and_column_is_explained(connection: psycopg.Connection) -> None:
    silent = connection.execute(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relname IN ('users', 'tasks', 'deleted_tasks') AND c.relkind = 'r'"
        " AND a.attnum > 0"
        " AND (col_description(c.oid, a.attnum) IS NULL OR obj_description(c.oid) IS NULL)"
    ).fetchall()

    assert silent == []


def test_every_unique_key_starts_with_the_user(connection: psycopg.Connection) -> None:
    keys = connection.execute(
        "SELECT i.indexrelid::regclass::text, a.attname FROM pg_index i"
        " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
        " WHERE i.indrelid IN ('users'::regclass, 'tasks'::regclass, 'deleted_tasks'::regclass,"
        " 'idempotency_keys'::regclass)"
    ).fetchall()

    assert dict(keys) == {
        "users_pkey": "id",
        "tasks_pkey": "user_id",
        "tasks_newest_idx": "user_id",
        "tasks_changes_idx": "user_id",
        "deleted_tasks_pkey": "user_id",
        "idempotency_keys_pkey": "user_id",
        "idempotency_keys_created_at_idx": "user_id",
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


@pytest.fixture
def released(empty_database: str, request: pytest.FixtureRequest) -> str:
    """A database with the schema of an earlier release, and one task of alice."""
    with psycopg.connect(empty_database) as connection:
        schema = SQL.parent / "tests" / f"schema-{getattr(request, 'param', '0.1.0')}.sql"
        connection.execute(schema.read_bytes())
        connection.execute("INSERT INTO users (id) VALUES ('alice')")
        insert(connection, "alice", title="kept")
    return empty_database


@pytest.mark.parametrize("released", ["0.1.0", "0.2.0"], indirect=True)
def test_the_schema_of_an_earlier_release_can_be_brought_up_to_date(released: str) -> None:
    apply_schema(released)
    upgraded = describe(released)

    with psycopg.connect(released) as connection:
        assert connection.execute("SELECT title FROM tasks").fetchall() == [("kept",)]
        connection.execute("DROP TABLE idempotency_keys, deleted_tasks, tasks, users")
    apply_schema(released)

    # The columns of keys stay for a release: workers of the old one write them until they stop.
    left = ("tasks.idempotency_", "tasks_idempotency_")
    assert [part for part in upgraded if not part[1].startswith(left)] == describe(released)


@pytest.mark.parametrize("released", ["0.1.0", "0.2.0"], indirect=True)
def test_keys_of_an_earlier_release_go_on_being_known(released: str) -> None:
    def give_key(key: str, user: str, age: str) -> None:
        with psycopg.connect(released) as connection:
            connection.execute("INSERT INTO users VALUES (%s) ON CONFLICT DO NOTHING", (user,))
            insert(connection, user, title=key, idempotency_key=key, idempotency_digest=b"d")
            connection.execute(
                "UPDATE tasks SET created_at = now() - %s::interval, idempotency_replays = 3"
                " WHERE idempotency_key = %s",
                (age, key),
            )

    for number in range(3):
        give_key(f"key {number}", f"user {number}", "89 days")
    give_key("old", "user 1", "91 days")
    apply_schema(released)
    # A worker of the old release that has not stopped yet.
    give_key("late", "user 1", "0 days")
    apply_schema(released)

    with psycopg.connect(released) as connection:
        rows = connection.execute(
            "SELECT k.user_id, key, convert_from(digest, 'UTF8'), title, replays,"
            " k.created_at = t.created_at"
            " FROM idempotency_keys AS k JOIN tasks AS t ON t.id = task_id ORDER BY key"
        ).fetchall()
    keys = [("user 0", "key 0"), ("user 1", "key 1"), ("user 2", "key 2"), ("user 1", "late")]
    assert rows == [(user, key, "d", key, 3, True) for user, key in keys]


def test_the_service_is_not_ready_on_the_schema_of_an_earlier_release(released: str) -> None:
    app = app_with_commands(Settings(database_url=released, jwt_secret=SECRET))
    client = app.test_client()
    assert client.get("/ready").status_code == 503

    apply_schema(released)

    assert client.get("/ready").status_code == 200
    app.extensions["database"].close()


def test_a_clock_starts_no_earlier_than_the_newest_change_and_is_then_left_alone(
    released: str,
) -> None:
    with psycopg.connect(released) as connection:
        connection.execute("INSERT INTO users (id) VALUES ('bob'), ('carol')")
        for user, time in (("alice", "2101-01-01"), ("alice", "2100-01-01"), ("bob", "2000-01-01")):
            insert(connection, user, title="x", updated_at=time)
    clocks = "SELECT id, extract(year FROM changed_at) > 2099, changed_at FROM users ORDER BY id"
    apply_schema(released)
    with psycopg.connect(released) as connection:
        started = connection.execute(clocks).fetchall()
        assert [row[:2] for row in started] == [("alice", True), ("bob", False), ("carol", False)]
        behind = connection.execute(
            "SELECT FROM tasks JOIN users ON users.id = user_id WHERE updated_at > changed_at"
        )
        assert behind.fetchall() == []
        insert(connection, "bob", title="x", updated_at="2102-01-01")

    apply_schema(released)

    with psycopg.connect(released) as connection:
        assert connection.execute(clocks).fetchall() == started


@pytest.mark.parametrize("database", ["empty_database", "released"])
def test_the_schema_can_be_applied_by_several_at_once_and_again(
    database: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(database)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(apply_schema, [url] * 8))
    first = describe(url)
    assert len(first) > 20

    apply_schema(url)

    assert describe(url) == first


def test_an_index_that_an_interrupted_run_left_invalid_is_built_again(released: str) -> None:
    apply_schema(released)
    whole = describe(released)
    index = (
        "SELECT indisvalid, indexrelid FROM pg_index"
        " WHERE indexrelid = 'tasks_changes_idx'::regclass"
    )
    with psycopg.connect(released) as connection:
        ((_, old),) = connection.execute(index).fetchall()
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s", (old,))

    apply_schema(released)

    with psycopg.connect(released) as connection:
        ((valid, new),) = connection.execute(index).fetchall()
    assert (valid, new != old) == (True, True)
    assert describe(released) == whole


def test_only_an_index_that_is_missing_is_created(released: str) -> None:
    apply_schema(released)
    with psycopg.connect(released) as connection:
        connection.execute("DROP INDEX tasks_changes_idx")
        connection.execute("CREATE TABLE attempts (statement text)")
        connection.execute(
            "CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql"
            " AS 'BEGIN INSERT INTO attempts VALUES (current_query()); END'"
        )
        connection.execute(
            "CREATE EVENT TRIGGER note ON ddl_command_start WHEN TAG IN ('CREATE INDEX')"
            " EXECUTE FUNCTION note()"
        )

    apply_schema(released)

    with psycopg.connect(released) as connection:
        ((statement,),) = connection.execute("SELECT statement FROM attempts").fetchall()
    assert statement.startswith("CREATE INDEX CONCURRENTLY IF NOT EXISTS tasks_changes_idx ")


def test_a_schema_that_is_in_place_is_applied_beside_open_transactions(released: str) -> None:
    apply_schema(released)
    with ThreadPoolExecutor(1) as pool, psycopg.connect(released) as other:
        other.execute("UPDATE users SET changed_at = now()")
        insert(other, "alice", title="open")
        other.execute("DELETE FROM deleted_tasks")

        # Would wait for the other one until it gave up.
        pool.submit(apply_schema, released).result(30)


def test_an_upgrade_that_has_to_wait_for_a_lock_lets_others_pass(released: str) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(released) as reading,
        psycopg.connect(released, autocommit=True) as writing,
    ):
        # As pg_dump would, for as long as it takes.
        reading.execute("SELECT FROM users")
        upgrade = pool.submit(apply_schema, released)
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted"
        writing.execute("SET lock_timeout = '5s'")
        waits = 0
        while waits < 3:
            (now_waiting,) = writing.execute(waiting).fetchone()
            # Comes in line behind the upgrade, and is let pass when that gives up for a while.
            writing.execute("INSERT INTO users (id) VALUES (%s)", (str(uuid4()),))
            waits += now_waiting
            assert not upgrade.done()
        reading.rollback()
        upgrade.result(30)

    assert "users.changed_at" in {name for _, name, *_ in describe(released)}


def test_an_upgrade_that_never_gets_its_lock_says_so(
    released: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("todo_service.ops.migrate._LOCK_PATIENCE", 0)
    before = describe(released)

    with psycopg.connect(released) as reading:
        reading.execute("SELECT FROM users")
        with pytest.raises(psycopg.OperationalError, match="another session keeps the tables"):
            apply_schema(released)

    assert describe(released) == before


def test_a_schema_that_fails_leaves_nothing_behind(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        # A type with the name of the last table: the statements before that succeed.
        connection.execute("CREATE DOMAIN deleted_tasks AS text")
    with pytest.raises(psycopg.Error):
        apply_schema(empty_database)

    with psycopg.connect(empty_database) as connection:
        (users,) = connection.execute("SELECT to_regclass('users')").fetchone()
    assert users is None
