"""Data access: one function a statement. The owner comes first and is part of every statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from todo_service.database import check, fetch_all, fetch_one, statement
from todo_service.task import ANY_VERSION, Mark, Position, Task, Versions


class Changes(NamedTuple):
    """What changed for a user after a mark, as of one instant.

    `tasks` are the changed tasks as they are now, `deleted` the ids of those that are gone; the
    oldest change comes first in both. `mark` is where to go on (None: at the beginning), and `more`
    says whether there are more. `expired` means that the mark which was given is no longer good:
    the client has to start again without one.
    """

    tasks: list[Task]
    deleted: list[int]
    mark: Mark | None
    more: bool
    expired: bool


# Deleted tasks are remembered for this long; delete_task.sql forgets them an hour later.
MARK_LIFETIME = timedelta(days=90)

# A client that finds nothing new gets its own mark back, unless it is older than this.
_MARK_RENEWAL = timedelta(hours=1)

# Bytes of text that may come before the last change of a page, which then has about 1 MiB of JSON.
PAGE_BYTES = 1 << 20

_CHANGES = statement("list_changes")
_CLOCK = statement("get_clock")
_CREATE = statement("create_task")
_CREATE_MANY = statement("create_tasks")
_DELETE = statement("delete_task")
_DELETE_MANY = statement("delete_tasks")
_DELETE_USER = statement("delete_user")
_GET = statement("get_task")
_LIST = statement("list_tasks")
_LIST_BY_STATUS = statement("list_tasks_by_status")
_LIST_CREATED_AT = statement("list_tasks_created_at")
_UPDATE = statement("update_task")
_UPDATE_MANY = statement("update_tasks")


def list_tasks(
    user_id: str,
    *,
    limit: int,
    size: int,
    after: Position | None = None,
    status: str | None = None,
) -> tuple[datetime | None, list[Task]]:
    """The user's clock, and at most `limit` tasks that follow `after`, newest first.

    Fewer if they are long: they end with the task with which their texts reach `size` bytes. The
    clock is None for a user who never had a task.
    """
    place = after or ("infinity", 0)
    if status is None:
        rows = fetch_all(_LIST, (user_id, user_id, *place, limit, size), repeatable=True)
    else:
        parameters = (user_id, user_id, status, *place, limit, size)
        rows = fetch_all(_LIST_BY_STATUS, parameters, repeatable=True)
    if not rows:
        return None, []
    owner, *tasks = [_task(row) for row in rows]
    return owner["updated_at"], tasks


def pages_of_tasks(user_id: str, *, limit: int, size: int) -> Iterator[list[Task]]:
    """All tasks of the user, newest first, one statement for each page; otherwise as list_tasks."""
    after = None
    while page := list_tasks(user_id, limit=limit, size=size, after=after)[1]:
        yield page
        after = Position.of(page[-1])


def get_clock(user_id: str) -> datetime | None:
    """The time of the user's latest change, later after each one; None if there was none."""
    row = fetch_one(_CLOCK, (user_id,), repeatable=True)
    return None if row is None else row[0]


def list_changes(
    user_id: str, *, limit: int, after: Mark | None = None, max_bytes: int = PAGE_BYTES
) -> Changes:
    """At most `limit` changes of the user that follow `after`, oldest first.

    Fewer where the texts are long: the page ends with the change that takes them past `max_bytes`.
    """
    rows = fetch_all(_CHANGES, _after(user_id, after, limit, max_bytes), repeatable=True)
    if not rows:
        return Changes([], [], mark=None, more=False, expired=after is not None)
    owner_since, read_at = (moment.replace(tzinfo=UTC) for moment in rows[0][:2])
    ahead, more = rows[-1][2:4]
    found = [_task(row[4:]) for row in rows if row[4] is not None]
    mark = after
    if found:
        last = found[-1]
        in_sync_at = after.in_sync_at if after and more else read_at
        mark = Mark(last["updated_at"].replace(tzinfo=UTC), last["id"], owner_since, in_sync_at)
    elif after and read_at - after.in_sync_at > _MARK_RENEWAL:
        mark = after._replace(in_sync_at=read_at)
    tasks = [task for task in found if task["title"] is not None]
    # A task that was deleted, and put back by hand later, was found twice: it is there.
    there = {task["id"] for task in tasks}
    return Changes(
        tasks=tasks,
        deleted=[task["id"] for task in found if task["title"] is None and task["id"] not in there],
        mark=mark,
        more=bool(more),
        expired=after is not None
        and (
            ahead or after.owner_since != owner_since or read_at - after.in_sync_at > MARK_LIFETIME
        ),
    )


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


def create_tasks(
    user_id: str,
    tasks: Sequence[Mapping[str, str | None]],
    *,
    key: str | None = None,
    digest: bytes | None = None,
) -> tuple[list[Task], bool] | None:
    """Create all of the tasks, or find those that the same idempotency key has made before.

    They come in the order given; of those made before, only the ones that still exist. Otherwise
    as create_task.
    """
    columns = [[task[name] for task in tasks] for name in ("title", "description", "status")]
    parameters = (user_id, *columns, user_id, key, digest, user_id)
    rows = fetch_all(_CREATE_MANY, parameters, repeatable=key is not None)
    if not rows:
        return None
    if rows[0][-1] == 0:
        return [_task(row[:-1]) for row in rows], False
    created_at = rows[0][5].replace(tzinfo=UTC)
    rows = fetch_all(_LIST_CREATED_AT, (user_id, created_at), repeatable=True)
    return [_task(row) for row in rows], True


def update_task(
    user_id: str,
    task_id: int,
    changes: dict[str, str | None],
    *,
    versions: Versions = ANY_VERSION,
) -> Task | None:
    """Change the given fields, if the task has one of the versions."""
    row = fetch_one(
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
        repeatable=False,
    )
    return None if row is None else _task(row)


def update_tasks(user_id: str, *, status: str, to: str) -> int:
    """Set all tasks of one status to another, and return how many there were."""
    row = fetch_one(_UPDATE_MANY, (user_id, to, user_id, status), repeatable=False)
    return 0 if row is None else row[0]


def delete_task(user_id: str, task_id: int, *, versions: Versions = ANY_VERSION) -> bool:
    """Delete a task, if it has one of the versions, and return whether it had."""
    one_of, none_of = versions
    owner = (user_id, user_id, user_id)
    parameters = (user_id, user_id, task_id, one_of, one_of, none_of, *owner)
    return fetch_one(_DELETE, parameters, repeatable=False) is not None


def delete_tasks(user_id: str, *, status: str) -> int:
    """Delete all tasks of one status, and return how many there were."""
    parameters = (user_id, user_id, status, user_id, user_id, user_id)
    row = fetch_one(_DELETE_MANY, parameters, repeatable=False)
    return 0 if row is None else row[0]


def check_schema() -> None:
    """Run a statement that needs all tables and finds nothing; it fails where one is missing."""
    check(*SCHEMA_CHECK)


def delete_user(user_id: str) -> int | None:
    """Delete a user with all tasks; returns how many there were, or None if there is no user."""
    row = fetch_one(_DELETE_USER, (user_id, user_id), repeatable=False)
    return None if row is None else row[0]


def _after(user_id: str, mark: Mark | None, limit: int, max_bytes: int) -> Sequence[object]:
    """The parameters of list_changes."""
    time, task_id = mark[:2] if mark else ("-infinity", 0)
    place = (user_id, time, task_id)
    return (*place, *place, limit + 1, user_id, user_id, time, limit, max_bytes, user_id)


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


SCHEMA_CHECK = (_CHANGES, _after("", None, 0, 0))
