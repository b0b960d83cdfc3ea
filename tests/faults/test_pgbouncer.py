"""Behind PgBouncer in transaction mode, whose releases before 1.21 know no prepared statements."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Server, User, free_port
from tests.faults.conftest import Cluster
from todo_service.database import apply_schema


@pytest.fixture
def pgbouncer(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The URL of a PgBouncer with four server connections for everybody."""
    port = free_port()
    users = tmp_path / "users.txt"
    users.write_text('"postgres" ""\n')
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\npostgres = host={cluster.server.pgdata} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\nauth_file = {users}\npool_mode = transaction\ndefault_pool_size = 4\n"
    )
    program = os.environ.get("PGBOUNCER", "/usr/sbin/pgbouncer")
    command: list[str | Path] = [program, "-q", config]
    if cluster.server.system_user is not None:
        # It refuses to run as root, as PostgreSQL does, and must reach the cluster's socket.
        command += ["-u", cluster.server.system_user]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process.terminate()
    process.wait(10)


def test_the_schema_is_not_applied_through_a_pooler(cluster: Cluster, pgbouncer: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        apply_schema(pgbouncer)

    # Neither its lock nor its settings are left behind for others.
    assert cluster.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_thousands_of_mixed_requests_pass_through_pgbouncer(
    cluster: Cluster,
    pgbouncer: str,
    serve: Callable[..., Server],
    new_user_at: Callable[[Server], User],
    measured: Callable[..., None],
) -> None:
    server = serve(DATABASE_URL=pgbouncer, DB_POOLER="transaction")
    server.wait("/ready")
    users = [new_user_at(server) for _ in range(8)]

    def work(user: User) -> set[int]:
        order = random.Random(user.id)
        seen = set()
        tasks = [user.create()]
        for number in range(240):
            task = order.choice(tasks)
            match number % 8:
                case 0:
                    answer = user.post(user.tasks, json={"title": f"Task {number}"})
                    tasks.append(answer.json())
                case 1:
                    key = {"Idempotency-Key": str(number)}
                    answer = user.post(user.tasks, json={"title": "keyed"}, headers=key)
                    answer = user.post(user.tasks, json={"title": "keyed"}, headers=key)
                    assert answer.headers["Idempotency-Replayed"] == "true"
                case 2:
                    answer = user.get(f"{user.tasks}?limit=5")
                case 3:
                    answer = user.patch(f"{user.path(task)}/complete")
                case 4:
                    tag = {"If-Match": user.get(user.path(task)).headers["ETag"]}
                    answer = user.put(user.path(task), json={"title": "x"}, headers=tag)
                case 5:
                    answer = user.get(user.tasks, params={"status": "complete"})
                case _:
                    answer = user.get(user.path(task))
                    assert answer.json()["created_at"].endswith("Z")
            seen.add(answer.status_code)
        return seen

    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        statuses = set().union(*pool.map(work, users))

    measured(requests=8 * 300, statuses=statuses, seconds=f"{time.monotonic() - started:.1f}")
    assert statuses == {200, 201}
    ((backends,),) = cluster.query(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'todo-service'"
    )
    assert backends <= 4
