"""What the tests share: a real PostgreSQL, the app, gunicorn serving it, and two users."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
import jwt
import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner

from tests.issuer import Issuer
from todo_service import create_app, embedded
from todo_service.auth.guard import Authenticator
from todo_service.ops import commands
from todo_service.ops.migrate import apply_schema
from todo_service.settings import Settings

ROOT = Path(__file__).parent.parent
# What a process of the service gets: no variable of this shell, and no .env of this checkout.
ENVIRON = {"PATH": os.environ["PATH"], "PYTHON_DOTENV_DISABLED": "1"}
# The tests speak plain HTTP. A shared context spares each client the 30 ms of reading certificates.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
SECRET = os.environ.get("TEST_JWT_SECRET", "a secret that only the tests know, 0123456789")


def sign(user_id: object, secret: str = SECRET, **claims: object) -> str:
    """A token for the user, good for a minute; a claim given as None is left out."""
    payload = {"sub": user_id, "exp": int(time.time()) + 60} | claims
    return jwt.encode({k: v for k, v in payload.items() if v is not None}, secret, "HS256")


def app_with_commands(settings: Settings, authenticate: Authenticator | None = None) -> Flask:
    """The app as wsgi.py makes it."""
    app = create_app(settings, authenticate)
    commands.init_app(app, settings)
    return app


class User(httpx.Client):
    """An HTTP client that carries a user's token; paths are relative to the user's tasks."""

    def __init__(self, server: str, user_id: str) -> None:
        self.id = user_id
        self.server = server
        self.tasks = f"/api/{quote(user_id, safe='')}/tasks"
        super().__init__(
            base_url=server,
            headers={"Authorization": f"Bearer {sign(user_id, exp=int(time.time()) + 3600)}"},
            timeout=30,
            verify=NO_TLS,
        )

    def create(self, title: str = "Buy milk", **fields: object) -> dict[str, object]:
        answer = self.post(self.tasks, json={"title": title, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def path(self, task: dict[str, object]) -> str:
        return f"{self.tasks}/{task['id']}"


@pytest.fixture(scope="session")
def database_url() -> str:
    """TEST_DATABASE_URL, else an embedded cluster of this run's own."""
    url = os.environ.get("TEST_DATABASE_URL")
    if url is None:
        url = start_cluster()
        with psycopg.connect(url, autocommit=True) as connection:
            # Its files need not outlive this machine: a DROP DATABASE took seconds.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
    apply_schema(url)
    return url


def start_cluster() -> str:
    """Start a PostgreSQL with a cluster of its own, for this run, and return its URL."""
    folder = Path(tempfile.mkdtemp(prefix="todo-service-"))
    # Registered first, so run last: after the server has stopped.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return embedded.start(folder)


@pytest.fixture(scope="module")
def new_database(database_url: str) -> Iterator[Callable[..., str]]:
    """Makes databases, with or without the schema, and drops them after the module's last test."""
    names: list[str] = []

    def make(*, schema: bool) -> str:
        names.append(f"todo_{uuid4().hex}")
        execute(f"CREATE DATABASE {names[-1]}")
        url = urlsplit(database_url)._replace(path=f"/{names[-1]}").geturl()
        if schema:
            apply_schema(url)
        return url

    def execute(statement: str) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(statement)

    yield make
    for name in names:
        execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection to the database, without the service."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, jwt_secret=SECRET)


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    app = app_with_commands(settings)
    yield app
    app.extensions["database"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def runner(app: Flask) -> FlaskCliRunner:
    return app.test_cli_runner()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.add_key("first")
    yield issuer
    issuer.close()


def until(reached: Callable[[], object], seconds: float = 60) -> float:
    """Wait for a state; the seconds that it took."""
    started = time.monotonic()
    while not reached():
        assert time.monotonic() - started < seconds
        time.sleep(0.02)
    return time.monotonic() - started


def free_port() -> int:
    """A port that nobody listens on, and none of those that the system gives to clients."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds what requirements.txt names, hashes checked."""
    folder = tmp_path_factory.mktemp("environment") / "python"
    venv.create(folder)
    wheels = ("--only-binary", ":all:", "--require-hashes")
    pip(folder, "install", "--quiet", *wheels, "-r", str(ROOT / "requirements.txt"))
    return folder


def pip(environment: Path, *arguments: str) -> str:
    """What this process's pip prints; it works on the other environment, which has no pip."""
    command = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
    return subprocess.check_output([*command, *arguments], text=True, timeout=300)


class Server:
    """gunicorn as the Procfile starts it, with nothing in its environment but what is given."""

    def __init__(
        self,
        log: Path,
        command: Sequence[str | Path] = (Path(sys.executable).parent / "gunicorn", "wsgi:app"),
        folder: Path = ROOT,
        **environ: str,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=ENVIRON | {"PORT": str(self.port)} | environ,
                stdout=stream,
                stderr=stream,
            )
        # For a test that fails before it stops its server; one that has ended is left alone.
        atexit.register(self.process.terminate)

    def wait(self, path: str = "/health", status: int = 200, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(self.url + path, timeout=10, verify=NO_TLS).status_code == status:
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{path} not {status}: {self.log.read_text()}"
            time.sleep(0.05)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


def assert_tasks_work(url: str, database_url: str) -> None:
    """Run the tests of a task's routes and of isolation against a server that is up already."""
    suite = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("tests/api/test_tasks.py", "tests/api/test_isolation.py"),
        ],
        cwd=ROOT,
        env=os.environ
        | {"TEST_BASE_URL": url, "TEST_DATABASE_URL": database_url, "TEST_JWT_SECRET": SECRET},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )

    assert suite.returncode == 0, suite.stdout


@pytest.fixture(scope="session")
def server(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of TEST_BASE_URL, else of a gunicorn started for this run."""
    if "TEST_BASE_URL" in os.environ:
        yield os.environ["TEST_BASE_URL"]
        return
    log = tmp_path_factory.mktemp("server") / "log"
    server = Server(log, DATABASE_URL=database_url, JWT_SECRET=SECRET)
    server.wait("/ready")
    yield server.url
    assert server.stop() == 0, log.read_text()


@pytest.fixture
def new_user(server: str) -> Iterator[Callable[..., User]]:
    users: list[User] = []

    def make(user_id: str | None = None) -> User:
        users.append(User(server, user_id or f"user-{uuid4()}"))
        return users[-1]

    yield make
    for user in users:
        user.close()


@pytest.fixture
def alice(new_user: Callable[..., User]) -> User:
    return new_user(f"alice-{uuid4()}")


@pytest.fixture
def bob(new_user: Callable[..., User]) -> User:
    return new_user(f"bob-{uuid4()}")
