"""PostgreSQL restarts, crashes, freezes, is absent: nothing acknowledged is lost, nothing hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.conftest import Server, User, until
from tests.faults.conftest import Cluster, Load
from tests.test_doctor import Report
from todo_service.ops.doctor import CHECKS
from todo_service.ops.migrate import apply_schema

pytestmark = pytest.mark.slow

Measure = Callable[..., None]
Serve = Callable[..., Server]


def timed(ask: Callable[[], httpx.Response]) -> tuple[float, httpx.Response]:
    started = time.monotonic()
    answer = ask()
    return time.monotonic() - started, answer


def assert_unavailable(answer: httpx.Response) -> None:
    assert answer.status_code == 503
    assert answer.json() == {"error": "Service temporarily unavailable"}
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_no_acknowledged_task_is_lost_when_postgresql_goes_down_under_load(
    cluster: Cluster, serve: Serve, measured: Measure, mode: str
) -> None:
    server = serve()
    server.wait("/ready")
    load = Load(server)
    recoveries = []

    with load.running():
        for _ in range(3):
            time.sleep(0.7)
            cluster.stop(mode)
            time.sleep(0.7)
            cluster.start()
            back = time.monotonic()
            time.sleep(2)
            recoveries.append(load.first_success(back))
        settled = time.monotonic()
        time.sleep(0.7)

    lost = load.check(cluster)
    measured(
        acknowledged=len(load.acknowledged),
        lost=len(lost),
        slowest=f"{load.slowest:.1f} s",
        recovery=f"{max(recoveries):.2f} s",
    )
    assert not lost
    assert not load.dropped
    assert load.statuses() <= {201, 503}
    assert load.retry_after_missing == 0
    assert max(recoveries) < 2
    assert load.statuses(since=settled) == {201}


def test_connections_closed_while_idle_cost_no_client_an_error(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    server = serve()
    server.wait("/ready")
    alice = new_user_at(server)
    slowest = 0.0
    for _ in range(10):
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: alice.get(alice.tasks).status_code, range(24))) == {200}
        cluster.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'todo-service'"
        )
        for _ in range(6):
            seconds, answer = timed(lambda: alice.get(alice.tasks))
            slowest = max(slowest, seconds)
            assert answer.status_code == 200

    measured(slowest=f"{slowest:.3f} s")
    assert slowest < 1


def test_a_frozen_database_is_a_503_and_health_stays_up(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    server = serve(DB_POOL_TIMEOUT="1", DB_STATEMENT_TIMEOUT="1")
    server.wait("/ready")
    alice = new_user_at(server)
    task = alice.create()

    def ask(_: int) -> tuple[float, httpx.Response]:
        return timed(lambda: alice.get(alice.path(task)))

    with cluster.frozen(), ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, number) for number in range(40)]
        healthy = []
        while not all(answer.done() for answer in asked):
            seconds, answer = timed(lambda: httpx.get(server.url + "/health", timeout=5))
            assert answer.status_code == 200
            healthy.append(seconds)
        ready_seconds, ready = timed(lambda: httpx.get(server.url + "/ready", timeout=10))
        answers = [answer.result() for answer in asked]
    recovery = until(lambda: alice.get(alice.path(task)).status_code == 200, 10)

    slowest = max(seconds for seconds, _ in answers)
    measured(
        slowest=f"{slowest:.1f} s",
        health=f"{max(healthy):.2f} s",
        ready=f"{ready_seconds:.1f} s",
        recovery=f"{recovery:.2f} s",
    )
    for _, answer in answers:
        assert_unavailable(answer)
    assert slowest < 5
    assert max(healthy) < 1
    assert (ready.status_code, ready_seconds < 6) == (503, True)
    assert recovery < 5


def test_a_locked_row_is_a_503_at_the_statement_timeout_and_stops_no_other_user(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    server = serve(DB_STATEMENT_TIMEOUT="1.5", DB_POOL_SIZE="3")
    server.wait("/ready")
    alice, bob = new_user_at(server), new_user_at(server)
    task, other = alice.create(), bob.create()

    with psycopg.connect(cluster.url) as locker, ThreadPoolExecutor(1) as pool:
        locker.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task["id"],))
        locked = pool.submit(timed, lambda: alice.put(alice.path(task), json={"title": "x"}))
        others = []
        while not locked.done():
            for ask in (
                lambda: bob.put(bob.path(other), json={"title": "y"}),
                # Her writes wait for each other, but not her reads.
                lambda: alice.get(alice.path(task)),
            ):
                seconds, answer = timed(ask)
                assert answer.status_code == 200
                others.append(seconds)
        seconds, answer = locked.result()
        assert_unavailable(answer)

    measured(locked=f"{seconds:.2f} s", others=f"{max(others):.2f} s")
    assert 1.4 < seconds < 3
    assert max(others) < 1
    assert alice.put(alice.path(task), json={"title": "x"}).status_code == 200


@pytest.mark.parametrize(("method", "body"), [("PATCH", {"status": "complete"}), ("DELETE", None)])
def test_a_change_of_all_tasks_that_takes_too_long_is_a_503_and_changes_none(
    cluster: Cluster,
    serve: Serve,
    new_user_at: Callable[[Server], User],
    method: str,
    body: object,
) -> None:
    server = serve(DB_STATEMENT_TIMEOUT="1")
    server.wait("/ready")
    alice = new_user_at(server)
    tasks = [alice.create() for _ in range(100)]
    changes = f"{alice.tasks}/changes"
    before = alice.get(alice.tasks), alice.get(changes).json()

    def change_all() -> httpx.Response:
        return alice.request(method, f"{alice.tasks}?status=incomplete", json=body)

    with psycopg.connect(cluster.url) as locker:
        # It comes to this one last.
        locker.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (tasks[-1]["id"],))
        assert_unavailable(change_all())

    after = alice.get(alice.tasks)
    assert (after.json(), after.headers["ETag"]) == (before[0].json(), before[0].headers["ETag"])
    assert alice.get(changes).json()["tasks"] == before[1]["tasks"]
    assert alice.get(changes).json()["deleted"] == []
    assert list(change_all().json().values()) == [100, False]


def test_it_boots_without_a_database_and_without_a_schema(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    cluster.execute("DROP TABLE idempotency_keys, deleted_tasks, tasks, users")
    cluster.stop("fast")
    server = serve(DB_POOL_TIMEOUT="1")
    server.wait("/health")
    alice = new_user_at(server)

    absent, answer = timed(lambda: httpx.get(server.url + "/ready", timeout=20))
    assert_unavailable(answer)
    assert_unavailable(alice.get(alice.tasks))
    assert_unavailable(alice.post(alice.tasks, json={"title": "x"}))
    assert alice.get("/health").status_code == 200

    cluster.start()
    server.wait("/ready", 503)
    for answer in (alice.get(alice.tasks), alice.post(alice.tasks, json={"title": "x"})):
        assert_unavailable(answer)

    apply_schema(cluster.url)
    applied = time.monotonic()
    server.wait("/ready", 200, seconds=5)
    measured(
        ready_without_database=f"{absent:.1f} s", recovery=f"{time.monotonic() - applied:.2f} s"
    )
    assert absent < 6
    assert alice.post(alice.tasks, json={"title": "x"}).status_code == 201


def test_a_password_that_is_refused_stops_no_start_and_can_be_mended(
    cluster: Cluster, serve: Serve
) -> None:
    cluster.execute("CREATE ROLE web LOGIN SUPERUSER PASSWORD 'an0ther'")
    ((rules,),) = cluster.query("SHOW hba_file")
    Path(rules).write_text("local all web scram-sha-256\n" + Path(rules).read_text())
    cluster.execute("SELECT pg_reload_conf()")
    url = cluster.url.replace("postgres:@", "web:p4ssw0rd@")
    server = serve(DATABASE_URL=url, DB_POOL_TIMEOUT="0.2")
    server.wait("/health")
    started = time.monotonic()

    server.wait("/ready", 503)
    time.sleep(4)
    seconds = time.monotonic() - started

    lines = [line for line in server.log.read_text().splitlines() if "unreachable" in line]
    event = 'event=database_unreachable reason="DATABASE_URL is refused: user or password"'
    assert lines and all(event in line for line in lines)
    # Both workers together; each begins with one at once.
    assert len(lines) <= seconds + 2
    assert "psycopg" not in server.log.read_text()
    assert "p4ssw0rd" not in server.log.read_text()
    cluster.execute("ALTER ROLE web PASSWORD 'p4ssw0rd'")
    server.wait("/ready", 200)


def test_the_pool_keeps_its_budget_and_a_burst_beyond_it_waits_in_line(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    server = serve(DB_POOL_SIZE="2", DB_POOL_TIMEOUT="1", DB_STATEMENT_TIMEOUT="4")
    server.wait("/ready")
    alice = new_user_at(server)
    task = alice.create()
    most = 0

    with psycopg.connect(cluster.url) as locker, ThreadPoolExecutor(40) as pool:
        locker.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task["id"],))

        def write(_: int) -> tuple[float, httpx.Response]:
            return timed(lambda: alice.patch(f"{alice.path(task)}/complete"))

        asked = [pool.submit(write, number) for number in range(40)]
        while not all(answer.done() for answer in asked):
            most = max(most, cluster.connections())
            time.sleep(0.02)
        answers = [answer.result() for answer in asked]
    turned_away = sorted(seconds for seconds, _ in answers)[: 40 - 4]

    measured(connections=most, waited=f"{max(turned_away):.2f} s")
    for _, answer in answers:
        assert_unavailable(answer)
    assert most <= 2 * 2
    assert max(turned_away) < 2
    with ThreadPoolExecutor(30) as pool:  # fewer than a user may have waiting in one worker
        assert {answer.status_code for _, answer in pool.map(write, range(200))} == {200}
    assert cluster.connections() <= 2 * 2


def test_two_versions_whose_connections_do_not_fit_share_what_there_is(
    cluster: Cluster, serve: Serve, measured: Measure
) -> None:
    # A small plan: each version would take 16. One worker does so whichever clients it gets.
    cluster.execute("CREATE ROLE small LOGIN CONNECTION LIMIT 20")
    cluster.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO small")
    url = cluster.url.replace("postgres:@", "small:@")
    old = serve(DATABASE_URL=url, WEB_CONCURRENCY="1", DB_POOL_SIZE="16")
    old.wait("/ready")

    with Load(old).running(40) as before:
        until(lambda: cluster.connections() >= 16, 10)
        new = serve(DATABASE_URL=url)
        started = time.monotonic()
        new.wait("/ready")
        ready = time.monotonic() - started
        with Load(new, user_id="reader").running(40) as after:
            time.sleep(2)
            shared = cluster.connections()
            old.stop()
            time.sleep(2)
            alone = cluster.connections()

    measured(
        ready=f"{ready:.1f} s",
        connections=f"{shared}, then {alone}",
        acknowledged=f"{len(before.acknowledged)} and {len(after.acknowledged)}",
        slowest=f"{max(before.slowest, after.slowest):.1f} s",
    )
    assert (before.statuses(), after.statuses()) == ({201}, {201})
    assert before.dropped == after.dropped == []
    assert shared <= 20
    # What the old one gave back is taken: more than the 4 that it had left.
    assert 4 < alone <= 16


def test_the_doctor_gives_a_silent_server_up(cluster: Cluster, measured: Measure) -> None:
    started = time.monotonic()
    with cluster.frozen():
        report = Report(cluster.url)

    measured(seconds=f"{time.monotonic() - started:.1f}")
    assert report.wrong() == ["database"]
    assert "no answer in time" in report["database"]


def test_the_doctor_gives_a_server_up_that_falls_silent_under_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as frozen:

        def freeze(_: object) -> str:
            frozen.enter_context(cluster.frozen())
            return "reached"

        monkeypatch.setitem(CHECKS, "database", freeze)
        report = Report(cluster.url)

    assert report.wrong() == ["pooler", "schema"]
    assert report["schema"].startswith("wrong no answer from the server in time")
    assert list(report) == ["database", "pooler", "schema", "keys", "CORS_ORIGINS"]


def test_a_column_that_gets_another_type_under_load_fails_no_request(
    cluster: Cluster, serve: Serve, new_user_at: Callable[[Server], User], measured: Measure
) -> None:
    server = serve(WEB_CONCURRENCY="1")
    server.wait("/ready")
    alice = new_user_at(server)
    task = alice.create()
    load = Load(server)

    def read(_: int) -> int:
        return alice.get(alice.path(task)).status_code

    with load.running(), ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(80))) == {200}  # each connection has it prepared
        for column in ("varchar(255)", "text"):
            cluster.execute(f"ALTER TABLE tasks ALTER COLUMN title TYPE {column}")
            assert set(pool.map(read, range(80))) == {200}

    measured(acknowledged=len(load.acknowledged))
    assert load.statuses() == {201}
    assert load.dropped == []
    assert not load.check(cluster)
