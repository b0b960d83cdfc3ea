"""Data access: one function per statement. The owner comes first, here and in every statement."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson
from psycopg.types.json import Json

from todo_service.database import CHECK_LIMIT, check, run, statement
from todo_service.task import ANY_VERSION, ChangesCursor, ListCursor, Result, Task, Versions


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


_CHANGES = statement("list_changes")
_CLOCK = statement("get_clock")
_CREATE = statement("create_task")
_DELETE = statement("delete_task")
_DELETE_MANY = statement("delete_tasks")
_DELETE_USER = statement("delete_user")
_GET = statement("get_task")
_GET_MANY = statement("get_tasks")
_LIST = statement("list_tasks")
_LIST_BY_STATUS = statement("list_tasks_by_status")
_PUSH = statement("push_changes")
_UPDATE = statement("update_task")
_UPDATE_MANY = statement("update_tasks")

MISSING_RIGHTS = statement("missing_rights", "doctor")


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


def get_tasks(user_id: str, task_ids: list[int]) -> dict[int, Task]:
    """Those of the tasks that are there, by their ids."""
    rows = run(_GET_MANY, (user_id, task_ids), retry=True) if task_ids else []
    return {row[0]: _task(row) for row in rows}


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
    rows = run(_CHANGES, _parameters_of_changes(user_id, after, limit, max_bytes), retry=True)
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


def create_task(user_id: str, *, title: str, description: str | None, status: str) -> Task:
    parameters = (user_id, user_id, title, description, status)
    return _task(run(_CREATE, parameters, turn=user_id)[0])


def create_task_once(user_id: str, *, key: str, digest: bytes, **fields: str | None) -> Result:
    """Create a task, unless a create with the same idempotency key was sent before."""
    task = {**fields, "key": key, "digest": digest}
    return push_changes(user_id, [task], [], retry=True)[0][0]


def push_changes(
    user_id: str,
    tasks: Sequence[Mapping[str, Any]],
    deleted: Sequence[Mapping[str, Any]],
    *,
    retry: bool = False,
) -> tuple[list[Result], list[Result]]:
    """Create and change tasks, and delete others, together or not at all.

    An entry with an `id` is a change of that task, and one without is a new task, with a `key` and
    a `digest`. A change or a deletion with `updated_at` is done if the task still has that version.
    Returns what became of each entry of both lists. Not repeated by itself unless told so: the
    second run would find other versions than the first.
    """
    new = [
        {**task, "digest": task["digest"].hex(), "number": number}
        for number, task in enumerate(tasks)
        if "id" not in task
    ]
    changes = [{**task, "describes": "description" in task} for task in tasks if "id" in task]
    keys = [task["key"] for task in new]
    changed_ids = [task["id"] for task in changes]
    deleted_ids = [task["id"] for task in deleted]
    rows = run(
        _PUSH,
        (
            *(user_id, bool(new), user_id, _json(new), user_id),
            *(_json(changes), user_id, changed_ids, _json(deleted), user_id, deleted_ids),
            *(user_id, user_id, user_id, user_id, user_id, user_id, keys),
        ),
        retry=retry,
        turn=user_id,
    )
    claims = {row[0]: row[1:4] for row in rows if row[0] is not None}
    done = {row[3]: _task(row[3:]) for row in rows if row[4] is not None}
    gone = {row[3] for row in rows if row[0] is None and row[4] is None}
    created = {task_id for _, replays, task_id in claims.values() if replays == 0}
    # As they are now: the statement saw them as they were before it waited for others.
    asked = {task_id for *_, task_id in claims.values()}.union(changed_ids, deleted_ids)
    known = get_tasks(user_id, list(asked - done.keys() - gone)) | done
    of_tasks = [
        _of_change(task, known, done.keys(), created)
        if "id" in task
        else _of_new(task["digest"], claims[task["key"]], known)
        for task in tasks
    ]
    return of_tasks, [_of_change(task, known, gone, created) for task in deleted]


def _of_new(digest: bytes, claim: Sequence[Any], known: Mapping[int, Task]) -> Result:
    first_digest, replays, task_id = claim
    task = known.get(task_id)
    if replays == 0:
        return Result("created", task)
    if digest != first_digest:
        return Result("key used", task)
    return Result("deleted since" if task is None else "repeated", task)


def _of_change(
    entry: Mapping[str, Any], known: Mapping[int, Task], done: Set[int], created: Set[int]
) -> Result:
    """What became of a change or a deletion; `created` are the ids that this push has given."""
    task = known.get(entry["id"])
    if entry["id"] in created or (task is None and entry["id"] not in done):
        return Result("not found")
    if entry["id"] in done:
        return Result("deleted" if task is None else "changed", task)
    return Result("modified", task) if "updated_at" in entry else Result("not found")


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


def check_schema() -> list[str]:
    """The rights that are missing, if the schema is in place; fails if that is not."""
    started = time.monotonic()
    check(*SCHEMA_CHECK, limit=CHECK_LIMIT)
    # Together they take no longer than one that waits as long as it may: twice the limit.
    left = CHECK_LIMIT - (time.monotonic() - started) / 2
    return [row[0] for row in check(MISSING_RIGHTS, (), limit=left)]


def missing_rights() -> list[str]:
    """The rights that the role in DATABASE_URL lacks, each as "INSERT, UPDATE ON tasks"."""
    return [row[0] for row in run(MISSING_RIGHTS, ())]


def delete_user(user_id: str) -> int | None:
    """Delete a user with all tasks; returns how many there were, or None if there is no user."""
    rows = run(_DELETE_USER, (user_id, user_id))
    return rows[0][0] if rows else None


def _parameters_of_changes(
    user_id: str, after: ChangesCursor | None, limit: int, max_bytes: int
) -> Sequence[object]:
    """The parameters of list_changes."""
    time, task_id = (_aware(after.changed_at), after.id) if after else ("-infinity", 0)
    place = (user_id, time, task_id)
    return (*place, *place, limit + 1, user_id, user_id, time, limit, max_bytes, user_id)


def _aware(time: datetime) -> datetime:
    """A time as a parameter; PostgreSQL would take a naive one for the session's time zone."""
    return time.replace(tzinfo=UTC)


def _json(entries: Sequence[Mapping[str, Any]]) -> Json:
    """Entries as one parameter: with an array per column, each mix of nulls would be prepared."""
    return Json(entries, dumps=orjson.dumps)


def _task(row: Sequence[Any]) -> Task:
    # By hand: dict(zip(...)) would add a tenth to the time of a list of a hundred.
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


SCHEMA_CHECK = (_CHANGES, _parameters_of_changes("", None, 0, 0))
