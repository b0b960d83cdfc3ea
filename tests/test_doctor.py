"""`flask --app wsgi doctor` on set-ups that are broken, each in its own way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from psycopg.conninfo import conninfo_to_dict

from tests.conftest import ENVIRON, ROOT, SECRET, app_with_commands, free_port, sign
from todo_service.ops import doctor
from todo_service.ops.migrate import apply_schema
from todo_service.settings import Settings

pytestmark = pytest.mark.slow

CHECKS = [
    *("database", "pooler", "schema", "connections", "statement_timeout", "clock"),
    *("keys", "CORS_ORIGINS"),
]


class Report(dict[str, str]):
    """The lines of a run by check, with `ok` or `wrong` in front, and its exit code."""

    def __init__(self, url: str | None, **settings: Any) -> None:
        if "jwt_jwks_url" not in settings:
            settings["jwt_secret"] = SECRET
        app = app_with_commands(Settings(database_url=url, **settings))
        result = app.test_cli_runner().invoke(args=["doctor"])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        self.exit_code = result.exit_code
        self.output = result.output
        lines = re.findall(r"^(ok|wrong) (\w+): (.+)$", self.output, re.MULTILINE)
        assert len(lines) == len(self.output.splitlines()), self.output
        super().__init__({name: f"{verdict} {text}" for verdict, name, text in lines})

    def wrong(self) -> list[str]:
        return [name for name, text in self.items() if text.startswith("wrong ")]


@pytest.fixture
def database(new_database: Callable[..., str]) -> str:
    """A database of the test's own, with the schema."""
    return as_url(new_database(schema=True))


def as_url(conninfo: str, **changes: str) -> str:
    """The conninfo as a URL, with a password whether or not the server asks for one."""
    stated = conninfo_to_dict(conninfo) | changes
    host = stated.pop("host")
    user = f"{stated.pop('user')}:{stated.pop('password', 'p4ssw0rd')}"
    name = stated.pop("dbname")
    query = "&".join(f"{key}={value}" for key, value in {"host": host, **stated}.items())
    return f"postgresql://{user}@/{name}?{query}"


def as_role(url: str, role: str) -> str:
    return as_url(url, user=role, password="p4ssw0rd")


@pytest.fixture
def execute(database: str) -> Callable[[str], None]:
    def execute(statement: str) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(statement)

    return execute


@pytest.fixture
def role(connection: psycopg.Connection, database: str) -> Iterator[str]:
    """A role that may do with the tables what the service does."""
    name = f"role_{uuid4().hex}"
    connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'p4ssw0rd'")
    with psycopg.connect(database, autocommit=True) as owner:
        page = (ROOT / "docs" / "deploy.md").read_text()
        (grant,) = re.findall(r"^ +(GRANT .*) TO web;$", page, re.MULTILINE)
        owner.execute(f"{grant} TO {name}")
        yield name
        owner.execute(f"DROP OWNED BY {name}")
    connection.execute(f"DROP ROLE {name}")


def test_where_nothing_is_wrong_each_check_says_ok(database: str) -> None:
    report = Report(database, cors_origins=("https://app.example.com", "http://localhost:3000"))

    assert list(report) == CHECKS
    assert (report.wrong(), report.exit_code) == ([], 0)
    assert report["CORS_ORIGINS"] == "ok https://app.example.com, http://localhost:3000"
    assert re.fullmatch(r"ok PostgreSQL \d+\.\d+ at \S+, without TLS", report["database"])
    assert report["pooler"] == "ok none"
    assert report["statement_timeout"] == "ok 10000 ms"


def test_a_database_that_cannot_be_reached_is_named_and_the_rest_is_still_checked() -> None:
    report = Report(f"postgresql://todo:p4ssw0rd@127.0.0.1:{free_port()}/todo")

    assert list(report) == ["database", "keys", "CORS_ORIGINS"]
    assert (report.wrong(), report.exit_code) == (["database"], 1)
    assert "Connection refused" in report["database"]
    assert "DATABASE_URL" in report["database"]
    assert "p4ssw0rd" not in report.output


def test_a_database_that_does_not_exist_is_named(database: str) -> None:
    report = Report(as_url(database, dbname="nowhere"))

    assert report.wrong() == ["database"]
    assert '"nowhere" does not exist' in report["database"]


def test_a_database_that_takes_no_writes_is_wrong(database: str) -> None:
    report = Report(as_url(database, options="-c%20default_transaction_read_only%3Don"))

    assert "database" in report.wrong()
    assert "takes no writes" in report["database"]


def test_a_database_without_the_schema_needs_init_db(
    database: str, execute: Callable[[str], None]
) -> None:
    execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    report = Report(database)

    assert report.wrong() == ["schema"]
    assert re.search(r"not there: .*\btable tasks, .*table users\. Run `.* init-db`", report.output)
    apply_schema(database)
    assert Report(database).wrong() == []


DAMAGE = {
    "ALTER TABLE users DROP COLUMN email": "not there: column users.email.",
    "DROP INDEX tasks_newest_idx": "not there: index tasks_newest_idx.",
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'tasks_newest_idx'::regclass": (
        r"index tasks_newest_idx is CREATE .* INVALID\."
    ),
    "DROP INDEX tasks_newest_idx; CREATE INDEX tasks_newest_idx ON tasks (user_id)": (
        r"index tasks_newest_idx is CREATE INDEX tasks_newest_idx ON tasks USING btree \(user_id\)"
    ),
    "ALTER TABLE tasks DROP CONSTRAINT tasks_status_check": (
        "constraint tasks_status_check is missing."
    ),
    "ALTER TABLE tasks DROP CONSTRAINT tasks_user_id_fkey": (
        "constraint tasks_user_id_fkey is missing."
    ),
    "ALTER TABLE tasks ALTER COLUMN title DROP NOT NULL": (
        r"column tasks.title is text\. Alter it to text NOT NULL"
    ),
    "ALTER TABLE tasks ALTER COLUMN status DROP DEFAULT": (
        "column tasks.status is text NOT NULL. Alter it to text NOT NULL DEFAULT 'incomplete'"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_missing_of_the_schema_is_named(
    database: str, execute: Callable[[str], None], damage: str
) -> None:
    execute(damage)

    report = Report(database)

    assert report.wrong() == ["schema"]
    assert re.match(f"wrong {DAMAGE[damage]}", report["schema"])


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if "COLUMN" not in damage])
def test_what_it_says_to_run_mends_the_schema(
    database: str, execute: Callable[[str], None], damage: str
) -> None:
    execute(damage)

    report = Report(database)
    for statement in re.findall(r"Run in psql: ([^;]+)", report["schema"]):
        execute(statement)
    if "init-db" in report["schema"]:
        apply_schema(database)

    assert Report(database).wrong() == []


def test_what_somebody_added_to_the_schema_does_no_harm(
    database: str, execute: Callable[[str], None]
) -> None:
    execute("CREATE TABLE notes (id int); ALTER TABLE users ADD COLUMN phone text")
    execute("CREATE INDEX users_email_idx ON users (email)")

    assert Report(database).wrong() == []


def test_the_schema_may_lie_anywhere_on_the_search_path(
    database: str, execute: Callable[[str], None]
) -> None:
    execute("ALTER SCHEMA public RENAME TO todo")

    report = Report(as_url(database, options="-c%20search_path%3Dtodo"))

    assert report.wrong() == []


def test_it_holds_up_no_request_and_leaves_nothing_behind(
    database: str, execute: Callable[[str], None]
) -> None:
    with psycopg.connect(database) as other:
        # While this lock is held, others can only read.
        other.execute("LOCK TABLE users, tasks IN EXCLUSIVE MODE")
        count = "SELECT count(*) FROM pg_class"
        before = other.execute(count).fetchall()

        assert Report(database).wrong() == []
        assert other.execute(count).fetchall() == before


def test_a_table_that_somebody_keeps_locked_is_waited_for_no_longer_than_a_statement_may_run(
    database: str,
) -> None:
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")

        report = Report(database, db_statement_timeout=0.2)

    assert report.wrong() == ["schema"]
    assert "canceling statement due to statement timeout" in report["schema"]


def test_a_role_without_temporary_tables_hears_that_nothing_was_compared(
    database: str, execute: Callable[[str], None], role: str
) -> None:
    name = conninfo_to_dict(database)["dbname"]
    execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")

    report = Report(as_role(database, role))

    assert report.wrong() == []
    assert "not compared with sql/schema.sql: permission denied" in report["schema"]
    execute("ALTER TABLE tasks RENAME COLUMN title TO name")
    assert Report(as_role(database, role)).wrong() == ["schema"]


def test_a_role_with_the_rights_that_the_page_names_can_do_everything(
    database: str, role: str
) -> None:
    settings = Settings(database_url=as_role(database, role), jwt_secret=SECRET)
    app = app_with_commands(settings)
    client = app.test_client()
    tasks, headers = "/api/alice/tasks", {"Authorization": f"Bearer {sign('alice')}"}

    def ask(method: str, path: str = tasks, body: object = None) -> int:
        return client.open(path, method=method, json=body, headers=headers).status_code

    assert [ask("POST", body={"title": "x"}) for _ in range(3)] == [201] * 3
    newest = client.get(f"{tasks}?limit=1", headers=headers).json[0]["id"]
    assert ask("PATCH", f"{tasks}/{newest}", {"title": "y"}) == 200
    assert ask("DELETE", f"{tasks}/{newest}") == 204
    assert ask("PATCH", f"{tasks}?status=incomplete", {"status": "complete"}) == 200
    assert ask("DELETE", f"{tasks}?status=complete") == ask("GET", f"{tasks}/changes") == 200
    assert ask("GET", "/ready") == 200
    app.extensions["database"].close()
    for command in (["export", "alice"], ["erase", "alice", "--yes"]):
        assert app_with_commands(settings).test_cli_runner().invoke(args=command).exit_code == 0


@pytest.mark.parametrize("table", ["users", "tasks", "deleted_tasks"])
def test_a_role_that_may_not_read_the_tables_needs_a_grant(
    database: str, execute: Callable[[str], None], role: str, table: str
) -> None:
    execute(f"REVOKE ALL ON {table} FROM {role}")

    report = Report(as_role(database, role))

    assert report.wrong() == ["schema"]
    assert f"permission denied for table {table}. Grant that" in report["schema"]


def test_more_connections_than_are_granted_are_wrong_and_what_it_says_to_set_fits(
    database: str, execute: Callable[[str], None], role: str
) -> None:
    execute(f"ALTER ROLE {role} CONNECTION LIMIT 7")
    url = as_role(database, role)

    report = Report(url, web_concurrency=2, db_pool_size=4)

    assert report.wrong() == ["connections"]
    assert report["connections"] == (
        "wrong 2 workers x 4 = 8, and 7 are granted. Set DB_POOL_SIZE=3"
    )
    fitting = Report(url, web_concurrency=2, db_pool_size=3)
    assert fitting.wrong() == []
    assert "while deploys overlap" in fitting["connections"]
    many = Report(url, web_concurrency=8, db_pool_size=1)
    assert "Set WEB_CONCURRENCY=7 and DB_POOL_SIZE=1" in many["connections"]


def test_a_limit_of_the_database_counts(database: str, execute: Callable[[str], None]) -> None:
    name = conninfo_to_dict(database)["dbname"]
    execute(f"ALTER DATABASE {name} CONNECTION LIMIT 10")

    assert "and 10 are granted" in Report(database)["connections"]


def test_a_role_that_has_no_second_connection_is_told(
    database: str, execute: Callable[[str], None], role: str
) -> None:
    execute(f"ALTER ROLE {role} CONNECTION LIMIT 1")

    report = Report(as_role(database, role))

    assert "pooler" in report.wrong()
    assert "too many connections" in report["pooler"]


def test_without_a_timeout_in_the_server_it_says_what_to_run(
    database: str, connection: psycopg.Connection, role: str
) -> None:
    # With DB_POOLER, the service sends none itself.
    settings = {"db_pooler": "transaction", "db_statement_timeout": 2.0}

    report = Report(as_role(database, role), **settings)

    assert report.wrong() == ["statement_timeout"]
    connection.execute(report["statement_timeout"].partition("Run in psql: ")[2])
    report = Report(as_role(database, role), **settings)
    assert report["statement_timeout"] == "ok 2000 ms"
    assert report["pooler"].startswith("ok DB_POOLER is set, but sessions are kept")


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(29, "ok"), (-29, "ok"), (60, "wrong"), (-60, "wrong")]
)
def test_clocks_may_differ_by_what_a_token_is_forgiven(
    database: str, monkeypatch: pytest.MonkeyPatch, seconds: int, verdict: str
) -> None:
    now = time.time
    monkeypatch.setattr(doctor.time, "time", lambda: now() + seconds)

    report = Report(database)

    assert report["clock"].startswith(verdict)
    assert ("ahead of" if seconds > 0 else "behind") in report["clock"]


@pytest.fixture
def publish(tmp_path: Path) -> Iterator[Callable[[bytes], str]]:
    """Put a set of keys on an issuer's server on loopback, and give its address."""
    handler = partial(Quiet, directory=tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()

    def publish(body: bytes) -> str:
        (tmp_path / "jwks").write_bytes(body)
        return f"http://127.0.0.1:{server.server_port}/jwks?token=p4ssw0rd"

    yield publish
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def key_set(*algorithms: str) -> bytes:
    keys = []
    for number, algorithm in enumerate(algorithms):
        if algorithm.startswith("RS"):
            public = RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key(), True)
        else:
            curve = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1}[algorithm]()
            public = ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key(), True)
        keys.append({"kid": str(number), "alg": algorithm, "kty": public["kty"]} | public)
    return json.dumps({"keys": keys}).encode()


def test_the_issuers_keys_are_fetched_and_their_algorithms_told(
    database: str, publish: Callable[[bytes], str]
) -> None:
    report = Report(database, jwt_jwks_url=publish(key_set("RS256", "ES256")))

    assert report["keys"] == "ok 2 from 127.0.0.1, for ES256, RS256"
    assert report.exit_code == 0
    assert "p4ssw0rd" not in report.output


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'{"keys": []}', key_set("ES384"), None],
    ids=lambda body: str(body)[:12],
)
def test_an_issuer_without_keys_that_can_be_used_is_wrong(
    database: str, publish: Callable[[bytes], str], body: bytes | None
) -> None:
    url = publish(body or b"")
    if body is None:
        url = f"http://127.0.0.1:{free_port()}/jwks?token=p4ssw0rd"

    report = Report(database, jwt_jwks_url=url)

    assert report.wrong() == ["keys"]
    assert "127.0.0.1" in report["keys"]
    assert "p4ssw0rd" not in report.output


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"DATABASE_URL": "mysql://u:p4ssw0rd@db/todo"}, "DATABASE_URL"),
        ({"JWT_SECRET": "p4ssw0rd"}, "JWT_SECRET"),
        ({"DB_POOLER": "session"}, "DB_POOLER"),
    ],
)
def test_a_bad_setting_is_the_one_line_there_is(environ: dict[str, str], name: str) -> None:
    given = {"DATABASE_URL": "postgresql://db/todo", "JWT_SECRET": SECRET} | environ
    done = subprocess.run(
        [Path(sys.executable).parent / "flask", "--app", "wsgi", "doctor"],
        cwd=ROOT,
        env=ENVIRON | given,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert name in line
    assert "p4ssw0rd" not in line
