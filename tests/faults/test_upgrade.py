"""init-db on tables in use: whoever reads and writes meanwhile neither fails nor waits for long."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import psycopg
import pytest

from tests.conftest import ENVIRON, ROOT, SECRET, Server, User, until
from tests.faults.conftest import Cluster
from todo_service.web.body import digest_of

pytestmark = pytest.mark.slow

USERS, TASKS, KEYS = 1_000, 100_000, 20_000

SEED = """
INSERT INTO users (id)
SELECT 'user-' || n
FROM generate_series(0, %s - 1) AS n;
INSERT INTO tasks (user_id, title, created_at, updated_at)
SELECT 'user-' || n %% %s, 'Task ' || n, time, time
FROM generate_series(1, %s) AS n, LATERAL (SELECT now() - n * interval '1 second' AS time) AS at;
"""

# As the first release sent them.
FIRST_CREATE = """
WITH owner AS (INSERT INTO users (id) VALUES (%s) ON CONFLICT (id) DO NOTHING)
INSERT INTO tasks (user_id, title, description, status, idempotency_key, idempotency_digest)
VALUES (%s, 'x', NULL, 'incomplete', NULL, NULL)
ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL
    DO UPDATE SET idempotency_replays = tasks.idempotency_replays + 1
    WHERE tasks.idempotency_digest = excluded.idempotency_digest
RETURNING id
"""
FIRST_UPDATE = """
UPDATE tasks
SET status = 'complete',
    updated_at = greatest(
        now(), (updated_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC'
    )
WHERE user_id = %s AND id = %s
RETURNING id
"""
FIRST_LIST = """
SELECT id, user_id, title, description, status, created_at, updated_at
FROM tasks
WHERE user_id = %s AND (created_at, id) < ('infinity'::timestamptz, 0)
ORDER BY created_at DESC, id DESC
LIMIT 21
"""
FIRST_DELETE = "DELETE FROM tasks WHERE user_id = %s AND id = %s RETURNING id"

# The keys of some tasks, and what else stood in their columns in 0.2.0.
SECOND_SEED = """
UPDATE tasks
SET idempotency_key = 'key-' || id,
    idempotency_digest = sha256(convert_to(
        '[["description",null],["status","incomplete"],["title","' || title || '"]]', 'UTF8'
    ))
WHERE id <= %s;
"""
SECOND_CREATE = """
WITH owner AS (
    INSERT INTO users AS known (id, changed_at)
    VALUES (%s, now())
    ON CONFLICT (id) DO UPDATE
        SET changed_at = greatest(
            excluded.changed_at,
            (known.changed_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC'
        )
    RETURNING changed_at
)
INSERT INTO tasks (
    user_id, title, description, status, created_at, updated_at, idempotency_key, idempotency_digest
)
SELECT %s, %s, %s, %s, changed_at, changed_at, %s, %s
FROM owner
ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL
    DO UPDATE SET idempotency_replays = tasks.idempotency_replays + 1
    WHERE tasks.idempotency_digest = excluded.idempotency_digest
RETURNING id, user_id, title, description, status, created_at, updated_at, idempotency_replays
"""
UNKNOWN_KEYS = """
SELECT count(*)
FROM tasks
LEFT JOIN idempotency_keys AS known
    ON (known.user_id, key, task_id, digest, known.created_at)
        = (tasks.user_id, idempotency_key, id, idempotency_digest, tasks.created_at)
WHERE idempotency_key IS NOT NULL
    AND key IS NULL
"""


def init_db(url: str) -> None:
    finished = subprocess.run(
        [Path(sys.executable).parent / "flask", "--app", "wsgi", "init-db"],
        cwd=ROOT,
        env=ENVIRON | {"DATABASE_URL": url, "JWT_SECRET": SECRET},
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stdout) == (0, "The schema is in place.\n"), finished


@contextmanager
def at_work(*workers: Iterator[None]) -> Iterator[list[float]]:
    """Run each worker in a thread until the block ends; yields the seconds that each step took."""
    stop = threading.Event()
    seconds: list[float] = []

    def run(worker: Iterator[None]) -> None:
        while not stop.is_set():
            started = time.monotonic()
            next(worker)
            seconds.append(time.monotonic() - started)

    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(run, worker) for worker in workers]
        try:
            yield seconds
        finally:
            stop.set()
        for worker in running:
            worker.result()


def do_more(seconds: list[float]) -> None:
    """Wait until the workers have done another hundred steps."""
    enough = len(seconds) + 100
    until(lambda: len(seconds) >= enough, 30)


def init_db_beside(cluster: Cluster, statement: str, seconds: list[float]) -> None:
    """Run init-db while a transaction is open in which the statement has been run.

    The workers must get on meanwhile: what would keep init-db waiting must not keep them, too.
    """
    with ThreadPoolExecutor(1) as pool, psycopg.connect(cluster.url) as other:
        other.execute(statement)
        running = pool.submit(init_db, cluster.url)
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        while cluster.query(blocked, other.info.backend_pid) == [(0,)]:
            assert not running.done(), "it did not wait"
        do_more(seconds)
        assert not running.done()
        other.rollback()
        running.result()


def first_release(url: str, number: int) -> Iterator[None]:
    """What the first release sends for a client that works for one user after another."""
    with psycopg.connect(url, autocommit=True) as connection:

        def run(statement: str, *parameters: object) -> object:
            return connection.execute(statement, parameters, prepare=True).fetchone()[0]

        for owner in cycle(range(number, USERS, 4)):
            user = f"user-{owner}"
            task = run(FIRST_CREATE, user, user)
            yield
            run(FIRST_LIST, user)
            yield
            run(FIRST_UPDATE, user, task)
            yield
            run(FIRST_DELETE, user, task)
            yield


def second_release(url: str, number: int) -> Iterator[None]:
    """Creates with keys, each sent twice, as 0.2.0 sends them."""
    with psycopg.connect(url, autocommit=True) as connection:
        for sequence, owner in enumerate(cycle(range(number, USERS, 4))):
            user, key = f"user-{owner}", f"load-{number}-{sequence}"
            digest = digest_of({"title": key, "description": None, "status": "incomplete"})
            parameters = (user, user, key, None, "incomplete", key, digest)
            first = connection.execute(SECOND_CREATE, parameters, prepare=True).fetchone()
            yield
            again = connection.execute(SECOND_CREATE, parameters, prepare=True).fetchone()
            assert (first[-1], again) == (0, (*first[:-1], 1))
            yield


def this_release(server: Server, number: int) -> Iterator[None]:
    """The same client of this release, over HTTP."""
    for owner in cycle(range(number, USERS, 4)):
        with User(server.url, f"user-{owner}") as user:
            task = user.create()
            yield
            assert user.get(user.tasks, params={"limit": 20}).status_code == 200
            yield
            assert user.patch(f"{user.path(task)}/complete").status_code == 200
            yield
            assert user.delete(user.path(task)).status_code == 204
            yield


def test_the_first_release_goes_on_while_its_tables_are_changed(
    cluster: Cluster, measured: Callable[..., None]
) -> None:
    with psycopg.connect(cluster.url) as connection:
        connection.execute("DROP TABLE idempotency_keys, deleted_tasks, tasks, users")
        connection.execute((ROOT / "tests" / "schema-0.1.0.sql").read_bytes())
        psycopg.ClientCursor(connection).execute(SEED, (USERS, USERS, TASKS))

    with at_work(*(first_release(cluster.url, number) for number in range(4))) as seconds:
        do_more(seconds)
        # As pg_dump would.
        init_db_beside(cluster, "SELECT FROM users", seconds)
        do_more(seconds)

    measured(statements=len(seconds), slowest=f"{max(seconds):.3f} s")
    assert max(seconds) < 1
    assert cluster.query("SELECT count(*) FROM users WHERE changed_at IS NULL") == [(0,)]


def test_keys_of_the_second_release_are_known_after_an_upgrade_under_load(
    cluster: Cluster, serve: Callable[..., Server], measured: Callable[..., None]
) -> None:
    with psycopg.connect(cluster.url) as connection:
        connection.execute("DROP TABLE idempotency_keys, deleted_tasks, tasks, users")
        connection.execute((ROOT / "tests" / "schema-0.2.0.sql").read_bytes())
        psycopg.ClientCursor(connection).execute(SEED, (USERS, USERS, TASKS))
        psycopg.ClientCursor(connection).execute(SECOND_SEED, (KEYS,))

    with at_work(*(second_release(cluster.url, number) for number in range(4))) as seconds:
        do_more(seconds)
        init_db(cluster.url)
        do_more(seconds)

    measured(statements=len(seconds), slowest=f"{max(seconds):.3f} s")
    assert max(seconds) < 1
    assert cluster.query(f"{UNKNOWN_KEYS} AND starts_with(title, 'Task ')") == [(0,)]
    assert cluster.query(UNKNOWN_KEYS) != [(0,)]
    # The last worker of 0.2.0 has stopped.
    init_db(cluster.url)
    assert cluster.query(UNKNOWN_KEYS) == [(0,)]
    server = serve()
    server.wait("/ready")
    for title in ("Task 1", "Task 20000", "load-0-0"):
        ((owner, key, task_id),) = cluster.query(
            "SELECT user_id, idempotency_key, id FROM tasks WHERE title = %s", title
        )
        with User(server.url, owner) as user:
            headers = {"Idempotency-Key": key}
            answer = user.post(user.tasks, json={"title": title}, headers=headers)
            assert (answer.status_code, answer.json()["id"]) == (201, task_id)
            assert answer.headers["Idempotency-Replayed"] == "true"
            user.delete(user.path(answer.json()))
            answer = user.post(user.tasks, json={"title": title}, headers=headers)
            assert answer.status_code == 410


def test_this_release_goes_on_while_a_missing_index_is_built_and_where_nothing_is_missing(
    cluster: Cluster, serve: Callable[..., Server], measured: Callable[..., None]
) -> None:
    with psycopg.connect(cluster.url) as connection:
        psycopg.ClientCursor(connection).execute(SEED, (USERS, USERS, TASKS))
        connection.execute("DROP INDEX tasks_changes_idx")
    server = serve()
    server.wait("/ready")

    with at_work(*(this_release(server, number) for number in range(4))) as seconds:
        do_more(seconds)
        init_db_beside(cluster, "DELETE FROM tasks WHERE user_id = 'nobody'", seconds)
        do_more(seconds)
        init_db(cluster.url)
        do_more(seconds)

    measured(requests=len(seconds), slowest=f"{max(seconds):.3f} s")
    assert max(seconds) < 1
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'tasks_changes_idx'::regclass"
    assert cluster.query(valid) == [(True,)]
