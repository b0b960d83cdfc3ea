"""Data access: one function a statement. The owner comes first and is part of every statement."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from todo_service.database import check, fetch_all, fetch_one, statement

# A row is the task as the API shows it: its columns in that order, by name.
Task = dict[str, Any]


class Position(NamedTuple):
    """A place in a user's list, newest first: that of the task last seen."""

    created_at: datetime
    id: int


_CREATE = statement("create_task")
_DELETE = statement("delete_task")
_GET = statement("get_task")
_LIST = statement("list_tasks")
_LIST_BY_STATUS = statement("list_tasks_by_status")
_UPDATE = statement("update_task")


def list_tasks(
    user_id: str, *, limit: int, after: Position | None = None, status: str | None = None
) -> list[Task]:
    """At most `limit` tasks of the user, newest first, from the one after `after` on."""
    created_at, task_id = after or ("infinity", 0)
    if status is None:
        return fetch_all(_LIST, (user_id, created_at, task_id, limit))
    return fetch_all(_LIST_BY_STATUS, (user_id, status, created_at, task_id, limit))


def get_task(user_id: str, task_id: int) -> Task | None:
    return fetch_one(_GET, (user_id, task_id))


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
    row = fetch_one(_CREATE, (user_id, user_id, title, description, status, key, digest))
    if row is None:
        return None
    replays = row.pop("idempotency_replays")
    return row, replays > 0


def update_task(
    user_id: str,
    task_id: int,
    changes: dict[str, str | None],
    *,
    versions: Sequence[datetime] | None = None,
) -> Task | None:
    """Change the given fields. With `versions`, only if the task last changed at one of them."""
    return fetch_one(
        _UPDATE,
        (
            changes.get("title"),
            "description" in changes,
            changes.get("description"),
            changes.get("status"),
            user_id,
            task_id,
            versions,
            versions,
        ),
    )


def delete_task(user_id: str, task_id: int, *, versions: Sequence[datetime] | None = None) -> bool:
    """Delete a task and say whether there was one. `versions` as in update_task."""
    return fetch_one(_DELETE, (user_id, task_id, versions, versions)) is not None


def check_schema() -> None:
    """Run a statement that finds nothing; it fails where the database or the schema is missing."""
    check(_GET, ("", 0))
