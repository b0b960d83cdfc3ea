"""Access and deletion requests: `flask --app wsgi export` and `erase`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskCliRunner

from tests.conftest import ENVIRON, ROOT, SECRET, sign
from todo_service import store

Fill = Callable[..., str]


@pytest.fixture
def fill(connection: psycopg.Connection) -> Iterator[Fill]:
    """Make a user with so many tasks; they all have the same created_at if there is no step."""
    users = []

    def make(count: int, step: str = "1 second") -> str:
        user = f"user-{uuid4()}"
        connection.execute("INSERT INTO users (id) VALUES (%s)", (user,))
        connection.execute(
            "INSERT INTO tasks (user_id, title, created_at)"
            " SELECT %s, 'Task ' || n, now() - n * %s::interval FROM generate_series(1, %s) n",
            (user, step, count),
        )
        users.append(user)
        return user

    yield make
    connection.execute("DELETE FROM users WHERE id = ANY (%s)", (users,))


def count_tasks(connection: psycopg.Connection, user: str) -> int:
    (count,) = connection.execute(
        "SELECT count(*) FROM tasks WHERE user_id = %s", (user,)
    ).fetchone()
    return count


@pytest.mark.parametrize("step", ["1 second", "0 seconds"])
def test_an_export_is_the_list_of_the_api_a_line_a_task(
    app: Flask, runner: FlaskCliRunner, fill: Fill, step: str
) -> None:
    user = fill(1201, step)
    fill(3)

    listed = (
        app.test_client()
        .get(f"/api/{user}/tasks", headers={"Authorization": f"Bearer {sign(user)}"})
        .json
    )

    result = runner.invoke(args=["export", user])  # ends with its connections closed

    lines = result.stdout.removesuffix("\n").split("\n")
    assert result.exit_code == 0
    assert len(lines) == 1201
    assert [json.loads(line) for line in lines] == listed
    assert result.stderr.endswith("Exported tasks: 1201\n")


def test_a_task_is_one_line_whatever_its_text_holds(
    runner: FlaskCliRunner, fill: Fill, connection: psycopg.Connection
) -> None:
    user = fill(1)
    text = 'a\nb\r\u2028"c" \\ \U0001f95b'
    connection.execute(
        "UPDATE tasks SET title = %s, description = %s WHERE user_id = %s", (text, text, user)
    )

    (line, end) = runner.invoke(args=["export", user]).stdout_bytes.split(b"\n")

    assert end == b""
    assert (json.loads(line)["title"], json.loads(line)["description"]) == (text, text)


def test_a_user_without_tasks_exports_nothing(runner: FlaskCliRunner) -> None:
    result = runner.invoke(args=["export", f"nobody-{uuid4()}"])

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("Exported tasks: 0\n")


@pytest.mark.slow
def test_the_memory_of_an_export_does_not_grow_with_the_tasks(
    database_url: str, fill: Fill, tmp_path: Path
) -> None:
    def export(user: str) -> tuple[int, int]:
        """Lines written, and the most memory that the process held, in KiB."""
        with (tmp_path / user).open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "flask", "--app", "wsgi", "export", user],
                cwd=ROOT,
                env={**ENVIRON, "DATABASE_URL": database_url, "JWT_SECRET": SECRET},
                stdout=output,
                stderr=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            output.seek(0)
            return sum(1 for _ in output), usage.ru_maxrss

    (few, small), (many, large) = export(fill(1_000)), export(fill(40_000))

    assert (few, many) == (1_000, 40_000)
    assert large - small < 4096, (small, large)


def test_erase_takes_one_user_with_all_tasks_and_nobody_else(
    runner: FlaskCliRunner, fill: Fill, connection: psycopg.Connection
) -> None:
    before, user, after = sorted(fill(7) for _ in range(3))

    result = runner.invoke(args=["erase", user, "--yes"])

    assert (result.exit_code, result.stdout) == (0, f"Deleted user {user!r}. Deleted tasks: 7\n")
    left = connection.execute(
        "SELECT users.id, count(tasks.id) FROM users LEFT JOIN tasks ON user_id = users.id"
        " WHERE users.id IN (%s, %s, %s) GROUP BY users.id ORDER BY users.id",
        (before, user, after),
    )
    assert left.fetchall() == [(before, 7), (after, 7)]
    assert count_tasks(connection, user) == 0


@pytest.mark.parametrize(("reply", "left"), [("n\n", 2), ("\n", 2), ("", 2), ("y\n", 0)])
def test_erase_asks_first(
    runner: FlaskCliRunner, fill: Fill, connection: psycopg.Connection, reply: str, left: int
) -> None:
    user = fill(2)

    result = runner.invoke(args=["erase", user], input=reply)

    assert "for good? [y/N]" in result.stdout
    assert result.exit_code == (1 if left else 0)
    assert count_tasks(connection, user) == left


def test_erase_of_an_unknown_user_says_so_and_fails(runner: FlaskCliRunner) -> None:
    result = runner.invoke(args=["erase", "nobody", "--yes"])

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("Error: there is no user 'nobody'\n")


def test_an_erasure_takes_along_what_is_left_of_deleted_tasks(
    app: Flask, runner: FlaskCliRunner, fill: Fill, connection: psycopg.Connection
) -> None:
    user, other = fill(3), fill(3)
    with app.app_context():
        for owner in (user, other):
            (task,) = store.list_tasks(owner, limit=1, size=1)[1]
            store.delete_task(owner, task["id"])

    assert "Deleted tasks: 2\n" in runner.invoke(args=["erase", user, "--yes"]).stdout

    left = connection.execute(
        "SELECT user_id, count(*) FROM deleted_tasks WHERE user_id IN (%s, %s) GROUP BY user_id",
        (user, other),
    )
    assert left.fetchall() == [(other, 1)]


@pytest.mark.slow
def test_an_erasure_and_a_write_do_not_wait_for_each_other(
    app: Flask, fill: Fill, database_url: str, connection: psycopg.Connection
) -> None:
    user = fill(2)

    def erase() -> int | None:
        with app.app_context():
            return store.delete_user(user)

    with ThreadPoolExecutor() as executor, psycopg.connect(database_url) as writing:
        # What a write does, a step at a time: first the clock, then the task.
        writing.execute("UPDATE users SET changed_at = now() WHERE id = %s", (user,))
        erased = executor.submit(erase)
        while not connection.execute(
            "SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))",
            (writing.info.backend_pid,),
        ).fetchall():
            assert not erased.done()
        changed = writing.execute("UPDATE tasks SET title = 'y' WHERE user_id = %s", (user,))
        assert changed.rowcount == 2
        writing.commit()
        assert erased.result() == 2

    assert count_tasks(connection, user) == 0


@pytest.mark.slow
def test_a_task_that_is_being_created_does_not_outlive_the_user(
    app: Flask, fill: Fill, database_url: str, connection: psycopg.Connection
) -> None:
    user = fill(2)

    def erase() -> int | None:
        with app.app_context():
            return store.delete_user(user)

    with ThreadPoolExecutor() as executor, psycopg.connect(database_url) as creating:
        creating.execute("INSERT INTO tasks (user_id, title) VALUES (%s, 'late')", (user,))
        erased = executor.submit(erase)
        while not connection.execute(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s",
            ("%erased%",),
        ).fetchall():
            assert not erased.done()
        creating.commit()
        assert erased.result() == 2

    assert count_tasks(connection, user) == 0
