"""What an operator runs: `flask --app wsgi <command>`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import click
import jwt
import psycopg
from dotenv import load_dotenv
from flask import Flask, current_app

from todo_service import embedded, store
from todo_service.database import Database
from todo_service.ops.check_token import explain
from todo_service.ops.doctor import doctor, first_line
from todo_service.ops.migrate import apply_schema
from todo_service.settings import Settings, SettingsError
from todo_service.web.body import encode

_DAY = 24 * 60 * 60

# What an export reads in one statement.
_PAGE_TASKS = 500


def init_app(app: Flask, settings: Settings) -> None:
    app.cli.add_command(doctor)

    @app.cli.command("init-db")
    def init_db() -> None:
        """Apply sql/schema.sql to DATABASE_URL. Safe to repeat; never drops data."""
        with _reached() as database:
            apply_schema(database.conninfo)
        click.echo("The schema is in place.")

    @app.cli.command("token")
    @click.argument("user", callback=_check_text)
    @click.option("--curl", is_flag=True, help="Print a curl command that creates a task.")
    def token(user: str, curl: bool) -> None:
        """Sign a token for USER that is good for a day. Development only: needs JWT_SECRET."""
        if settings.jwt_secret is None:
            raise click.ClickException("JWT_SECRET is not set: only the issuer can sign tokens")
        signed = sign_token(settings, user)
        click.echo(curl_line(settings, user, signed) if curl else signed)

    @app.cli.command("check-token")
    @click.argument("given", metavar="TOKEN")
    def check_token(given: str) -> None:
        """Say whether the service accepts TOKEN, for which user, or why not.

        With - it is read from standard input: a shell's history keeps arguments.
        """
        if given == "-":
            given = sys.stdin.buffer.read().decode(errors="replace")
        try:
            accepted, report = explain(given.strip(), settings)
        except SettingsError as error:
            raise click.ClickException(str(error)) from None
        click.echo(report)
        if not accepted:
            raise SystemExit(1)

    @app.cli.command("export")
    @click.argument("user", callback=_check_text)
    def export(user: str) -> None:
        """Write all tasks of USER to standard output, newest first, one JSON object a line."""
        count = 0
        with _reached():
            for page in store.pages_of_tasks(user, limit=_PAGE_TASKS, size=store.PAGE_BYTES):
                click.echo(b"\n".join(map(encode, page)))
                count += len(page)
        # Not on standard output, which holds tasks and nothing else.
        click.echo(f"Exported tasks: {count}", err=True)

    @app.cli.command("erase")
    @click.argument("user", callback=_check_text)
    @click.confirmation_option(prompt="Delete this user with all tasks, for good?")
    def erase(user: str) -> None:
        """Delete USER with all tasks. Asks first, unless given --yes."""
        with _reached():
            count = store.delete_user(user)
        if count is None:
            raise click.ClickException(f"there is no user {user!r}")
        click.echo(f"Deleted user {user!r}. Deleted tasks: {count}")


def _check_text(_: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the shell that are no text
        raise click.ClickException(f"{parameter.human_readable_name} must be UTF-8") from None
    return value


@contextmanager
def _reached() -> Iterator[Database]:
    """The database of the current app, for one command. A failure is one line and exit code 1."""
    database: Database = current_app.extensions["database"]
    try:
        # Not by the pool, which would try again and again, with a warning each time.
        psycopg.connect(database.conninfo).close()
        yield database
    except psycopg.Error as error:
        raise click.ClickException(describe_failure(error)) from None
    finally:
        database.close()


def describe_failure(error: psycopg.Error) -> str:
    return f"the database cannot be used: {first_line(error)}"


def psql() -> int:
    """Run psql on DATABASE_URL or the embedded database; returns its exit status."""
    load_dotenv()
    url = os.environ.get("DATABASE_URL") or embedded.start()
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.ProgrammingError:
        # Without the driver's words, which quote parts of the URL.
        sys.exit("DATABASE_URL is not a valid PostgreSQL connection URL")
    except psycopg.Error as error:
        sys.exit(describe_failure(error))
    return subprocess.call([embedded.binaries() / "psql", url, *sys.argv[1:]])


def sign_token(settings: Settings, user: str) -> str:
    """A token that the service accepts for this user, with whatever claims it is set to check."""
    now = int(time.time())
    claims = {settings.jwt_user_claim: user, "iat": now, "exp": now + _DAY}
    if settings.jwt_issuer is not None:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience is not None:
        claims["aud"] = settings.jwt_audience
    return jwt.encode(claims, settings.jwt_secret or "", algorithm="HS256")


def curl_line(settings: Settings, user: str, token: str) -> str:
    """A command that creates a task, ready to paste into a shell."""
    return shlex.join(
        [
            *("curl", "-i", f"http://localhost:{settings.port}/api/{quote(user, safe='')}/tasks"),
            *("-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json"),
            *("-d", '{"title": "Buy milk"}'),
        ]
    )
