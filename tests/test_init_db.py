"""`flask --app wsgi init-db`: whose database it takes, and which role and rights it needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from click.testing import Result

from tests.conftest import ROOT, SECRET, app_with_commands, sign
from tests.test_doctor import as_role, as_url
from tests.test_schema import describe
from todo_service import store
from todo_service.ops import migrate
from todo_service.settings import Settings

pytestmark = pytest.mark.slow


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def run(*command: str, **settings: str) -> Result:
    app = app_with_commands(Settings(jwt_secret=SECRET, **settings))
    result = app.test_cli_runner().invoke(args=command)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.output.count("\n") == 1
    return result


@pytest.fixture
def web(database_url: str) -> Iterator[str]:
    """A role that owns nothing, and may make no temporary tables."""
    name = f"web_{uuid4().hex}"
    execute(database_url, f"CREATE ROLE {name} LOGIN PASSWORD 'p4ssw0rd'")
    yield name
    execute(database_url, f"DROP ROLE {name}")


def without_temporary_tables(url: str) -> None:
    name = urlsplit(url).path[1:]
    execute(url, f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")


def test_where_all_is_in_place_a_role_needs_no_right(
    new_database: Callable[..., str], web: str
) -> None:
    url = new_database(schema=True)
    without_temporary_tables(url)
    before = describe(url)

    result = run("init-db", database_url=as_role(url, web))

    assert (result.exit_code, result.output) == (0, "The schema is in place.\n")
    assert describe(url) == before


def test_where_something_is_missing_it_asks_for_the_owner_and_takes_that(
    new_database: Callable[..., str], web: str
) -> None:
    url = new_database(schema=False)
    for schema in ("", (ROOT / "tests" / "schema-0.1.0.sql").read_text()):
        execute(url, schema)
        before = describe(url)

        result = run("init-db", database_url=as_role(url, web))

        assert result.exit_code == 1
        assert "OWNER_DATABASE_URL has to name the role that owns the tables" in result.output
        assert describe(url) == before

    result = run("init-db", database_url=as_role(url, web), owner_database_url=url)
    assert (result.exit_code, result.output) == (0, "The schema is in place.\n")
    left = ("tasks.idempotency_", "tasks_idempotency_")
    upgraded = [part for part in describe(url) if not part[1].startswith(left)]
    assert upgraded == describe(new_database(schema=True))


def test_an_owner_who_cannot_be_reached_is_named_by_the_variable(
    new_database: Callable[..., str],
) -> None:
    url = new_database(schema=False)

    result = run("init-db", database_url=url, owner_database_url=as_role(url, "nobody"))

    assert result.exit_code == 1
    assert "OWNER_DATABASE_URL is refused: " in result.output


OTHERS = (
    "CREATE TABLE users (id text PRIMARY KEY, name text NOT NULL, email text)",
    "COMMENT ON TABLE users IS 'theirs'",
    "CREATE TABLE sessions (user_id text REFERENCES users ON DELETE CASCADE)",
    "INSERT INTO users VALUES ('alice', 'Alice'), ('bob', 'Bob')",
    "INSERT INTO sessions VALUES ('alice')",
)


def others(url: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        return connection.execute(
            "SELECT users, sessions FROM public.users LEFT JOIN public.sessions ON user_id = id"
            " ORDER BY users.id"
        ).fetchall()


def test_tables_of_another_application_are_named_and_left_alone(
    new_database: Callable[..., str],
) -> None:
    url = new_database(schema=False)
    execute(url, *OTHERS)
    before = describe(url), others(url)

    for command in (["init-db"], ["after-restore"], ["erase", "alice", "--yes"]):
        result = run(*command, database_url=url)

        assert result.exit_code == 1
        said = "not ours: users (no created_at, users_id_length_check). "
        assert said in result.output
        assert "CREATE SCHEMA todo" in result.output
        assert (describe(url), others(url)) == before


@pytest.mark.parametrize("path", ["todo", "todo,public"])
def test_a_schema_of_its_own_is_the_way_out(new_database: Callable[..., str], path: str) -> None:
    url = new_database(schema=False)
    execute(url, *OTHERS, "CREATE SCHEMA todo")
    before = describe(url), others(url)
    ours = as_url(url, options=f"-csearch_path%3D{path}")

    assert run("init-db", database_url=ours).output == "The schema is in place.\n"

    app = app_with_commands(Settings(database_url=ours, jwt_secret=SECRET))
    headers = {"Authorization": f"Bearer {sign('alice')}"}
    client = app.test_client()
    created = client.post("/api/alice/tasks", json={"title": "x"}, headers=headers)
    assert (created.status_code, client.get("/ready").status_code) == (201, 200)
    app.extensions["database"].close()
    assert run("erase", "alice", "--yes", database_url=ours).exit_code == 0
    assert run("init-db", database_url=ours).exit_code == 0
    assert (describe(url), others(url)) == before


@pytest.mark.parametrize(
    "relation",
    [
        "VIEW tasks AS SELECT 1 AS id",
        "TABLE deleted_tasks (id bigint)",
        # With the columns and without the constraints.
        "TABLE users (id text CONSTRAINT users_pkey PRIMARY KEY, email text, created_at time)",
    ],
)
def test_a_relation_that_has_only_the_name_is_not_ours(
    new_database: Callable[..., str], relation: str
) -> None:
    url = new_database(schema=False)
    execute(url, f"CREATE {relation}")
    before = describe(url)

    result = run("init-db", database_url=url)

    assert (result.exit_code, describe(url)) == (1, before)
    assert "of these names that are not ours: " in result.output


def test_what_somebody_added_to_our_tables_does_no_harm(new_database: Callable[..., str]) -> None:
    url = new_database(schema=False)
    execute(url, (ROOT / "tests" / "schema-0.1.0.sql").read_text())
    execute(
        url,
        "ALTER TABLE users ADD COLUMN phone text CONSTRAINT phone_check CHECK (phone <> '')",
        "CREATE TABLE notes (user_id text REFERENCES users)",
        "CREATE INDEX users_email_idx ON users (email)",
    )

    assert run("init-db", database_url=url).exit_code == 0


def test_every_table_is_among_those_whose_rights_are_looked_at() -> None:
    assert set(re.findall(r"\('(\w+)'", store.MISSING_RIGHTS)) >= set(migrate.TABLES)
