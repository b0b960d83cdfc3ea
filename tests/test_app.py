"""The application factory: what an embedder can pass in, and what happens when things break."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from flask import Flask, Request, url_for
from flask.testing import FlaskClient
from psycopg import errors
from psycopg.conninfo import make_conninfo
from werkzeug.exceptions import NotFound, Unauthorized
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from tests.conftest import ROOT, SECRET, sign
from todo_service import create_app, database, log, store
from todo_service.log import Fields, RequestIdFilter
from todo_service.settings import Settings


def bearer(user_id: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {sign(user_id)}"}


@pytest.fixture
def gateway_app(database_url: str):
    def authenticate(request: Request) -> str:
        user_id = request.headers.get("X-Gateway-User")
        if user_id is None:
            raise Unauthorized()
        return user_id

    app = create_app(Settings(database_url=database_url), authenticate)
    yield app
    app.extensions["database"].close()


def test_any_authenticator_can_take_the_place_of_tokens(gateway_app: Flask) -> None:
    client = gateway_app.test_client()
    alice, bob = (f"{name}-{uuid4()}" for name in ("alice", "bob"))
    headers = {"X-Gateway-User": alice}

    created = client.post(f"/api/{alice}/tasks", json={"title": "x"}, headers=headers)

    assert created.status_code == 201
    assert client.get(f"/api/{alice}/tasks", headers=headers).json == [created.json]
    assert client.get(f"/api/{bob}/tasks", headers=headers).status_code == 403
    assert client.get(f"/api/{alice}/tasks").json == {"error": "Unauthorized"}
    assert client.get(f"/api/{alice}/tasks", headers=bearer(alice)).status_code == 401


def test_an_authenticator_may_read_the_body(database_url: str) -> None:
    def authenticate(request: Request) -> str:
        return hashlib.sha256(request.get_data()).hexdigest()

    body = b'{"title": "x"}'
    tasks = f"/api/{hashlib.sha256(body).hexdigest()}/tasks"
    app = create_app(Settings(database_url=database_url), authenticate)
    client = app.test_client()
    json = {"content_type": "application/json"}

    with closing(app.extensions["database"]):
        assert client.post(tasks, data=body, **json).status_code == 201
        assert client.post(tasks, data=b" " * 1_100_000, **json).status_code == 413


@pytest.mark.parametrize("prefix", ["/m", "/a b", "/käse", "/日"])
def test_links_lead_back_where_the_app_is_mounted(gateway_app: Flask, prefix: str) -> None:
    # In the form that WSGI has for a path: a character for each of its bytes.
    mount = prefix.encode().decode("latin-1")
    outside = Client(DispatcherMiddleware(NotFound(), {mount: gateway_app}))
    alice = f"alice-{uuid4()}"
    headers = {"X-Gateway-User": alice}
    tasks = f"{quote(prefix)}/api/{alice}/tasks"

    created = [outside.post(tasks, json={"title": "x"}, headers=headers) for _ in range(2)]
    page = outside.get(f"{tasks}?limit=1", headers=headers)

    for answer in created:
        assert answer.status_code == 201
        assert answer.headers["Location"] == f"{tasks}/{answer.json['id']}"
    assert page.headers["Link"].startswith(f"<{tasks}?limit=1&cursor=")


def test_an_embedder_s_own_routes_know_their_host(gateway_app: Flask) -> None:
    @gateway_app.get("/own/")
    def own() -> str:
        return url_for("own", _external=True)

    client = gateway_app.test_client()
    host = {"Host": "todo.example"}

    assert client.get("/own/", headers=host).text == "http://todo.example/own/"
    redirect = client.get("/own?q=1", headers=host)
    assert redirect.headers["Location"] == "http://todo.example/own/?q=1"
    gateway_app.config["TRUSTED_HOSTS"] = ["todo.example"]
    assert client.get("/own/", headers=host).status_code == 200
    assert client.get("/own/", headers={"Host": "evil.example"}).status_code == 400


def test_times_are_in_utc_whatever_the_time_zone_of_the_sessions(settings: Settings) -> None:
    url = make_conninfo(settings.database_url, options="-c timezone=Asia/Kathmandu")
    app = create_app(replace(settings, database_url=url))
    client = app.test_client()
    alice = f"alice-{uuid4()}"
    headers = bearer(alice)
    tasks = f"/api/{alice}/tasks"

    with closing(app.extensions["database"]):
        older, newer = (client.post(tasks, json={"title": "x"}, headers=headers) for _ in range(2))
        created_at = datetime.fromisoformat(newer.json["created_at"])
        assert newer.json["created_at"].endswith("Z")
        assert abs(datetime.now(UTC) - created_at) < timedelta(minutes=1)

        # They come back as parameters, too: in a cursor, in a tag.
        first_page = client.get(f"{tasks}?limit=1", headers=headers)
        next_page = client.get(first_page.headers["Link"].split(">")[0][1:], headers=headers)
        assert (first_page.json, next_page.json) == ([newer.json], [older.json])
        version = headers | {"If-Match": newer.headers["ETag"]}
        assert client.delete(newer.headers["Location"], headers=version).status_code == 204


@pytest.mark.parametrize("user_id", ["", "a\0b", "\ud800", "x" * 1025])
def test_a_user_id_that_cannot_be_stored_is_refused_from_any_authenticator(
    settings: Settings, user_id: str
) -> None:
    app = create_app(settings, lambda _: user_id)

    assert app.test_client().get("/api/x/tasks").status_code == 401


def test_another_claim_can_name_the_user(database_url: str) -> None:
    settings = Settings(database_url=database_url, jwt_secret=SECRET, jwt_user_claim="email")
    app = create_app(settings)
    client = app.test_client()

    def ask(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return client.get("/api/a@example.com/tasks", headers=headers).status_code

    assert ask(sign("someone", email="a@example.com")) == 200
    assert ask(sign(None, email="a@example.com")) == 200
    assert ask(sign("a@example.com")) == 401
    assert ask(sign("x", email=5)) == 401
    app.extensions["database"].close()


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"iss": "https://issuer.example", "aud": "todo"}, 200),
        ({"iss": "https://issuer.example", "aud": ["other", "todo"]}, 200),
        ({"iss": "https://other.example", "aud": "todo"}, 401),
        ({"iss": "https://issuer.example", "aud": "other"}, 401),
        ({"iss": "https://issuer.example"}, 401),
        ({"aud": "todo"}, 401),
        ({}, 401),
    ],
)
def test_issuer_and_audience_are_checked_where_set(
    database_url: str, claims: dict[str, object], status: int
) -> None:
    app = create_app(
        Settings(
            database_url=database_url,
            jwt_secret=SECRET,
            jwt_issuer="https://issuer.example",
            jwt_audience="todo",
        )
    )
    headers = {"Authorization": f"Bearer {sign('alice', **claims)}"}

    assert app.test_client().get("/api/alice/tasks", headers=headers).status_code == status
    app.extensions["database"].close()


@pytest.fixture
def failing(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], FlaskClient]:
    """A client of an app whose store raises what it is given."""

    def fail_with(error: Exception) -> FlaskClient:
        def get_task(*_: object) -> None:
            raise error

        monkeypatch.setattr(store, "get_task", get_task)
        return app.test_client()

    return fail_with


def test_a_bug_is_a_500_that_tells_the_log_and_nobody_else(
    failing: Callable[[Exception], FlaskClient], caplog: pytest.LogCaptureFixture
) -> None:
    client = failing(RuntimeError("secret detail in /some/path"))
    caplog.handler.addFilter(RequestIdFilter())

    answer = client.get("/api/alice/tasks/1", headers=bearer("alice") | {"X-Request-ID": "find-me"})

    assert (answer.status_code, answer.json) == (500, {"error": "Internal server error"})
    assert answer.headers["X-Request-ID"] == "find-me"
    assert answer.headers["Cache-Control"] == "no-store"
    record = next(record for record in caplog.records if record.exc_info)
    assert "secret detail" in caplog.text
    assert record.request_id == "find-me"


UNAVAILABLE = [
    psycopg.OperationalError("could not connect to 10.0.0.1"),
    errors.QueryCanceled("canceling statement due to statement timeout"),
    errors.LockNotAvailable("x"),
    errors.AdminShutdown("x"),
    errors.CrashShutdown("x"),
    errors.CannotConnectNow("x"),
    errors.TooManyConnections("x"),
    errors.DiskFull("x"),
    errors.DeadlockDetected("x"),
    errors.SerializationFailure("x"),
    errors.ReadOnlySqlTransaction("x"),
    errors.UndefinedTable('relation "tasks" does not exist'),
    errors.UndefinedColumn("x"),
    errors.ConnectionFailure("x"),
    errors.IoError("x"),
    errors.ForeignKeyViolation("x"),
    errors.InvalidColumnReference("x"),
    errors.InsufficientPrivilege("x"),
]


@pytest.mark.parametrize("error", UNAVAILABLE, ids=lambda error: type(error).__name__)
def test_an_unavailable_database_is_a_503_worth_a_retry(
    failing: Callable[[Exception], FlaskClient], error: psycopg.Error
) -> None:
    answer = failing(error).get("/api/alice/tasks/1", headers=bearer("alice"))

    assert answer.status_code == 503
    assert answer.json == {"error": "Service temporarily unavailable"}
    assert int(answer.headers["Retry-After"]) >= 1


def test_another_database_error_is_a_500(failing: Callable[[Exception], FlaskClient]) -> None:
    error = errors.SyntaxError("at or near x")

    answer = failing(error).get("/api/alice/tasks/1", headers=bearer("alice"))

    assert (answer.status_code, answer.json) == (500, {"error": "Internal server error"})


@pytest.fixture
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log as the service sets it up for itself."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(log, "_write_directly", False)
    log.configure()


def test_a_request_leaves_one_line(
    client: FlaskClient, own_log: None, capsys: pytest.CaptureFixture[str]
) -> None:
    alice = f"alice-{uuid4()}"

    answer = client.post(
        f"/api/{alice}/tasks", json={"title": "do not log me"}, headers=bearer(alice)
    )

    line = r"time=\S+ level=INFO logger=todo_service\.requests"
    line += r" method=POST route=/api/{user_id}/tasks status=201 ms=\S+ db_ms=\S+ pool_ms=\S+"
    line += rf" user={alice} request_id={answer.headers['X-Request-ID']}\n"
    assert re.fullmatch(line, capsys.readouterr().err)


TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "traceparent",
    [
        f"00-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-00",
        f"00-{TRACE_ID}-{PARENT_ID}-ff",
        # Versions to come may append more.
        f"01-{TRACE_ID}-{PARENT_ID}-01",
        f"cc-{TRACE_ID}-{PARENT_ID}-01-what the future will be like",
    ],
)
def test_the_trace_that_a_request_is_part_of_stands_in_its_line(
    client: FlaskClient, own_log: None, capsys: pytest.CaptureFixture[str], traceparent: str
) -> None:
    client.get("/health", headers={"traceparent": traceparent})
    client.get("/api/x/tasks", headers={"traceparent": traceparent})

    for line in capsys.readouterr().err.splitlines():
        assert re.search(rf" user=- trace={TRACE_ID} request_id=[0-9a-f]+$", line)


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "00",
        TRACE_ID,
        f"00-{TRACE_ID}-{PARENT_ID}",
        f"00-{TRACE_ID}-{PARENT_ID}-1",
        f"00-{TRACE_ID}-{PARENT_ID}-0g",
        f"00-{TRACE_ID}-{PARENT_ID}-01-more",
        f"00-{TRACE_ID}-{PARENT_ID}-01-",
        f"01-{TRACE_ID}-{PARENT_ID}-01more",
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"0-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{PARENT_ID}-01",
        f"00-{TRACE_ID[:-1]}-{PARENT_ID}-01",
        f"00-{TRACE_ID}0-{PARENT_ID}-01",
        f"00-{TRACE_ID[:-1]}x-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}-01,00-{TRACE_ID}-{PARENT_ID}-01",
    ],
)
def test_without_a_valid_trace_there_is_none_in_the_line(
    client: FlaskClient, own_log: None, capsys: pytest.CaptureFixture[str], traceparent: str | None
) -> None:
    headers = {} if traceparent is None else {"traceparent": traceparent}

    assert client.get("/health", headers=headers).status_code == 200

    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r" user=- request_id=[0-9a-f]+$", line)


@pytest.mark.parametrize(
    ("method", "path", "path_user"),
    [
        ("GET", "/api/v1/alice/tasks", '"v1/alice"'),
        ("GET", "/api/Alice/tasks/1", "Alice"),
        ("DELETE", "/api/bob/tasks", "bob"),
        ("GET", "/api/%0A%22%E2%80%A8/tasks", r'"\n\"\u2028"'),
        ("GET", f"/api/{'x' * 5000}/tasks", "x" * 256),
    ],
)
def test_the_line_of_a_403_says_whose_path_it_was(
    client: FlaskClient,
    own_log: None,
    capsys: pytest.CaptureFixture[str],
    method: str,
    path: str,
    path_user: str,
) -> None:
    answer = client.open(path, method=method, headers=bearer("alice"))

    assert (answer.status_code, answer.json) == (403, {"error": "Forbidden"})
    (line,) = capsys.readouterr().err.splitlines()
    assert f" user=alice path_user={path_user} request_id=" in line


def test_no_other_line_says_whose_path_it_was(
    client: FlaskClient, own_log: None, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/api/alice/tasks", headers=bearer("alice"))
    client.get("/api/nothing", headers=bearer("alice"))
    client.get("/api/v1/alice/tasks")
    client.get("/health")

    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" user=")[1].split(" ")[0] for line in lines] == ["alice", "alice", "-", "-"]
    assert "path_user" not in "".join(lines)


def test_who_embeds_the_app_gets_a_record_a_request(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.Handler()
    lines: list[str] = []
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("todo_service").addHandler(handler)
    try:
        client.get("/health")
    finally:
        logging.getLogger("todo_service").removeHandler(handler)

    assert [line.partition(" ms=")[0] for line in lines] == ["method=GET route=/health status=200"]
    assert capsys.readouterr().err == ""


def test_a_request_is_logged_in_the_form_of_all_lines(
    client: FlaskClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(log, "_write_directly", False)
    log.configure()

    logging.getLogger("todo_service.requests").warning("event=x")
    client.get("/health")

    lines = capsys.readouterr().err.splitlines()
    form = r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[-+]\d{4} level=(WARNING|INFO)"
    form += r" logger=todo_service\.requests (event|method)=.+ request_id=[-0-9a-f]+"
    assert [bool(re.fullmatch(form, line)) for line in lines] == [True, True]


@pytest.fixture
def json_log(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """The log as LOG_FORMAT=json has it; to be called for its lines."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(log, "_write_directly", False)
    log.configure("json")
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_as_json_only_a_number_is_a_number(
    client: FlaskClient, json_log: Callable[[], Any]
) -> None:
    client.get("/api/42/tasks", headers=bearer("42") | {"X-Request-ID": "4.2"})
    logging.getLogger("x").warning(Fields(event="x", sqlstate="57014", status=200, reason="1e3"))

    request, event = json_log()
    assert (request["status"], request["user"], request["request_id"]) == (200, "42", "4.2")
    said = {"event": "x", "sqlstate": "57014", "status": 200, "reason": "1e3"}
    assert said.items() <= event.items()


def test_as_json_a_value_is_what_it_was_before_it_was_quoted(
    client: FlaskClient, json_log: Callable[[], Any]
) -> None:
    user_id = 'x\nlevel=ERROR user="admin" \\ \u2028 é'

    client.get("/api/x/tasks", headers=bearer(user_id))

    (line,) = json_log()
    assert (line["user"], line["level"]) == (user_id, "INFO")


@pytest.mark.parametrize("text", ["pool is full", "a=b c=d", "two\nlines", "", 'he said "no"'])
def test_as_json_what_is_no_fields_is_a_message(json_log: Callable[[], Any], text: str) -> None:
    logging.getLogger("library").warning("%s", text)

    (line,) = json_log()
    assert line.pop("time")
    assert line == {
        "level": "WARNING", "logger": "library", "message": text, "request_id": "-",
    }  # fmt: skip


def test_as_json_a_traceback_is_a_field(
    failing: Callable[[Exception], FlaskClient], json_log: Callable[[], Any]
) -> None:
    for error, event in (
        (RuntimeError("x"), "bug"),
        (errors.SyntaxError("at or near x"), "database_error"),
    ):
        failing(error).get("/api/alice/tasks/1", headers=bearer("alice"))
        line = json_log()[-2]
        assert line["event"] == event
        assert line["traceback"].startswith("Traceback ")
        assert "in get_task\n" in line["traceback"]


def test_the_log_of_a_database_error_does_not_hold_what_a_user_wrote(
    failing: Callable[[Exception], FlaskClient],
    connection: psycopg.Connection,
    json_log: Callable[[], Any],
) -> None:
    title = str(uuid4())
    insert = "INSERT INTO tasks (user_id, title, status) VALUES ('', %s, '')"
    with pytest.raises(errors.CheckViolation, match=title) as caught:
        connection.execute(insert, (title,))

    failing(caught.value).get("/api/alice/tasks/1", headers=bearer("alice"))

    error, _ = json_log()
    assert (error["event"], error["sqlstate"]) == ("database_error", "23514")
    assert "tasks_status_check" in error["message"]
    assert title not in json.dumps(error)


def test_every_event_is_logged_as_fields() -> None:
    """Else it would be a message, and not fields, in JSON."""
    for path in (ROOT / "todo_service").rglob("*.py"):
        assert '"event=' not in path.read_text(), path


def test_above_level_info_requests_leave_no_line(
    settings: Settings, own_log: None, capsys: pytest.CaptureFixture[str]
) -> None:
    app = create_app(replace(settings, log_level="WARNING"))

    assert app.test_client().get("/health").status_code == 200
    assert capsys.readouterr().err == ""


def test_without_a_standard_error_requests_are_served(
    client: FlaskClient, own_log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python sets it where it was started without one

    assert client.get("/health").status_code == 200


def test_a_log_that_nobody_reads_any_more_stops_no_request(
    client: FlaskClient, own_log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert client.get("/health").status_code == 200
        monkeypatch.undo()
        with suppress(BrokenPipeError):
            stream.close()


def test_a_log_line_cannot_be_forged(
    client: FlaskClient, own_log: None, capsys: pytest.CaptureFixture[str]
) -> None:
    user_id = "x\nlevel=ERROR user=admin \u2028 é"

    client.get("/api/x/tasks", headers=bearer(user_id))

    (line,) = capsys.readouterr().err.splitlines()
    assert line.isascii()
    assert r'user="x\nlevel=ERROR user=admin \u2028 \u00e9"' in line


def test_neither_tokens_nor_secrets_are_logged(
    client: FlaskClient,
    own_log: None,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    good, bad = sign("alice"), sign("alice", "another secret that is long enough")

    for token in (good, bad):
        client.get("/api/alice/tasks", headers={"Authorization": f"Bearer {token}"})
        client.get(f"/nothing?token={token}", headers={"Authorization": f"Bearer {token}"})

    logged = caplog.text + capsys.readouterr().err
    for secret in (SECRET, good, bad, *good.split("."), *bad.split(".")):
        assert secret not in logged


def test_a_missing_statement_stops_the_start() -> None:
    with pytest.raises(FileNotFoundError):
        database.statement("no_such_statement")
