"""Data access: one function per statement. The owner comes first, here and in every statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from todo_service.database import check, run, statement
from todo_service.task import ANY_VERSION, ChangesCursor, ListCursor, Task, Versions


class Changes(NamedTuple):
    """What changed for a user after a cursor, as of one instant.

    `tasks` are the changed tasks as they are now, `deleted` the ids of those that are gone; the
    oldest change comes first in both. `cursor` is where to go on (None: at the beginning), and
    `more` says whether there are more. `expired` means that the cursor which was given is no longer
    good: the client has to start again without one.
    """

    tasks: list[Task]
    deleted: list[int]
    cursor: ChangesCursor | None
    more: bool
    expired: bool


# Deleted tasks are remembered for this long; delete_task.sql forgets them an hour later.
CURSOR_LIFETIME = timedelta(days=90)

# A client that finds nothing new gets its own cursor back, unless it is older than this.
_CURSOR_RENEWAL = timedelta(hours=1)

# A page of a list or of changes ends where its JSON reaches about this many bytes: the service
# holds it in memory for as long as a slow client takes to read it.
PAGE_BYTES = 1024 * 1024

_COLUMNS = ("id", "user_id", "title", "description", "status", "created_at", "updated_at")

_CHANGES = statement("list_changes")
_CLOCK = statement("get_clock")
_CREATE = statement("create_task")
_DELETE = statement("delete_task")
_DELETE_MANY = statement("delete_tasks")
_DELETE_USER = statement("delete_user")
_GET = statement("get_task")
_LIST = statement("list_tasks")
_LIST_BY_STATUS = statement("list_tasks_by_status")
_UPDATE = statement("update_task")
_UPDATE_MANY = statement("update_tasks")


def list_tasks(
    user_id: str,
    *,
    limit: int,
    size: int,
    after: ListCursor | None = None,
    status: str | None = None,
) -> tuple[datetime | None, list[Task]]:
    """The user's clock, and at most `limit` tasks that follow `after`, newest first.

    Fewer if they are long: they end with the task with which their texts reach `size` bytes. The
    clock is None for a user who never had a task.
    """
    place = (_aware(after.created_at), after.id) if after else ("infinity", 0)
    if status is None:
        rows = run(_LIST, (user_id, user_id, *place, limit, size), retry=True)
    else:
        rows = run(_LIST_BY_STATUS, (user_id, user_id, status, *place, limit, size), retry=True)
    if not rows:
        return None, []
    owner, *tasks = [_task(row) for row in rows]
    return owner["updated_at"], tasks


def pages_of_tasks(user_id: str, *, limit: int, size: int) -> Iterator[list[Task]]:
    """All tasks of the user, newest first, one statement for each page; otherwise as list_tasks."""
    after = None
    while page := list_tasks(user_id, limit=limit, size=size, after=after)[1]:
        yield page
        after = ListCursor.of(page[-1])


def get_clock(user_id: str) -> datetime | None:
    """The time of the user's latest change, later after each one; None if there was none."""
    rows = run(_CLOCK, (user_id,), retry=True)
    return rows[0][0] if rows else None


def list_changes(
    user_id: str, *, limit: int, after: ChangesCursor | None = None, max_bytes: int = PAGE_BYTES
) -> Changes:
    """At most `limit` changes of the user that follow `after`, oldest first.

    Fewer where the texts are long: the page ends with the change that takes them past `max_bytes`.
    """
    rows = run(_CHANGES, _after(user_id, after, limit, max_bytes), retry=True)
    if not rows:
        return Changes([], [], cursor=None, more=False, expired=after is not None)
    owner_since, read_at = rows[0][:2]
    ahead, more = rows[-1][2:4]
    found = [_task(row[4:]) for row in rows if row[4] is not None]
    cursor = after
    if found:
        last = found[-1]
        in_sync_at = after.in_sync_at if after and more else read_at
        cursor = ChangesCursor(last["updated_at"], last["id"], owner_since, in_sync_at)
    elif after and read_at - after.in_sync_at > _CURSOR_RENEWAL:
        cursor = after._replace(in_sync_at=read_at)
    tasks = [task for task in found if task["title"] is not None]
    # A task that was deleted, and put back by hand later, was found twice: it is there.
    there = {task["id"] for task in tasks}
    return Changes(
        tasks=tasks,
        deleted=[task["id"] for task in found if task["title"] is None and task["id"] not in there],
        cursor=cursor,
        more=bool(more),
        expired=after is not None
        and (
            ahead
            or after.owner_since != owner_since
            or not -_CURSOR_RENEWAL < read_at - after.in_sync_at <= CURSOR_LIFETIME
        ),
    )


def get_task(user_id: str, task_id: int) -> Task | None:
    rows = run(_GET, (user_id, task_id), retry=True)
    return _task(rows[0]) if rows else None


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
    rows = run(
        _CREATE,
        (user_id, user_id, title, description, status, key, digest),
        # Without a key, a repetition could make a second task.
        retry=key is not None,
        turn=user_id,
    )
    if not rows:
        return None
    *columns, replays = rows[0]
    return _task(columns), replays > 0


def update_task(
    user_id: str,
    task_id: int,
    changes: dict[str, str | None],
    *,
    versions: Versions = ANY_VERSION,
) -> Task | None:
    """Change the given fields, if the task has one of the versions."""
    rows = run(
        _UPDATE,
        (
            user_id,
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
        turn=user_id,
    )
    return _task(rows[0]) if rows else None


def update_tasks(user_id: str, *, status: str, to: str) -> tuple[int, bool]:
    """Set the oldest tasks of one status to another: how many they were, and if there are more."""
    if status == to:
        return 0, False
    parameters = (user_id, user_id, status, to, user_id, status)
    count, more = run(_UPDATE_MANY, parameters, turn=user_id)[0]
    return count, more


def delete_task(user_id: str, task_id: int, *, versions: Versions = ANY_VERSION) -> bool:
    """Delete a task, if it has one of the versions, and return whether it had."""
    one_of, none_of = versions
    owner = (user_id, user_id, user_id)
    parameters = (user_id, user_id, task_id, one_of, one_of, none_of, *owner)
    return bool(run(_DELETE, parameters, turn=user_id))


def delete_tasks(user_id: str, *, status: str) -> tuple[int, bool]:
    """Delete the oldest tasks of one status: how many they were, and if there are more."""
    parameters = (user_id, user_id, status, user_id, status, user_id, user_id, user_id)
    count, more = run(_DELETE_MANY, parameters, turn=user_id)[0]
    return count, more


def check_schema() -> None:
    """Run a statement that needs all tables and finds nothing; it fails where one is missing."""
    check(*SCHEMA_CHECK)


def delete_user(user_id: str) -> int | None:
    """Delete a user with all tasks; returns how many there were, or None if there is no user."""
    rows = run(_DELETE_USER, (user_id, user_id))
    return rows[0][0] if rows else None


def _after(
    user_id: str, after: ChangesCursor | None, limit: int, max_bytes: int
) -> Sequence[object]:
    """The parameters of list_changes."""
    time, task_id = (_aware(after.changed_at), after.id) if after else ("-infinity", 0)
    place = (user_id, time, task_id)
    return (*place, *place, limit + 1, user_id, user_id, time, limit, max_bytes, user_id)


def _aware(time: datetime) -> datetime:
    """A time as a parameter; PostgreSQL would take a naive one for the session's time zone."""
    return time.replace(tzinfo=UTC)


def _task(row: Sequence[Any]) -> Task:
    return dict(zip(_COLUMNS, row, strict=True))


SCHEMA_CHECK = (_CHANGES, _after("", None, 0, 0))
