"""Who is measured, and the tasks that each of them finds in PostgreSQL."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import httpx
import jwt
import psycopg

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
SECRET = "a secret that only the benchmark knows, 0123456789"
USERS = 500
TASKS_EACH = 100
FIRST_TIME = datetime(2025, 1, 1, 9, 30, 0, 123456, UTC)
TITLE = "Call the plumber about the tap, case "
DESCRIPTION = "The one in the kitchen. Ask for a morning next week, and what the visit costs."

# Each task is of another user than the one before, so that a user's are spread over the table.
_SEED = f"""
TRUNCATE users RESTART IDENTITY CASCADE;
INSERT INTO users (id) SELECT 'user-' || number FROM generate_series(0, {USERS - 1}) AS number;
INSERT INTO tasks (user_id, title, description, created_at, updated_at)
SELECT 'user-' || number % {USERS}, '{TITLE}' || number, '{DESCRIPTION}', moment, moment
FROM generate_series(0, {USERS * TASKS_EACH - 1}) AS number,
    LATERAL (SELECT timestamptz '{FIRST_TIME}' + number * interval '1 second') AS at (moment)
ORDER BY number;
"""


class Server(NamedTuple):
    name: str
    url: str
    pid: int
    database: str


def task(number: int) -> dict[str, object]:
    """The task with that number, counted from 0, as every competitor has to answer it."""
    moment = f"{FIRST_TIME + timedelta(seconds=number):%Y-%m-%dT%H:%M:%S.%fZ}"
    owner, title = f"user-{number % USERS}", f"{TITLE}{number}"
    known = {"id": number + 1, "user_id": owner, "title": title, "description": DESCRIPTION}
    return known | {"status": "incomplete", "created_at": moment, "updated_at": moment}


def sign(user: object) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 24 * 3600}, SECRET, "HS256")


def seed(database: str) -> None:
    """Put the tables into the one state from which everything is measured."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(_SEED)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")  # here rather than amid a measurement


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    return subprocess.check_output(command, cwd=cwd, env=env, text=True)


def environ(database: str, port: int = 8000) -> dict[str, str]:
    """The environment of a program that is measured: a developer's .env is no part of it."""
    # UVICORN_PORT is to uvicorn what PORT is to gunicorn. PGTZ: the reference answers in UTC.
    ports = {"PORT": str(port), "UVICORN_PORT": str(port), "WEB_CONCURRENCY": "2", "PGTZ": "UTC"}
    own = {"PATH": os.environ["PATH"], "PYTHON_DOTENV_DISABLED": "1"}
    return own | ports | {"DATABASE_URL": database, "JWT_SECRET": SECRET}


def check_out(reference: str, folder: Path) -> tuple[str, Path, Path]:
    """The name, files and programs of a git reference, below the folder."""
    name = run("git", "rev-parse", "--short", f"{reference}^{{commit}}").strip()
    root, archive = folder / name, folder / f"{name}.tar"
    root.mkdir()
    run("git", "archive", "--output", archive, name)
    run("tar", "--extract", "--file", archive, "--directory", root)
    requirements = root / "requirements.txt"
    if requirements.read_bytes() == (ROOT / "requirements.txt").read_bytes():
        return name, root, PROGRAMS
    print(f"Installing the requirements of {name}, which are not today's.", file=sys.stderr)
    programs = folder / "environment" / "bin"
    run(sys.executable, "-m", "venv", programs.parent)
    run(programs / "pip", "install", "--quiet", "--requirement", requirements)
    return name, root, programs


def create_database(server: str, name: str, root: Path, programs: Path) -> str:
    """A new database with the schema of a tree; returns its URL."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    url = server.replace("/postgres?", f"/{name}?")
    run(programs / "flask", "--app", "wsgi", "init-db", cwd=root, env=environ(url))
    return url


@contextmanager
def serve(
    name: str, program: Path, app: str, database: str, root: Path, log: Path
) -> Iterator[Server]:
    """A server with two workers that answers until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url, variables = f"http://127.0.0.1:{port}", environ(database, port)
    with (
        log.open("w") as out,
        httpx.Client(transport=httpx.HTTPTransport(retries=7)) as client,
        subprocess.Popen([program, app], cwd=root, env=variables, stdout=out, stderr=out) as server,
    ):
        try:
            client.get(f"{url}/health", timeout=30)  # tries again for half a minute
            yield Server(name, url, server.pid, database)
        except BaseException:
            print(f"{name}:", *log.read_text().splitlines()[-3:], sep="\n", file=sys.stderr)
            raise
        finally:
            server.terminate()
