"""Data access: one function a statement. The owner comes first and is part of every statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from todo_service.database import check, fetch_all, fetch_one, statement
from todo_service.task import ANY_VERSION, Position, Task, Versions

_CREATE = statement("create_task")
_DELETE = statement("delete_task")
_DELETE_USER = statement("delete_user")
_GET = statement("get_task")
_LIST = statement("list_tasks")
_LIST_BY_STATUS = statement("list_tasks_by_status")
_UPDATE = statement("update_task")


def list_tasks(
    user_id: str,
    *,
    limit: int,
    size: int,
    after: Position | None = None,
    status: str | None = None,
) -> list[Task]:
    """At most `limit` tasks of the user, newest first, from the one after `after` on.

    Fewer if they are long: after the task with which their texts reach `size` bytes, no more come.
    """
    created_at, task_id = after or ("infinity", 0)
    if status is None:
        rows = fetch_all(_LIST, (user_id, created_at, task_id, limit, size))
    else:
        rows = fetch_all(_LIST_BY_STATUS, (user_id, status, created_at, task_id, limit, size))
    return [_task(row) for row in rows]


def pages_of_tasks(user_id: str, *, limit: int, size: int) -> Iterator[list[Task]]:
    """All tasks of the user, newest first, a statement a page; `limit` and `size` as above."""
    after = None
    while page := list_tasks(user_id, limit=limit, size=size, after=after):
        yield page
        after = Position.of(page[-1])


def get_task(user_id: str, task_id: int) -> Task | None:
    row = fetch_one(_GET, (user_id, task_id), repeatable=True)
    return None if row is None else _task(row)


def create_task(
    user_id: str,
    *,
    title: str,
    description: str | None,
    status: str,
    key: str | None = None,
    digest: bytes | None = None,
) -> tuple[Task, bool] | None:
    """Create a task, or find the one that the same idempotency key has made before.

    Returns the task and whether it was there already; None if the key came with another digest.
    """
    row = fetch_one(
        _CREATE,
        (user_id, user_id, title, description, status, key, digest),
        # Without a key, a repetition could make a second task.
        repeatable=key is not None,
    )
    if row is None:
        return None
    *columns, replays = row
    return _task(columns), replays > 0


def update_task(
    user_id: str,
    task_id: int,
    changes: dict[str, str | None],
    *,
    versions: Versions = ANY_VERSION,
) -> Task | None:
    """Change the given fields, if the task is of one of the versions."""
    row = fetch_one(
        _UPDATE,
        (
            changes.get("title"),
            "description" in changes,
            changes.get("description"),
            changes.get("status"),
            user_id,
            task_id,
            versions.one_of,
            versions.one_of,
            versions.none_of,
        ),
    )
    return None if row is None else _task(row)


def delete_task(user_id: str, task_id: int, *, versions: Versions = ANY_VERSION) -> bool:
    """Delete a task, if it is of one of the versions, and say whether it was."""
    one_of, none_of = versions
    return fetch_one(_DELETE, (user_id, task_id, one_of, one_of, none_of)) is not None


def check_schema() -> None:
    """Run a statement that finds nothing; it fails where the database or the schema is missing."""
    check(_GET, ("", 0))


def delete_user(user_id: str) -> int | None:
    """Delete a user with all tasks and say how many there were; None if there is no such user."""
    row = fetch_one(_DELETE_USER, (user_id, user_id))
    return None if row is None else row[0]


def _task(row: Sequence[Any]) -> Task:
    # By hand: psycopg's dict_row would add a twentieth to the time of a list of a hundred.
    task_id, user_id, title, description, status, created_at, updated_at = row
    return {
        "id": task_id,
        "user_id": user_id,
        "title": title,
        "description": description,
        "status": status,
        "created_at": created_at,
        "updated_at": updated_at,
    }
