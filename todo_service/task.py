"""The words for what the store returns: a task, its versions, and places in a user's lists.

Times are naive here, in UTC: so PostgreSQL's microseconds become JSON in a seventh of the time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

# A task as the API shows it.
Task = dict[str, Any]

# A time in UTC (RFC 3339). PostgreSQL keeps microseconds: no stored time has more digits.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,6}0*)?(?:[Zz]|[+-]00:00)")


class ListCursor(NamedTuple):
    """A place in a user's list, newest first: that of the task last seen."""

    created_at: datetime
    id: int

    @classmethod
    def of(cls, task: Task) -> ListCursor:
        return cls(task["created_at"], task["id"])


class ChangesCursor(NamedTuple):
    """How far a client's copy of a user's tasks has got.

    `changed_at` and `id` are the time and the task of the change last seen. `owner_since` is when
    the user's row was made; if the row has another time now, the user was erased since.
    `in_sync_at` is when the copy last held everything or, until it does, when it was begun.
    `changed_at` does not say how old the copy is: perhaps nothing has changed since.
    """

    changed_at: datetime
    id: int
    owner_since: datetime
    in_sync_at: datetime


class Versions(NamedTuple):
    """Versions that a task may have: one of `one_of` (None: any), and none of `none_of`. A version
    is named by its updated_at, with a time zone, as it is a parameter of a statement."""

    one_of: list[datetime] | None = None
    none_of: list[datetime] | None = None


ANY_VERSION = Versions()


class Result(NamedTuple):
    """What became of one entry of a push, and its task after the whole push, if there is one."""

    outcome: Literal[
        "created",
        "repeated",  # a create with a key that was sent before: the task that it made then
        "deleted since",  # the same, but that task is there no more
        "key used",  # a key that was sent before with another task
        "changed",
        "deleted",
        "modified",  # it has another version than the entry names
        "not found",
    ]
    task: Task | None = None


def parse_time(text: str) -> datetime | None:
    """A time in UTC as the service writes it, or any spelling of the same; None for other text."""
    if not _TIME.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).replace(tzinfo=UTC)
    except ValueError:  # such as the 30th of February
        return None
