"""The clock of a user's changes, and what changed since a cursor: the store, without HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from flask import Flask

from todo_service import store
from todo_service.ops.migrate import SQL
from todo_service.task import ChangesCursor, Task

# Each write as the store sends it, for a task of a user, or for all tasks of its status.
WRITES: dict[str, Callable[[str, Task], tuple]] = {
    "create_task": lambda user, _: (user, user, "late", None, "incomplete"),
    "update_task": lambda user, task: (
        *(user, "late", False, None, None),
        *(user, task["id"], None, None, None),
    ),
    "push_changes": lambda user, task: (
        *(user, False, user, "[]", user),
        *(f'[{{"id": {task["id"]}, "title": "late"}}]', user, [task["id"]], "[]", user, []),
        *(user, user, user, user, user, user, []),
    ),
    "update_tasks": lambda user, task: (
        *(user, user, task["status"]),
        *({"incomplete": "complete"}.get(task["status"], "incomplete"), user, task["status"]),
    ),
    "delete_task": lambda user, task: (
        *(user, user, task["id"], None, None, None),
        *(user, user, user),
    ),
    "delete_tasks": lambda user, task: (
        *(user, user, task["status"], user, task["status"]),
        *(user, user, user),
    ),
}


@pytest.fixture(autouse=True)
def in_app(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


@pytest.fixture
def user() -> str:
    return f"user-{uuid4()}"


def create(
    user: str, title: str = "x", description: str | None = None, status: str = "incomplete"
) -> Task:
    return store.create_task(user, title=title, description=description, status=status)


def update(user: str, task: Task, title: str) -> Task:
    updated = store.update_task(user, task["id"], {"title": title})
    assert updated is not None
    return updated


def follow(user: str, cursor: ChangesCursor | None = None, limit: int = 100) -> store.Changes:
    """All changes after the cursor, page by page, as one page."""
    tasks, deleted = [], []
    while True:
        page = store.list_changes(user, limit=limit, after=cursor)
        assert not page.expired
        assert cursor is None or not page.more or page.cursor[:2] > cursor[:2]
        assert len(page.tasks) + len(page.deleted) == limit or not page.more
        tasks += page.tasks
        deleted += page.deleted
        cursor = page.cursor
        if not page.more:
            return page._replace(tasks=tasks, deleted=deleted)


def test_every_write_moves_the_clock_and_is_stamped_with_it(user: str) -> None:
    assert store.get_clock(user) is None
    seen = []

    task = create(user)
    assert task["created_at"] == task["updated_at"] == store.get_clock(user)
    seen.append(task["updated_at"])
    other = create(user)
    seen.append(other["updated_at"])
    task = update(user, task, "y")
    assert task["updated_at"] == store.get_clock(user)
    seen.append(task["updated_at"])
    assert store.delete_task(user, other["id"])
    seen.append(store.get_clock(user))

    assert seen == sorted(set(seen))


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 12, 13])
def test_pages_of_any_size_hold_every_change_once(user: str, limit: int) -> None:
    tasks = [create(user, str(number)) for number in range(8)]
    gone = [task["id"] for task in tasks[::2] if store.delete_task(user, task["id"])]

    changes = follow(user, limit=limit)

    assert changes.tasks == tasks[1::2]
    assert changes.deleted == gone


def test_a_page_of_long_tasks_ends_earlier_and_says_that_there_is_more(user: str) -> None:
    # In bytes, not in characters; and a deleted one counts for nothing.
    for _ in range(4):
        create(user, "t" * 100, "\U0001f95b" * 100)
    store.delete_task(user, create(user)["id"])

    def count(max_bytes: int) -> tuple[int, int, bool]:
        page = store.list_changes(user, limit=100, max_bytes=max_bytes)
        return len(page.tasks), len(page.deleted), page.more

    assert count(1) == (1, 0, True)
    assert count(500) == (1, 0, True)
    assert count(501) == (2, 0, True)
    assert count(1500) == (3, 0, True)
    assert count(1501) == (4, 0, True)
    assert count(2001) == (4, 1, False)


def write(connection: psycopg.Connection, name: str, user: str, task: Task) -> None:
    """Run a statement of the store on a connection of the test's own."""
    statement = (SQL / "queries" / f"{name}.sql").read_bytes()
    assert connection.execute(statement, WRITES[name](user, task)).fetchone()


@pytest.mark.parametrize("name", WRITES)
def test_a_change_is_never_found_before_one_that_was_seen(
    user: str, connection: psycopg.Connection, name: str
) -> None:
    task, other = create(user), create(user, status="complete")
    with connection.transaction():
        connection.execute("SELECT")  # begun, so now() stands still from here on
        update(user, other, "seen")
        seen = store.list_changes(user, limit=100)
        write(connection, name, user, task)

    changes = store.list_changes(user, limit=100, after=seen.cursor)

    assert len(changes.tasks) + len(changes.deleted) == 1


@pytest.mark.slow
@pytest.mark.parametrize("first", WRITES)
@pytest.mark.parametrize("second", WRITES)
def test_writes_of_one_user_commit_in_the_order_of_their_stamps(
    user: str, database_url: str, connection: psycopg.Connection, first: str, second: str
) -> None:
    one, two = create(user), create(user, status="complete")
    start = store.list_changes(user, limit=100).cursor
    with (
        psycopg.connect(database_url, autocommit=True) as waiting,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(database_url) as holding,
    ):
        write(holding, first, user, one)
        written = pool.submit(write, waiting, second, user, two)
        blocked = "SELECT %s = ANY (pg_blocking_pids(%s))"
        pids = (holding.info.backend_pid, waiting.info.backend_pid)
        while connection.execute(blocked, pids).fetchone() == (False,):
            assert not written.done(), "it did not wait"
        assert store.list_changes(user, limit=100, after=start).cursor == start
        holding.commit()
        written.result(10)

    expected = None if first.startswith("create") else one["id"]
    page = store.list_changes(user, limit=1, after=start)
    assert page.more
    if expected is not None:
        assert page.cursor.id == expected
    page = store.list_changes(user, limit=1, after=page.cursor)
    assert (len(page.tasks) + len(page.deleted), page.more) == (1, False)


def test_a_mark_that_is_ahead_of_a_restored_backup_has_expired(
    user: str, connection: psycopg.Connection
) -> None:
    create(user)
    backup = store.get_clock(user)
    lost = create(user)
    cursor = store.list_changes(user, limit=100).cursor
    # Later, and of somebody else.
    create(f"other-{user}")
    store.delete_task(f"other-{user}", create(f"other-{user}")["id"])
    connection.execute("DELETE FROM tasks WHERE id = %s", (lost["id"],))
    assert not store.list_changes(user, limit=100, after=cursor).expired

    connection.execute("UPDATE users SET changed_at = %s WHERE id = %s", (backup, user))

    assert store.list_changes(user, limit=100, after=cursor).expired


@pytest.mark.parametrize("table", ["tasks", "deleted_tasks"])
def test_a_row_that_somebody_dated_past_the_clock_is_found_once(
    user: str, connection: psycopg.Connection, table: str
) -> None:
    create(user)
    if table == "tasks":
        statement = "INSERT INTO tasks (user_id, title, updated_at) VALUES (%s, 'x', '2100-01-01')"
    else:
        statement = "INSERT INTO deleted_tasks VALUES (%s, 1, '2100-01-01')"
    connection.execute(statement, (user,))

    changes = store.list_changes(user, limit=100)
    assert len(changes.tasks) + len(changes.deleted) == 2
    again = store.list_changes(user, limit=100, after=changes.cursor)

    assert (again.tasks, again.deleted, again.expired) == ([], [], False)


def test_a_task_that_somebody_dated_past_the_clock_is_changed_after_its_date(
    user: str, connection: psycopg.Connection
) -> None:
    changed, deleted = create(user), create(user)
    connection.execute("UPDATE tasks SET updated_at = '2100-01-01' WHERE user_id = %s", (user,))
    cursor = store.list_changes(user, limit=100).cursor

    update(user, changed, "y")
    store.delete_task(user, deleted["id"])

    changes = store.list_changes(user, limit=100, after=cursor)
    assert [task["title"] for task in changes.tasks] == ["y"]
    assert changes.deleted == [deleted["id"]]


def test_a_copy_that_is_not_finished_is_as_old_as_its_beginning(user: str) -> None:
    for _ in range(3):
        create(user)
    first = store.list_changes(user, limit=1)

    second = store.list_changes(user, limit=1, after=first.cursor)
    third = store.list_changes(user, limit=1, after=second.cursor)

    assert (second.more, third.more) == (True, False)
    assert first.cursor.in_sync_at == second.cursor.in_sync_at < third.cursor.in_sync_at


def test_tasks_that_nobody_has_changed_for_a_year_can_be_followed(
    user: str, connection: psycopg.Connection
) -> None:
    tasks = [create(user) for _ in range(3)]
    year = timedelta(days=365)
    connection.execute("UPDATE users SET changed_at = changed_at - %s WHERE id = %s", (year, user))
    connection.execute(
        "UPDATE tasks SET updated_at = updated_at - %s WHERE user_id = %s", (year, user)
    )

    changes = follow(user, limit=1)

    assert len(changes.tasks) == len(tasks)
    assert not store.list_changes(user, limit=1, after=changes.cursor).expired


def test_an_old_mark_is_renewed_where_nothing_has_changed(user: str) -> None:
    create(user)
    cursor = store.list_changes(user, limit=100).cursor
    old = cursor._replace(in_sync_at=cursor.in_sync_at - timedelta(days=1))

    renewed = store.list_changes(user, limit=100, after=old).cursor

    assert renewed.in_sync_at >= cursor.in_sync_at
    assert renewed[:3] == cursor[:3]


def test_a_delete_forgets_at_most_a_hundred_deletions_of_more_than_90_days_ago(
    user: str, connection: psycopg.Connection
) -> None:
    other = f"other-{user}"
    create(other)
    create(user)
    # The same ids and times for both users: only the owner is different in the key.
    connection.execute(
        "INSERT INTO deleted_tasks SELECT owner, n, now() - interval '91 days'"
        " FROM generate_series(1, 150) AS n, unnest(%s::text[]) AS owner"
        " UNION ALL SELECT owner, n, now() - interval '90 days'"
        " FROM generate_series(1, 5) AS n, unnest(%s::text[]) AS owner",
        ([user, other], [user, other]),
    )
    counts = []

    for _ in range(3):
        assert store.delete_task(user, create(user)["id"])
        counts.append(count_deleted(connection, user))

    assert counts == [50 + 5 + 1, 5 + 2, 5 + 3]
    assert count_deleted(connection, other) == 155


def count_deleted(connection: psycopg.Connection, user: str) -> int:
    query = "SELECT count(*) FROM deleted_tasks WHERE user_id = %s"
    return connection.execute(query, (user,)).fetchone()[0]
