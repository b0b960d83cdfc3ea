"""The command line: `flask --app wsgi …`."""

from __future__ import annotations

import shlex
from uuid import uuid4

import jwt
import psycopg
from flask.testing import FlaskCliRunner

from tests.conftest import SECRET
from todo_service import create_app
from todo_service.settings import Settings


def test_a_token_is_accepted_by_the_service(app, runner: FlaskCliRunner) -> None:
    token = runner.invoke(args=["token", "auth0|é"]).output.strip()

    answer = app.test_client().get(
        "/api/auth0%7C%C3%A9/tasks", headers={"Authorization": f"Bearer {token}"}
    )

    assert answer.status_code == 200


def test_a_token_carries_what_the_settings_check(database_url: str) -> None:
    app = create_app(
        Settings(
            database_url=database_url,
            jwt_secret=SECRET,
            jwt_issuer="me",
            jwt_audience="todo",
            jwt_user_claim="email",
        )
    )

    token = app.test_cli_runner().invoke(args=["token", "a@example.com"]).output.strip()

    claims = jwt.decode(token, SECRET, ["HS256"], audience="todo", issuer="me")
    assert claims["email"] == "a@example.com"


def test_the_curl_command_survives_a_shell(app, runner: FlaskCliRunner) -> None:
    line = runner.invoke(args=["token", "it's me", "--curl"]).output

    words = shlex.split(line)
    assert words[:3] == ["curl", "-i", "http://localhost:8000/api/it%27s%20me/tasks"]
    assert words[-1] == '{"title": "Buy milk"}'


def test_only_the_issuer_signs_tokens_of_its_own_keys(database_url: str) -> None:
    settings = Settings(database_url=database_url, jwt_jwks_url="https://issuer.example/jwks")

    result = create_app(settings).test_cli_runner().invoke(args=["token", "alice"])

    assert result.exit_code == 1
    assert "JWT_SECRET is not set" in result.output


def test_init_db_may_be_repeated(runner: FlaskCliRunner, connection: psycopg.Connection) -> None:
    user_id = f"kept-{uuid4()}"
    connection.execute("INSERT INTO users (id) VALUES (%s)", (user_id,))

    for _ in range(2):
        result = runner.invoke(args=["init-db"])
        assert (result.exit_code, result.output) == (0, "The schema is in place.\n")

    kept = connection.execute("SELECT id FROM users WHERE id = %s", (user_id,)).fetchall()
    assert kept == [(user_id,)]
