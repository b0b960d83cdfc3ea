"""Places in a user's list and changes as opaque tokens.

A token ends in a check sum, which refuses damaged and made-up ones, and those of another kind. It
needs no secret: a cursor only says where to go on among the tasks of the user who sends it.
"""

from __future__ import annotations

import base64
import struct
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

from marshmallow import fields

from todo_service.task import ChangesCursor, ListCursor

_LIST = struct.Struct(">qq")
_CHANGES = struct.Struct(">qqqq")
_CHECK_SUM_BYTES = 8

_EPOCH = datetime(1970, 1, 1)


def encode_list_cursor(cursor: ListCursor) -> str:
    return _seal(_LIST.pack(_to_microseconds(cursor.created_at), cursor.id), b"list")


def encode_changes_cursor(cursor: ChangesCursor | None) -> str:
    """The beginning, None, is all zeros."""
    if cursor is None:
        return _seal(_CHANGES.pack(0, 0, 0, 0), b"changes")
    times = (cursor.changed_at, cursor.owner_since, cursor.in_sync_at)
    return _seal(_CHANGES.pack(cursor.id, *map(_to_microseconds, times)), b"changes")


class ListCursorField(fields.Field[ListCursor]):
    default_error_messages = {"invalid": "Invalid cursor"}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> ListCursor:
        try:
            created_at, task_id = _LIST.unpack(_unseal(value, b"list"))
            return ListCursor(_from_microseconds(created_at), task_id)
        except (ValueError, OverflowError, struct.error):
            raise self.make_error("invalid") from None


class ChangesCursorField(fields.Field[ChangesCursor | None]):
    default_error_messages = {"invalid": "Invalid cursor"}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> ChangesCursor | None:
        try:
            task_id, *times = _CHANGES.unpack(_unseal(value, b"changes"))
            if task_id == 0:
                return None
            changed_at, owner_since, in_sync_at = map(_from_microseconds, times)
            return ChangesCursor(changed_at, task_id, owner_since, in_sync_at)
        except (ValueError, OverflowError, struct.error):
            raise self.make_error("invalid") from None


def _seal(body: bytes, kind: bytes) -> str:
    return base64.urlsafe_b64encode(body + _check_sum(body, kind)).decode()


def _unseal(token: str, kind: bytes) -> bytes:
    """What _seal was given for this token and kind. Raises ValueError for anything else."""
    raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    body = raw[:-_CHECK_SUM_BYTES]
    if raw[-_CHECK_SUM_BYTES:] != _check_sum(body, kind):
        raise ValueError
    return body


def _check_sum(body: bytes, kind: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECK_SUM_BYTES, person=b"todo " + kind).digest()


def _to_microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _from_microseconds(count: int) -> datetime:
    """Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=count)
