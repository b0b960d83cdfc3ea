"""Behind PgBouncer in transaction mode, whose releases before 1.21 know no prepared statements."""

from __future__ import annotations

import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.conftest import SECRET, Server, User, app_with_commands, free_port
from tests.faults.conftest import Cluster
from tests.test_doctor import Report, write_certificate
from tests.test_psql_page import PAGE, PSQL
from todo_service.settings import Settings

pytestmark = pytest.mark.slow


@pytest.fixture
def start_pgbouncer(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a PgBouncer with four server connections for everybody, and give its URL."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(pool_mode: str = "transaction", ignored: str = "", more: str = "") -> str:
        port = free_port()
        users = tmp_path / "users.txt"
        users.write_text('"postgres" ""\n')
        config = tmp_path / "pgbouncer.ini"
        config.write_text(
            f"[databases]\npostgres = host={cluster.server.pgdata} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\nauth_file = {users}\npool_mode = {pool_mode}\n"
            f"default_pool_size = 4\nignore_startup_parameters = {ignored}\n"
            f"{more}"
        )
        program = os.environ.get("PGBOUNCER", "/usr/sbin/pgbouncer")
        command: list[str | Path] = [program, "-q", config]
        if cluster.server.system_user is not None:
            # It refuses to run as root, as PostgreSQL does, and must reach the cluster's socket.
            command += ["-u", cluster.server.system_user]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(url).close()
                return url
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    yield start
    for process in processes:
        process.terminate()
        process.wait(10)


@pytest.fixture
def pgbouncer(start_pgbouncer: Callable[..., str]) -> str:
    return start_pgbouncer()


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
@pytest.mark.parametrize("ignored", ["", "options"])
def test_the_schema_is_not_applied_through_a_pooler(
    cluster: Cluster, start_pgbouncer: Callable[..., str], pool_mode: str, ignored: str
) -> None:
    pooled = Settings(database_url=start_pgbouncer(pool_mode, ignored), jwt_secret=SECRET)

    for command in ("init-db", "after-restore"):
        result = app_with_commands(pooled).test_cli_runner().invoke(args=[command])

        assert (result.exit_code, result.output) == (
            1,
            "Error: this is the address of a pooler. Set OWNER_DATABASE_URL to the server's own\n",
        )
    # Neither its lock nor its settings are left behind for others.
    assert cluster.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    direct = replace(pooled, owner_database_url=cluster.url)
    result = app_with_commands(direct).test_cli_runner().invoke(args=["init-db"])
    assert (result.exit_code, result.output) == (0, "The schema is in place.\n")


def test_a_certificate_that_nobody_vouches_for_is_told_as_that(
    start_pgbouncer: Callable[..., str], tmp_path: Path
) -> None:
    certificate, key = write_certificate(tmp_path)
    url = start_pgbouncer(
        more=f"client_tls_sslmode = allow\nclient_tls_cert_file = {certificate}\n"
        f"client_tls_key_file = {key}\n"
    )

    for roots in ("/etc/ssl/certs/ca-certificates.crt", str(tmp_path / "none.crt")):
        report = Report(f"{url}?sslmode=verify-full&sslrootcert={roots}")

        assert report.wrong() == ["database"]
        assert "the server's certificate is not accepted: " in report["database"]
        assert "Check sslmode and sslrootcert in DATABASE_URL" in report["database"]
        assert "sslmode=disable" not in report["database"]


def test_a_server_without_tls_is_told_as_that(start_pgbouncer: Callable[..., str]) -> None:
    report = Report(f"{start_pgbouncer()}?sslmode=require")

    assert report.wrong() == ["database"]
    assert (
        "the server has no TLS. If the network is trusted, add ?sslmode=disable"
        in (report["database"])
    )


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


def test_a_look_through_a_pooler_as_on_the_page_changes_nothing_for_others(
    cluster: Cluster, pgbouncer: str
) -> None:
    begin = re.search(r"```\n(BEGIN READ ONLY;\n.*?)```", PAGE, re.DOTALL)[1]
    look = f"{begin}SHOW statement_timeout;\nDELETE FROM users;\nCOMMIT;\n"

    answer = subprocess.run(
        [PSQL, pgbouncer, "-X", "-q", "-t", "-A"], input=look, capture_output=True, text=True
    )

    assert answer.stdout == "30s\n"
    assert "cannot execute DELETE in a read-only transaction" in answer.stderr
    with psycopg.connect(pgbouncer, autocommit=True) as other:
        assert other.execute("SHOW statement_timeout").fetchone() == ("0",)
        other.execute("INSERT INTO users (id) VALUES ('alice')")


@pytest.mark.parametrize("ignored", ["", "options"])
def test_the_doctor_tells_a_pooler_in_transaction_mode_that_nobody_declared(
    start_pgbouncer: Callable[..., str], ignored: str
) -> None:
    report = Report(start_pgbouncer(ignored=ignored))

    assert report.exit_code == 1
    assert report["pooler"].endswith("Set DB_POOLER=transaction")
    assert report["database"].startswith("ok ")
    assert report["schema"] == "ok as in sql/schema.sql"


def test_the_doctor_tells_it_while_others_use_it(start_pgbouncer: Callable[..., str]) -> None:
    url = start_pgbouncer(ignored="options")
    stop = threading.Event()

    def use() -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not stop.is_set():
                connection.execute("SELECT 1")

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(use)
        try:
            report = Report(url)
        finally:
            stop.set()

    assert report["pooler"].endswith("Set DB_POOLER=transaction")


def test_behind_a_declared_pooler_the_doctor_asks_for_the_timeout_of_the_role(
    cluster: Cluster, pgbouncer: str
) -> None:
    report = Report(pgbouncer, db_pooler="transaction")

    assert report.wrong() == ["statement_timeout"]
    assert report["pooler"] == "ok in transaction mode, as DB_POOLER says"
    assert report["connections"].startswith("ok ")
    cluster.execute(report["statement_timeout"].partition("Run in psql: ")[2])
    cluster.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    assert Report(pgbouncer, db_pooler="transaction").wrong() == []


def test_the_doctor_knows_a_pooler_in_session_mode(start_pgbouncer: Callable[..., str]) -> None:
    refusing = Report(start_pgbouncer("session"))
    passing = Report(start_pgbouncer("session", ignored="options"))

    assert refusing["pooler"].startswith("wrong one in session mode refuses the option")
    assert passing["pooler"] == "ok one in session mode"
    # It ignores what it lets pass.
    assert passing.wrong() == ["statement_timeout"]
