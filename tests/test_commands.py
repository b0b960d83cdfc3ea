"""The command line: `flask --app wsgi …`."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys

import jwt
import pytest
from flask.testing import FlaskCliRunner

from tests.conftest import ENVIRON, ROOT, SECRET, app_with_commands, free_port
from todo_service.settings import Settings

pytestmark = pytest.mark.slow


def test_a_token_is_accepted_by_the_service(app, runner: FlaskCliRunner) -> None:
    token = runner.invoke(args=["token", "auth0|é"]).output.strip()

    answer = app.test_client().get(
        "/api/auth0%7C%C3%A9/tasks", headers={"Authorization": f"Bearer {token}"}
    )

    assert answer.status_code == 200


def test_a_token_carries_what_the_settings_check(database_url: str) -> None:
    app = app_with_commands(
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

    result = app_with_commands(settings).test_cli_runner().invoke(args=["token", "alice"])

    assert result.exit_code == 1
    assert "JWT_SECRET is not set" in result.output


FLASK = "-m", "flask", "--app", "wsgi"
COMMANDS = {
    "init-db": (*FLASK, "init-db"),
    "export": (*FLASK, "export", "nobody"),
    "erase": (*FLASK, "erase", "nobody", "--yes"),
    "token": (*FLASK, "token", "alice"),
    # What `make psql` runs.
    "psql": ("-c", "import sys; from todo_service.ops import commands; sys.exit(commands.psql())"),
}


def run(command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command as a process of its own, which has to end by itself."""
    return subprocess.run(
        [sys.executable, *COMMANDS[command]],
        cwd=ROOT,
        env=ENVIRON | {"JWT_SECRET": SECRET} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_failed_in_one_line(result: subprocess.CompletedProcess[str], reason: str) -> None:
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


@pytest.mark.parametrize("command", ["export", "erase", "token"])
def test_a_user_that_is_no_text_is_refused_in_one_line(command: str) -> None:
    result = subprocess.run(
        [sys.executable, *FLASK, command, b"al\xff"],
        cwd=ROOT,
        # Refused before anything connects.
        env=ENVIRON | {"JWT_SECRET": SECRET, "DATABASE_URL": "postgresql://127.0.0.1:1/todo"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert_failed_in_one_line(result, "USER must be UTF-8")


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"token"}))
def test_without_a_database_a_command_says_so_in_one_line(command: str) -> None:
    url = f"postgresql://todo:p4ssw0rd@127.0.0.1:{free_port()}/todo"

    result = run(command, DATABASE_URL=url)

    assert_failed_in_one_line(result, "the database cannot be used: ")
    assert "p4ssw0rd" not in result.stderr


@pytest.mark.parametrize("command", ["export", "psql"])
def test_a_database_that_does_not_answer_is_not_waited_for(command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://todo@127.0.0.1:{silent.getsockname()[1]}/todo"

        result = run(command, DATABASE_URL=url)

    assert_failed_in_one_line(result, "the database cannot be used: ")


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"token"}))
def test_a_url_that_is_none_is_not_quoted(command: str) -> None:
    result = run(command, DATABASE_URL="postgresql://todo:p4ss w0rd@[db/todo")

    assert_failed_in_one_line(result, "DATABASE_URL is not a valid PostgreSQL connection URL")
    assert "w0rd" not in result.stderr


def test_a_token_needs_no_database() -> None:
    result = run("token", DATABASE_URL=f"postgresql://127.0.0.1:{free_port()}/todo")

    assert (result.returncode, result.stderr) == (0, "")
    assert jwt.decode(result.stdout.strip(), SECRET, ["HS256"])["sub"] == "alice"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("init-db", "The schema is in place.\n"),
        ("export", "Exported tasks: 0\n"),
        ("erase", "Error: there is no user 'nobody'\n"),
    ],
)
def test_a_command_that_has_used_the_database_ends_without_another_word(
    database_url: str, command: str, said: str
) -> None:
    """Connections that are left open would keep it for 20 seconds, and make it complain."""
    result = run(command, DATABASE_URL=database_url)

    assert result.stdout + result.stderr == said
