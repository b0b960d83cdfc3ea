"""What a request may hold. Limits equal the CHECKs of sql/schema.sql; a test keeps them equal."""

from __future__ import annotations

import re
from collections.abc import Mapping
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

TITLE_LENGTH = 255
DESCRIPTION_LENGTH = 5000
# Bytes. The largest legal task is 5,255 code points of 12 bytes each, as pairs of \u escapes.
MAX_BODY = 64 * 1024
# Bytes of a push, and how many changes it may hold.
MAX_PUSH = 1024 * 1024
MAX_CHANGES = 100
STATUSES = ("incomplete", "complete")
MAX_LIMIT = 1000
# How many unknown fields of a task are named, and how many parameters of a query are looked at.
MAX_NAMED = 20


def _not_blank(message: str) -> validate.Validator:
    return validate.Predicate("strip", error=message)


def _storable(name: str) -> Any:
    """Refuse what PostgreSQL text cannot hold: U+0000 and lone surrogates."""

    def check(text: str) -> None:
        if not is_storable(text):
            raise ValidationError(f"{name} must not contain U+0000 or lone surrogates")

    return check


def is_storable(text: str) -> bool:
    """Whether PostgreSQL text can hold it: no U+0000, no lone surrogate."""
    return "\0" not in text and text.encode(errors="ignore").decode() == text


def _title(*, blank: str, required: bool) -> fields.String:
    return fields.String(
        required=required,
        error_messages={"required": blank, "null": blank, "invalid": "Title must be a string"},
        validate=[
            _not_blank(blank),
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
        if not data:
            raise ValidationError(
                "At least one field (title, description or status) must be provided"
            )


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

# Errors about a field's name, not its value.
_OF_A_NAME = frozenset({"Unknown field", "Unknown parameter", "Parameter given twice"})


def describe(error: ValidationError) -> str:
    """All faults, joined by "; ": first those of known fields, in the order of the schema.

    Faults of a name follow, with the name. Those in an array begin with the number of the item.
    """
    messages: dict[Any, Any] = (
        error.messages if isinstance(error.messages, dict) else {"": error.messages}
    )
    if all(isinstance(key, int) for key in messages):
        faults = [
            f"Item {number}: {fault}"
            for number, by_field in sorted(messages.items())
            for fault in _faults(by_field)
        ]
    else:
        faults = _faults(messages)
    # A field's name may hold what UTF-8 cannot: a lone surrogate is shown escaped.
    return "; ".join(faults).encode(errors="backslashreplace").decode()


def _faults(by_field: Mapping[str, list[str]]) -> list[str]:
    faults: list[str] = []
    of_names: list[str] = []
    for name, messages in by_field.items():
        for message in messages:
            if message in _OF_A_NAME:
                of_names.append(f"{message}: {name}")
            else:
                faults.append(message)
    return faults + sorted(of_names)
