"""The words for what the store returns: a task, its versions, and places in a user's lists.

Times are naive here, in UTC: so PostgreSQL's microseconds become JSON in a seventh of the time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

# A task as the API shows it.
Task = dict[str, Any]


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
