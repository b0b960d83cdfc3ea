"""What a task is, where it stands in a list, and which version of it is meant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

# A task as the API shows it. Its times are naive, in UTC; times in parameters are aware.
Task = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


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
    is named by the time of the change that made it."""

    one_of: list[datetime] | None = None
    none_of: list[datetime] | None = None


ANY_VERSION = Versions()


def version_of(task: Task) -> str:
    """The version of a task, as its ETag holds it: updated_at in microseconds, in hexadecimal."""
    return version_at(task["updated_at"])


def version_at(time: datetime) -> str:
    """The version that a change at this time has made; the time is naive, in UTC."""
    return f"{to_microseconds(time.replace(tzinfo=UTC)):x}"


def to_microseconds(time: datetime) -> int:
    """Microseconds since 1970, the resolution of PostgreSQL's timestamptz."""
    return (time - _EPOCH) // _MICROSECOND


def from_microseconds(count: int) -> datetime:
    """The inverse of to_microseconds. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=count)
