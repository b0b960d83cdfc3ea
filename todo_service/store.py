"""Data access: one function a statement. The owner comes first and is part of every statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from todo_service.database import check, fetch_all, fetch_one, statement

# A task as the API shows it; its times are naive, in UTC. Those of parameters are aware.
Task = dict[str, Any]


class Position(NamedTuple):
    """A place in a user's list, newest first: that of the task last seen."""

    created_at: datetime
    id: int

    @classmethod
    def of(cls, task: Task) -> Position:
        return cls(task["created_at"].replace(tzinfo=UTC), task["id"])


class Mark(NamedTuple):
    """How far a client's copy of a user's tasks has got; all times are aware.

    `changed_at` and `id` are the time and the task of the change last seen. `owner_since` is when
    the user's row was made: another time means that the user was erased since. `in_sync_at` is when
    the copy last held everything or, until it does, when it was begun. The time of the change would
    not tell: perhaps nothing has changed since.
    """

    changed_at: datetime
    id: int
    owner_since: datetime
    in_sync_at: datetime


class Changes(NamedTuple):
    """What changed for a user after a mark, as of one instant.

    `tasks` are those that changed, as they are now, and `deleted` the ids of those that are gone,
    the oldest change first in both. `mark` is where to go on, where `more` of them wait; None is
    the beginning. `expired` means that the mark given holds no longer: the copy has to be begun
    anew.
    """

    tasks: list[Task]
    deleted: list[int]
    mark: Mark | None
    more: bool
    expired: bool


# So long it is known what was deleted; delete_task.sql waits an hour longer before it forgets.
MARK_LIFETIME = timedelta(days=90)

# A client that finds nothing new gets its own mark back, unless it is older than this.
_MARK_RENEWAL = timedelta(hours=1)

# So much text may come before the last change of a page, which is then about 1 MiB of JSON.
PAGE_BYTES = 1 << 20

_CHANGES = statement("list_changes")
_CLOCK = statement("get_clock")
_CREATE = statement("create_task")
_DELETE = statement("delete_task")
_DELETE_USER = statement("delete_user")
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
        rows = fetch_all(_LIST, (user_id, created_at, task_id, limit))
    else:
        rows = fetch_all(_LIST_BY_STATUS, (user_id, status, created_at, task_id, limit))
    return [_task(row) for row in rows]


def pages_of_tasks(
    user_id: str, *, size: int, after: Position | None = None, status: str | None = None
) -> Iterator[list[Task]]:
    """All tasks of the user from `after` on, at most `size` at a time: a statement a page."""
    while page := list_tasks(user_id, limit=size, after=after, status=status):
        yield page
        after = Position.of(page[-1])


def get_clock(user_id: str) -> datetime | None:
    """The time of the user's latest change, which every change moves on; None if there was none."""
    row = fetch_one(_CLOCK, (user_id,), repeatable=True)
    return None if row is None else row[0]


def list_changes(
    user_id: str, *, limit: int, after: Mark | None = None, max_bytes: int = PAGE_BYTES
) -> Changes:
    """At most `limit` changes of the user, oldest first, from the one after `after` on.

    Fewer where the texts are long: the page ends with the change that takes them past `max_bytes`.
    """
    rows = fetch_all(_CHANGES, _after(user_id, after, limit, max_bytes))
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
    return Changes(
        tasks=[task for task in found if task["title"] is not None],
        deleted=[task["id"] for task in found if task["title"] is None],
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


def update_task(
    user_id: str,
    task_id: int,
    changes: dict[str, str | None],
    *,
    versions: Sequence[datetime] | None = None,
) -> Task | None:
    """Change the given fields. With `versions`, only if the task last changed at one of them."""
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
            versions,
            versions,
        ),
    )
    return None if row is None else _task(row)


def delete_task(user_id: str, task_id: int, *, versions: Sequence[datetime] | None = None) -> bool:
    """Delete a task and say whether there was one. `versions` as in update_task."""
    parameters = (user_id, user_id, task_id, versions, versions, user_id, user_id, user_id)
    return fetch_one(_DELETE, parameters) is not None


def check_schema() -> None:
    """Run a statement that needs all tables and finds nothing; it fails where one is missing."""
    check(_CHANGES, _after("", None, 0, 0))


def delete_user(user_id: str) -> int | None:
    """Delete a user with all tasks and say how many there were; None if there is no such user."""
    row = fetch_one(_DELETE_USER, (user_id, user_id))
    return None if row is None else row[0]


def _after(user_id: str, mark: Mark | None, limit: int, max_bytes: int) -> Sequence[object]:
    """The parameters of list_changes."""
    time, task_id = mark[:2] if mark else ("-infinity", 0)
    changes = (user_id, time, task_id, limit + 1)
    known = (time, user_id, time, user_id, time)
    return (*changes, *changes, limit + 1, *known, limit, max_bytes, user_id)


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
