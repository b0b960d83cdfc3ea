"""What a request may hold. Limits equal the CHECKs of sql/schema.sql; a test keeps them equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from marshmallow import (
    RAISE,
    Schema,
    ValidationError,
    fields,
    pre_load,
    validate,
    validates_schema,
)
from werkzeug.datastructures import MultiDict

from todo_service.cursors import ChangesCursorField, ListCursorField
from todo_service.task import parse_time

TITLE_LENGTH = 255
DESCRIPTION_LENGTH = 5000
# Bytes. The largest legal task is 5,255 code points of 12 bytes each, as pairs of \u escapes.
MAX_BODY = 64 * 1024
# Bytes of a push, and how many changes it may hold.
MAX_PUSH = 1024 * 1024
MAX_CHANGES = 100
STATUSES = ("incomplete", "complete")
MAX_LIMIT = 1000
MAX_ID = 2**63 - 1
# How many unknown fields of a task, and how many entries of a push with faults, are named, and how
# many parameters of a query are looked at.
MAX_NAMED = 20

_KEY = re.compile("[!-~]{1,255}")


def _storable(name: str) -> Any:
    """Refuse what PostgreSQL text cannot hold: U+0000 and lone surrogates."""

    def check(text: str) -> None:
        if not is_storable(text):
            raise ValidationError(f"{name} must not contain U+0000 or lone surrogates")

    return check


def is_storable(text: str) -> bool:
    """Whether PostgreSQL text can hold it: no U+0000, no lone surrogate."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def is_key(text: str) -> bool:
    """Whether it can be an idempotency key: 1 to 255 visible ASCII characters."""
    return _KEY.fullmatch(text) is not None


def _title(*, blank: str, required: bool) -> fields.String:
    return fields.String(
        required=required,
        error_messages={"required": blank, "null": blank, "invalid": "Title must be a string"},
        validate=[
            validate.Predicate("strip", error=blank),  # not only white space
            validate.Length(max=TITLE_LENGTH, error="Title must be {max} characters or less"),
            _storable("Title"),
        ],
    )


def _description(**options: Any) -> fields.String:
    return fields.String(
        allow_none=True,
        error_messages={"invalid": "Description must be a string"},
        validate=[
            validate.Length(
                max=DESCRIPTION_LENGTH, error="Description must be {max} characters or less"
            ),
            _storable("Description"),
        ],
        **options,
    )


def _status(**options: Any) -> fields.String:
    message = "Invalid status value. Must be 'incomplete' or 'complete'"
    return fields.String(
        error_messages={"required": "Status is required", "null": message, "invalid": message},
        validate=validate.OneOf(STATUSES, error=message),
        **options,
    )


class Body(Schema):
    """What a body may hold. By itself, no field at all."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "Unknown field", "type": "Task must be a JSON object"}

    # Fields that may be sent, and are ignored.
    ignored: frozenset[str] = frozenset()

    @pre_load
    def drop_unknown_fields_past_the_limit(self, data: Any, **_: Any) -> Any:
        """The known fields, and MAX_NAMED unknown ones at most: each one takes time."""
        if not isinstance(data, dict):  # an item of an array, refused by what follows
            return data
        unknown = [name for name in data if name not in self.fields and name not in self.ignored]
        dropped = self.ignored.union(unknown[MAX_NAMED:])
        return {name: value for name, value in data.items() if name not in dropped}


class TaskBody(Body):
    """A task in a body. The fields that the server sets may be sent back, and are ignored."""

    ignored = frozenset({"id", "user_id", "created_at", "updated_at"})


class NewTask(TaskBody):
    title = _title(blank="Title is required", required=True)
    description = _description(load_default=None)
    status = _status(load_default="incomplete")


class StatusChange(Body):
    """What is changed in many tasks at once."""

    status = _status(required=True)


class TaskChanges(TaskBody):
    title = _title(blank="Title cannot be empty", required=False)
    description = _description()
    status = _status()

    @validates_schema(skip_on_field_errors=True)
    def require_a_field(self, data: Mapping[str, Any], **_: Any) -> None:
        if not data.keys() - {"id", "updated_at"}:
            raise ValidationError(
                "At least one field (title, description or status) must be provided"
            )


class TaskId(fields.Field[int]):
    """A number of JSON, not one in a string."""

    default_error_messages = dict.fromkeys(("required", "null", "invalid"), "Invalid task ID")

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if type(value) is not int or not 1 <= value <= MAX_ID:
            raise self.make_error("invalid")
        return value


class Key(fields.Field[str]):
    default_error_messages = dict.fromkeys(
        ("required", "null", "invalid"), "Key must be 1 to 255 visible ASCII characters"
    )

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        if not isinstance(value, str) or not is_key(value):
            raise self.make_error("invalid")
        return value


class Version(fields.Field[datetime]):
    default_error_messages = dict.fromkeys(
        ("null", "invalid"), "updated_at must be a time as the service gave it"
    )

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> datetime:
        time = parse_time(value) if isinstance(value, str) else None
        if time is None:
            raise self.make_error("invalid")
        return time


class PushedTask(NewTask):
    """A new task in a push."""

    key = Key(required=True)

    class Meta:
        fields = ("key", "title", "description", "status")  # in the order of their faults


class PushedChange(TaskChanges):
    """A change of a task in a push. Only if it has this version still, where one is sent."""

    ignored = frozenset({"user_id", "created_at", "key"})
    id = TaskId(required=True)
    updated_at = Version()

    class Meta:
        fields = ("id", "title", "description", "status", "updated_at")


class PushedDeletion(Body):
    """A deletion in a push. The other fields of a task may be sent, and are ignored."""

    ignored = frozenset({"user_id", "title", "description", "status", "created_at", "key"})
    id = TaskId(required=True)
    updated_at = Version()


class Limit(fields.Field[int]):
    default_error_messages = {"invalid": f"Limit must be an integer from 1 to {MAX_LIMIT}"}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        digits = value.lstrip("0")  # int() refuses more than 4,300 digits, zeros among them
        if not re.fullmatch("[1-9][0-9]{0,3}", digits) or int(digits) > MAX_LIMIT:
            raise self.make_error("invalid")
        return int(digits)


class Query(Schema):
    """What a query may hold. By itself, no parameter at all. Loads a MultiDict."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "Unknown parameter"}

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def refuse_repetition(self, _: Any, sent: MultiDict[str, str], **__: Any) -> None:
        repeated = [name for name, values in sent.lists() if len(values) > 1]
        if repeated:
            raise ValidationError({name: ["Parameter given twice"] for name in repeated})


class ListQuery(Query):
    status = _status(load_default=None)
    limit = Limit(load_default=None)
    cursor = ListCursorField(load_default=None)


class StatusQuery(Query):
    """Which tasks to change or delete at once. A forgotten filter must not mean all of them."""

    status = _status(required=True)


class ChangesQuery(Query):
    limit = Limit(load_default=500)
    cursor = ChangesCursorField(load_default=None)


NO_FIELDS = Body()
NEW_TASK = NewTask()
TASK_CHANGES = TaskChanges()
NO_QUERY = Query()
STATUS_CHANGE = StatusChange()
LIST_QUERY = ListQuery()
STATUS_QUERY = StatusQuery()
CHANGES_QUERY = ChangesQuery()
_PUSHED_TASK = PushedTask()
_PUSHED_CHANGE = PushedChange()
_PUSHED_DELETION = PushedDeletion()

# Errors about a field's name, not its value.
_OF_A_NAME = frozenset({"Unknown field", "Unknown parameter", "Parameter given twice"})


def load_push(body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is to be created or changed, and what is to be deleted; only a change has an `id`.

    Raises ValidationError with the faults of all entries, or of the first MAX_NAMED that have any.
    """
    tasks, deleted = body.get("tasks", []), body.get("deleted", [])
    faults = [
        f"{name.capitalize()} must be an array"
        for name, sent in (("tasks", tasks), ("deleted", deleted))
        if not isinstance(sent, list)
    ]
    unknown = sorted(body.keys() - {"tasks", "deleted"})[:MAX_NAMED]
    faults += [f"Unknown field: {name}" for name in unknown]
    if not faults and not 1 <= len(tasks) + len(deleted) <= MAX_CHANGES:
        faults = [f"Send 1 to {MAX_CHANGES} changes"]
    if faults:
        raise ValidationError(faults)
    entries = [
        (f"Task {number}", _PUSHED_CHANGE if "id" in entry else _PUSHED_TASK, entry)
        if isinstance(entry, dict)
        else (f"Task {number}", NO_FIELDS, entry)
        for number, entry in enumerate(tasks)
    ]
    entries += [(f"Deleted {n}", _PUSHED_DELETION, entry) for n, entry in enumerate(deleted)]
    loaded: list[dict[str, Any]] = []
    seen: set[int | str] = set()
    faulty = 0
    for name, schema, entry in entries:
        found: list[str] = []
        try:
            data = schema.load(entry)
        except ValidationError as error:
            found, data = _faults(error), error.valid_data or {}
        named = data.get("id") or data.get("key")
        if named in seen:
            found.append("Given twice")
        elif named is not None:
            seen.add(named)
        loaded.append(data)
        faults += [f"{name}: {fault}" for fault in found]
        faulty += bool(found)
        if faulty == MAX_NAMED:
            break
    if faults:
        raise ValidationError(faults)
    return loaded[: len(tasks)], loaded[len(tasks) :]


def describe(error: ValidationError) -> str:
    """All faults, joined by "; "."""
    # A field's name may hold what UTF-8 cannot: a lone surrogate is shown escaped.
    return "; ".join(_faults(error)).encode(errors="backslashreplace").decode()


def _faults(error: ValidationError) -> list[str]:
    """First those of known fields, in the order of the schema, then those of a name, with it."""
    if isinstance(error.messages, list):
        return error.messages
    faults: list[str] = []
    of_names: list[str] = []
    for name, messages in error.messages.items():
        for message in messages:
            if message in _OF_A_NAME:
                of_names.append(f"{message}: {name}")
            else:
                faults.append(message)
    return faults + sorted(of_names)
