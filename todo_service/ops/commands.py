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
from todo_service.database import Database, complete_conninfo
from todo_service.database_url import fault, first_line, why_unreachable
from todo_service.ops import migrate, restored
from todo_service.ops.check_token import explain
from todo_service.ops.doctor import doctor
from todo_service.settings import Settings, SettingsError
from todo_service.web.body import encode

_DAY = 24 * 60 * 60

# What an export reads in one statement.
_PAGE_TASKS = 500


def init_app(app: Flask, settings: Settings) -> None:
    app.cli.add_command(doctor)

    @app.cli.command("init-db")
    def init_db() -> None:
        """Apply sql/schema.sql to OWNER_DATABASE_URL, or DATABASE_URL. Safe to repeat; never drops
        data."""
        with _one_line(_owner_name(settings)):
            migrate.apply_schema(_owner_conninfo(settings))
        click.echo("The schema is in place.")

    @app.cli.command("after-restore")
    def after_restore() -> None:
        """Give no id twice, and make every copy start again, after a restore or a move of the data.

        On OWNER_DATABASE_URL, or DATABASE_URL. It may run while the service runs.
        """
        with _one_line(_owner_name(settings)):
            last_id, users = restored.start_again(_owner_conninfo(settings))
        click.echo(f"Ids go on after {last_id}. The copies of {users} users start again.")

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
        """Write all tasks of USER to standard output, newest first, one JSON object per line."""
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
def _reached() -> Iterator[None]:
    """The database of the current app, for one command, if its tables are ours."""
    database: Database = current_app.extensions["database"]
    try:
        with _one_line("DATABASE_URL"):
            # Not by the pool, which would try again and again.
            with psycopg.connect(database.conninfo) as connection:
                migrate.refuse_foreign_tables(connection)
            yield
    finally:
        database.close()


@contextmanager
def _one_line(variable: str) -> Iterator[None]:
    """A failure is one line, which names the variable, and exit code 1."""
    try:
        yield
    except migrate.Refused as refused:
        raise click.ClickException(str(refused)) from None
    except psycopg.Error as error:
        raise click.ClickException(describe_failure(error, variable)) from None


def _owner_name(settings: Settings) -> str:
    return "OWNER_DATABASE_URL" if settings.owner_database_url else "DATABASE_URL"


def _owner_conninfo(settings: Settings) -> str:
    database: Database = current_app.extensions["database"]
    if settings.owner_database_url is None:
        return database.conninfo
    return complete_conninfo(settings.owner_database_url, settings)


def describe_failure(error: psycopg.Error, variable: str = "DATABASE_URL") -> str:
    reason = first_line(error) if error.sqlstate else why_unreachable(error, variable)[1]
    return f"the database cannot be used: {reason}"


def psql() -> int:
    """Run psql on DATABASE_URL or the embedded database; returns its exit status."""
    load_dotenv()
    url = os.environ.get("DATABASE_URL", "").strip() or embedded.start()
    if wrong := fault(url):
        sys.exit(f"DATABASE_URL {wrong}")
    try:
        psycopg.connect(url, connect_timeout=5).close()
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
