"""What a deployer gets wrong: `flask --app wsgi doctor`, a line per check."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple, TypeVar
from urllib.parse import SplitResult, urlsplit

import click
import psycopg
from flask import current_app
from flask.cli import with_appcontext

from todo_service.auth import jwks
from todo_service.auth.tokens import LEEWAY
from todo_service.database import SQL, Connection, Database
from todo_service.database_url import first_line
from todo_service.ops import contents
from todo_service.ops.session import Session, Wrong, connect, reach
from todo_service.settings import DEFAULT_PORTS, Settings

_ROUNDS = 10  # of comparing two connections: a busy pooler may keep them apart in the first ones

_CONNECTION_LIMIT = (SQL / "doctor" / "connection_limit.sql").read_bytes()

_T = TypeVar("_T")


class Finding(NamedTuple):
    ok: bool
    check: str
    text: str


@click.command()
@with_appcontext
def doctor() -> None:
    """Check what a deployer gets wrong: a line per check, exit code 1 if something is wrong."""
    healthy = True
    for ok, check, text in check_all(current_app.extensions["database"]):
        click.echo(f"{'ok' if ok else 'wrong'} {check}: {text}")
        healthy = healthy and ok
    if not healthy:
        raise SystemExit(1)


def check_all(database: Database) -> Iterator[Finding]:
    """What each check finds, one after another."""
    try:
        session = reach(database)
    except Wrong as wrong:
        yield Finding(False, "database", str(wrong))
    else:
        with closing(session.connection):
            for name, check in CHECKS.items():
                if not session.connection.closed:
                    yield find(name, check, session)
    yield find("keys", check_keys, database.settings)
    yield find("CORS_ORIGINS", check_origins, database.settings)


def find(name: str, check: Callable[[_T], str], subject: _T) -> Finding:
    try:
        return Finding(True, name, check(subject))
    except Wrong as wrong:
        return Finding(False, name, str(wrong))
    except psycopg.Error as error:
        return Finding(False, name, f"{first_line(error)}. The server's log may say why")


def check_server(session: Session) -> str:
    if session.ask(b"SHOW transaction_read_only") == "on":
        raise Wrong(
            "it takes no writes. DATABASE_URL has to name the primary, and not a standby, and"
            " default_transaction_read_only has to be off"
        )
    info = session.connection.info
    major, minor = divmod(info.server_version, 10000)
    tls = "with TLS" if session.connection.pgconn.ssl_in_use else "without TLS"
    return f"PostgreSQL {major}.{minor} at {info.host}, {tls}"


def check_pooler(session: Session) -> str:
    """Tell a pooler by what it does: in transaction mode, connections share a server process."""
    try:
        another = connect(session.conninfo)
    except psycopg.Error as error:
        raise Wrong(
            f"a second connection fails: {first_line(error)}. If too many are open, lower"
            " DB_POOL_SIZE or WEB_CONCURRENCY"
        ) from None
    with closing(another):
        seen: dict[Connection, set[int]] = {session.connection: set(), another: set()}
        for connection in (session.connection, another) * _ROUNDS:
            seen[connection].add(server_process(connection))
    first, second = seen.values()
    shared = len(first) > 1 or len(second) > 1 or first == second
    declared = session.settings.db_pooler is not None
    if shared and not declared:
        raise Wrong("one in transaction mode is in the way. Set DB_POOLER=transaction")
    if shared:
        return "in transaction mode, as DB_POOLER says"
    if declared:
        return "DB_POOLER is set, but sessions are kept. Statements would be prepared without it"
    if not session.takes_options:
        raise Wrong(
            "one in session mode refuses the option statement_timeout. Use the server's own"
            " address, or add options to the pooler's ignore_startup_parameters"
        )
    if server_process(session.connection) != session.connection.info.backend_pid:
        return "one in session mode"
    return "none"


def server_process(connection: Connection) -> int:
    """The server process that answers. The id that a pooler sends at the start is not real."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def check_connections(session: Session) -> str:
    """Compare what one group of workers may open with what server, database and role allow."""
    settings = session.settings
    workers, size = settings.web_concurrency, settings.db_pool_size
    wanted = f"{workers} workers x {size} = {workers * size}"
    if settings.db_pooler is not None:
        return f"{wanted} of the pooler, which counts for itself"
    granted = session.ask(_CONNECTION_LIMIT)
    if workers * size > granted:
        fitting = f"DB_POOL_SIZE={max(1, granted // workers)}"
        if granted < workers:
            fitting = f"WEB_CONCURRENCY={max(1, granted)} and DB_POOL_SIZE=1"
        raise Wrong(f"{wanted}, and {granted} are granted. Set {fitting}")
    if 2 * workers * size > granted:
        return f"{wanted} of {granted}; twice that, while deploys overlap, is more than are granted"
    return f"{wanted} of {granted}"


def check_timeout(session: Session) -> str:
    wanted = int(session.settings.db_statement_timeout * 1000)
    milliseconds = session.ask(
        b"SELECT setting::integer FROM pg_settings WHERE name = 'statement_timeout'"
    )
    if 0 < milliseconds <= wanted:
        return f"{milliseconds} ms"
    role = session.ask(b"SELECT quote_ident(session_user)")
    limit = f"{milliseconds} ms" if milliseconds else "none"
    raise Wrong(
        f"{limit}, so the server goes on with what the service has given up after {wanted} ms."
        f" Run in psql: ALTER ROLE {role} SET statement_timeout = {wanted}"
    )


def check_clock(session: Session) -> str:
    before = time.time()
    there = session.ask(b"SELECT extract(epoch FROM clock_timestamp())::float")
    after = time.time()
    ahead = (before + after) / 2 - there
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the database's"
    # The way of the query and of its answer may explain that much of the difference.
    if abs(ahead) - (after - before) / 2 > LEEWAY:
        raise Wrong(f"{text}. Tokens are forgiven {LEEWAY:.0f} s. Set both by NTP")
    return text


def check_keys(settings: Settings) -> str:
    if settings.jwt_secret is not None:
        stripped = "jwt_secret_stripped" in settings.warnings
        return f"JWT_SECRET, for HS256{', without the white space at its end' if stripped else ''}"
    if settings.jwt_jwks_url is None:
        return "none, the app has an authenticator of its own"
    parts = urlsplit(settings.jwt_jwks_url)
    issuer = parts.hostname
    try:
        keys, unusable = jwks.fetch(settings.jwt_jwks_url, jwks.Jwks.DEADLINE)
    except Exception as error:  # of the network, or whatever a broken answer causes
        raise Wrong(
            f"none from {issuer}: {_why(error, parts)}. Check JWT_JWKS_URL, and that this machine"
            " may ask that host"
        ) from None
    if not keys:
        raise Wrong(
            f"{issuer} publishes none that can be used ({', '.join(sorted(unusable))})."
            f" It has to sign with one of {', '.join(sorted(jwks.ALGORITHMS))}"
        )
    algorithms = sorted({key.algorithm_name for key in keys.values()})
    besides = f"; not usable: {', '.join(sorted(unusable))}" if unusable else ""
    if settings.jwt_audience is None:
        besides += (
            "; audience not checked: a token that the issuer made for another API is good here."
            " If its tokens have an aud, set JWT_AUDIENCE"
        )
    return f"{len(keys)} from {issuer}, for {', '.join(algorithms)}{besides}"


def _why(error: Exception, url: SplitResult) -> str:
    """Why an address did not answer, in words rather than numbers."""
    cause: object = error
    while isinstance(cause, BaseException):
        match cause:
            case ConnectionRefusedError():
                port = url.port or DEFAULT_PORTS[url.scheme]
                return f"nobody listens at {url.hostname}:{port}"
            case ssl.SSLCertVerificationError():
                return f"its certificate is not accepted: {cause.verify_message}"
            case socket.gaierror():
                return "there is no host of that name"
            case TimeoutError():
                return "no answer in time"
        # urllib's errors hold the one that they stand for.
        cause = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
    return first_line(error)


def check_origins(settings: Settings) -> str:
    return ", ".join(settings.cors_origins) or "none, pages of other origins cannot call the API"


CHECKS: dict[str, Callable[[Session], str]] = {
    "database": check_server,
    "pooler": check_pooler,
    "schema": contents.check_schema,
    "rights": contents.check_rights,
    "encoding": contents.check_encoding,
    "ids": contents.check_ids,
    "connections": check_connections,
    "statement_timeout": check_timeout,
    "clock": check_clock,
}
