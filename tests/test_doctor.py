"""`flask --app wsgi doctor` on set-ups that are broken, each in its own way."""

from __future__ import annotations

import ipaddress
import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.conftest import ROOT, SECRET, app_with_commands, free_port, sign
from tests.issuer import Issuer
from todo_service.ops import doctor, migrate
from todo_service.ops.migrate import apply_schema
from todo_service.settings import Settings

pytestmark = pytest.mark.slow

CHECKS = [
    *("database", "pooler", "schema", "rights", "encoding", "ids"),
    *("connections", "statement_timeout", "clock"),
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
        for grant in re.findall(r"^ +(GRANT .*) TO web;$", page, re.MULTILINE):
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
    port = free_port()

    report = Report(f"postgresql://todo:p4ssw0rd@127.0.0.1:{port}/todo")

    assert list(report) == ["database", "keys", "CORS_ORIGINS"]
    assert (report.wrong(), report.exit_code) == (["database"], 1)
    assert (
        f"nobody listens at 127.0.0.1:{port}. Check the host and port in DATABASE_URL"
        in (report["database"])
    )
    assert "sslmode" not in report.output
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
    "ALTER TABLE users DROP COLUMN email": "column users.email is missing. Run in psql: ALTER ",
    "ALTER TABLE users DROP COLUMN changed_at": "not there: column users.changed_at.",
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


@pytest.mark.parametrize("damage", [damage for damage in DAMAGE if "ALTER COLUMN" not in damage])
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


@pytest.mark.parametrize("table", migrate.TABLES)
@pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE"])
def test_a_role_without_one_of_its_rights_needs_the_grant_that_it_says(
    database: str, execute: Callable[[str], None], role: str, table: str, right: str
) -> None:
    execute(f"REVOKE {right} ON {table} FROM {role}")
    ready = app_with_commands(Settings(database_url=as_role(database, role), jwt_secret=SECRET))

    report = Report(as_role(database, role))

    assert report.wrong() == ["rights"]
    grant = report["rights"].partition("Run in psql, as the owner of the tables: ")[2]
    assert grant == f"GRANT {right} ON {table} TO {role}"
    assert ready.test_client().get("/ready").status_code == 503
    execute(grant)
    assert Report(as_role(database, role)).wrong() == []
    assert ready.test_client().get("/ready").status_code == 200
    ready.extensions["database"].close()


def test_a_sequence_that_a_column_takes_its_default_from_needs_a_right(
    database: str, execute: Callable[[str], None], role: str
) -> None:
    # As after a restore with --no-privileges: init-db grants it to all with the table.
    execute(f"REVOKE ALL ON SEQUENCE tasks_id_seq FROM PUBLIC, {role}")

    grant = Report(as_role(database, role))["rights"].partition("of the tables: ")[2]

    assert grant == f"GRANT USAGE ON SEQUENCE tasks_id_seq TO {role}"
    execute(grant)
    assert Report(as_role(database, role))["rights"].startswith("ok ")


def test_without_any_right_it_says_all_that_is_to_be_granted(
    database: str, execute: Callable[[str], None], role: str
) -> None:
    execute(f"REVOKE ALL ON {', '.join(migrate.TABLES)} FROM {role}")

    report = Report(as_role(database, role))

    assert report.wrong() == ["rights"]
    assert report["ids"].startswith("ok not checked: ")
    execute(report["rights"].partition("of the tables: ")[2])
    assert Report(as_role(database, role)).wrong() == []


def test_what_needs_a_right_that_is_missing_is_a_503_and_the_rest_goes_on(
    database: str,
    execute: Callable[[str], None],
    role: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    execute(f"REVOKE INSERT, UPDATE ON tasks FROM {role}")
    app = app_with_commands(Settings(database_url=as_role(database, role), jwt_secret=SECRET))
    client, headers = app.test_client(), {"Authorization": f"Bearer {sign('alice')}"}

    refused = client.post("/api/alice/tasks", json={"title": "p4ssw0rd"}, headers=headers)

    app.logger.info("the end")
    assert (refused.status_code, refused.get_json()) == (
        503,
        {"error": "Service temporarily unavailable"},
    )
    assert refused.headers["Retry-After"]
    (line,) = [text for text in caplog.messages if "event=permission_denied" in text]
    assert line == 'event=permission_denied missing="INSERT, UPDATE ON tasks"'
    assert client.get("/api/alice/tasks", headers=headers).status_code == 200
    app.extensions["database"].close()


def test_ids_that_are_behind_the_data_need_after_restore(
    database: str, execute: Callable[[str], None], role: str
) -> None:
    execute("INSERT INTO users (id) VALUES ('alice')")
    execute("INSERT INTO tasks (user_id, title) VALUES ('alice', 'x'), ('alice', 'y')")
    assert Report(database)["ids"] == "ok the last one was 2"
    # As logical replication leaves it.
    execute("SELECT setval('tasks_id_seq', 1)")

    report = Report(database)

    assert report.wrong() == ["ids"]
    assert report["ids"].startswith("wrong the next one is 2, and 2 is taken. Run `flask ")
    execute("DELETE FROM tasks; INSERT INTO deleted_tasks VALUES ('alice', 2, now())")
    assert Report(database).wrong() == ["ids"]
    execute("REVOKE ALL ON SEQUENCE tasks_id_seq FROM PUBLIC")
    assert "not look at their sequence" in Report(as_role(database, role))["ids"]
    app = app_with_commands(Settings(database_url=database, jwt_secret=SECRET))
    result = app.test_cli_runner().invoke(args=["after-restore"])
    assert result.exit_code == 0, result.output
    assert Report(database)["ids"] == "ok the last one was 1000002"


@pytest.fixture
def latin1(connection: psycopg.Connection, database_url: str) -> Iterator[str]:
    name = f"todo_{uuid4().hex}"
    connection.execute(f"CREATE DATABASE {name} ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
    yield as_url(make_conninfo(database_url, dbname=name))
    connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_in_another_encoding_is_wrong_and_gets_no_tables(latin1: str) -> None:
    app = app_with_commands(Settings(database_url=latin1, jwt_secret=SECRET))

    result = app.test_cli_runner().invoke(args=["init-db"])

    assert result.exit_code == 1
    assert result.output.startswith("Error: the database is encoded in LATIN1. The service needs ")
    report = Report(latin1)
    assert "encoding" in report.wrong()
    assert report["encoding"].startswith("wrong LATIN1, ")
    assert "ENCODING 'UTF8' TEMPLATE template0" in report["encoding"]


def test_what_a_role_sets_for_its_sessions_changes_nothing(
    connection: psycopg.Connection, database: str, role: str
) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("ALTER SCHEMA public RENAME TO todo")
        owner.execute(f"GRANT USAGE ON SCHEMA todo TO {role}")
    for name, value in {
        "client_encoding": "LATIN1",
        "search_path": "todo",
        "TimeZone": "Asia/Kolkata",
        "DateStyle": "German",
        "IntervalStyle": "sql_standard",
        "bytea_output": "escape",
        "standard_conforming_strings": "off",
    }.items():
        connection.execute(f"ALTER ROLE {role} SET {name} = '{value}'")
    app = app_with_commands(Settings(database_url=as_role(database, role), jwt_secret=SECRET))
    client, headers = app.test_client(), {"Authorization": f"Bearer {sign('älice ☃')}"}
    tasks = "/api/älice ☃/tasks"

    def ask(method: str, path: str, **more: Any) -> Any:
        answer = client.open(path, method=method, headers=headers | more.pop("headers", {}), **more)
        assert answer.status_code < 300, answer.text
        return answer

    created = ask("POST", tasks, json={"title": "☃ \\ é"}, headers={"Idempotency-Key": "k"})
    path = f"{tasks}/{created.json['id']}"
    assert created.json["title"] == "☃ \\ é"
    assert abs(datetime.fromisoformat(created.json["created_at"]).timestamp() - time.time()) < 60
    changed = ask("PUT", path, json={"title": "ü"}, headers={"If-Match": created.headers["ETag"]})
    assert ask("GET", tasks).json == [changed.json] == ask("GET", f"{tasks}/changes").json["tasks"]
    ask("DELETE", path, headers={"If-Match": changed.headers["ETag"]})
    assert ask("GET", "/ready").status_code == 200
    app.extensions["database"].close()
    assert Report(as_role(database, role)).wrong() == []


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


def test_the_issuers_keys_are_fetched_and_their_algorithms_told(
    database: str, issuer: Issuer
) -> None:
    issuer.add_key("second", "RS256")

    report = Report(database, jwt_jwks_url=f"{issuer.url}?token=p4ssw0rd", jwt_audience="x")

    assert report["keys"] == "ok 2 from 127.0.0.1, for EdDSA, RS256"
    assert report.exit_code == 0
    assert "p4ssw0rd" not in report.output


def test_an_audience_that_is_not_checked_is_told(database: str, issuer: Issuer) -> None:
    report = Report(database, jwt_jwks_url=issuer.url)

    assert report["keys"] == (
        "ok 1 from 127.0.0.1, for EdDSA; audience not checked: a token that the issuer made for"
        " another API is good here. If its tokens have an aud, set JWT_AUDIENCE"
    )
    assert report.exit_code == 0


def test_white_space_at_the_end_of_the_secret_is_told() -> None:
    settings = Settings.from_env(
        {"DATABASE_URL": "postgres://db/todo", "JWT_SECRET": f"{SECRET}\n"}
    )

    line = doctor.check_keys(settings)

    assert line == "JWT_SECRET, for HS256, without the white space at its end"


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b'{"keys": []}', b'{"keys": [{"kty": "RSA", "kid": "x", "alg": "PS256"}]}'],
)
def test_an_issuer_without_keys_that_can_be_used_is_wrong(
    database: str, issuer: Issuer, body: bytes
) -> None:
    issuer.body = body

    report = Report(database, jwt_jwks_url=f"{issuer.url}?token=p4ssw0rd")

    assert report.wrong() == ["keys"]
    assert "127.0.0.1" in report["keys"]
    assert "p4ssw0rd" not in report.output


def test_an_issuer_that_nobody_serves_is_told_without_numbers(database: str) -> None:
    port = free_port()

    report = Report(database, jwt_jwks_url=f"http://127.0.0.1:{port}/jwks?token=p4ssw0rd")

    assert report["keys"].startswith(
        f"wrong none from 127.0.0.1: nobody listens at 127.0.0.1:{port}. Check JWT_JWKS_URL"
    )
    assert "p4ssw0rd" not in report.output


def test_an_issuer_without_a_host_is_told(database: str) -> None:
    report = Report(database, jwt_jwks_url="https://issuer.invalid/jwks")

    assert "there is no host of that name. Check JWT_JWKS_URL" in report["keys"]


def test_an_issuer_whose_certificate_nobody_vouches_for_is_told(
    database: str, issuer: Issuer, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_certificate(tmp_path))
    issuer.server.socket = context.wrap_socket(issuer.server.socket, server_side=True)
    issuer.server.handle_error = lambda *_: None  # the client that hangs up

    report = Report(database, jwt_jwks_url=issuer.url.replace("http:", "https:"))

    assert "its certificate is not accepted: self-signed certificate" in report["keys"]


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    for path in paths:
        path.chmod(0o644)  # PgBouncer runs as another user
    return paths
