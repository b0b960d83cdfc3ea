"""The task routes: HTTP in, one call to the store, HTTP out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context, url_for
from marshmallow import ValidationError
from werkzeug.exceptions import (
    BadRequest,
    NotFound,
    PreconditionFailed,
    RequestEntityTooLarge,
    UnprocessableEntity,
    UnsupportedMediaType,
)

from todo_service import store
from todo_service.codec import decode, encode, respond
from todo_service.schemas import (
    LIST_QUERY,
    MAX_BODY,
    NEW_TASK,
    TASK_CHANGES,
    Cursor,
    from_microseconds,
    parse_task_id,
    to_microseconds,
)
from todo_service.store import Position, Task

# Rows a statement of an unlimited list: enough to make the statements' cost vanish, few enough
# that one page of the longest tasks is a few megabytes.
_STREAM_PAGE = 500

# updated_at in microseconds, in hexadecimal: 14 digits last until the year 4253.
_TAG = re.compile("[1-9a-f][0-9a-f]{0,13}")

tasks = Blueprint("tasks", __name__, url_prefix="/api/<user_id:user_id>/tasks")


@tasks.get("")
def list_tasks(user_id: str) -> Response:
    query = LIST_QUERY.load(request.args)
    size: int = query["limit"] or _STREAM_PAGE
    status: str | None = query["status"]
    # One more than wanted tells whether there is more.
    rows = store.list_tasks(user_id, limit=size + 1, after=query["cursor"], status=status)
    if query["limit"] is None and len(rows) > size:
        chunks = stream_with_context(_chunks(user_id, rows[:size], status))
        return Response(chunks, mimetype="application/json")
    response = respond(rows[:size])
    link = ""
    if len(rows) > size:
        link = f'<{_next_page(user_id, size, rows[size - 1], status)}>; rel="next"'
        response.headers["Link"] = link
    digest = hashlib.sha256(response.get_data() + link.encode())
    response.set_etag(digest.hexdigest()[:32], weak=True)
    return _unless_known(response)


@tasks.post("")
def create_task(user_id: str) -> tuple[Response, int]:
    data = NEW_TASK.load(_body())
    key = _idempotency_key()
    if key is not None:
        data |= {"key": key, "digest": _digest(data)}
    created = store.create_task(user_id, **data)
    if created is None:
        raise UnprocessableEntity("Idempotency-Key was used before with another request body")
    task, replayed = created
    response = _answer(task)
    response.headers["Location"] = url_for(".get_task", user_id=user_id, task_id=task["id"])
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response, 201


@tasks.get("/<task_id>")
def get_task(user_id: str, task_id: str) -> Response:
    task = store.get_task(user_id, parse_task_id(task_id))
    if task is None:
        raise NotFound("Task not found")
    return _unless_known(_answer(task))


@tasks.put("/<task_id>")
@tasks.patch("/<task_id>")
def update_task(user_id: str, task_id: str) -> Response:
    number = parse_task_id(task_id)
    return _update(user_id, number, TASK_CHANGES.load(_body()))


@tasks.patch("/<task_id>/complete")
def complete_task(user_id: str, task_id: str) -> Response:
    return _update(user_id, parse_task_id(task_id), {"status": "complete"})


@tasks.patch("/<task_id>/incomplete")
def reopen_task(user_id: str, task_id: str) -> Response:
    return _update(user_id, parse_task_id(task_id), {"status": "incomplete"})


@tasks.delete("/<task_id>")
def delete_task(user_id: str, task_id: str) -> Response:
    number, versions = parse_task_id(task_id), _versions()
    if not store.delete_task(user_id, number, versions=versions):
        _refuse(user_id, number, versions)
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def _update(user_id: str, task_id: int, changes: dict[str, Any]) -> Response:
    versions = _versions()
    task = store.update_task(user_id, task_id, changes, versions=versions)
    if task is None:
        _refuse(user_id, task_id, versions)
    return _answer(task)


def _refuse(user_id: str, task_id: int, versions: list[datetime] | None) -> NoReturn:
    """Nothing was changed: there is no such task, or If-Match names another version of it."""
    if versions is None or store.get_task(user_id, task_id) is None:
        raise NotFound("Task not found")
    raise PreconditionFailed("Task was modified")


def _body() -> dict[str, Any]:
    """The request's JSON object. Raises ValidationError, or 400, 413 or 415 as an HTTPException."""
    raw = request.get_data(cache=False)
    if len(raw) > MAX_BODY:
        raise RequestEntityTooLarge
    if request.content_length not in (None, len(raw)):
        raise BadRequest("Request body was cut short")
    if raw and request.mimetype != "application/json":
        raise UnsupportedMediaType
    try:
        body = decode(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ValidationError("Request body must be a JSON object")
    return body


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None or re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        return key
    raise ValidationError("Idempotency-Key must be 1 to 255 visible ASCII characters")


def _digest(data: dict[str, Any]) -> bytes:
    """SHA-256 of a validated body; the order in which its fields were sent does not matter."""
    return hashlib.sha256(encode(sorted(data.items()))).digest()


def _answer(task: Task) -> Response:
    response = respond(task)
    response.set_etag(f"{to_microseconds(task['updated_at']):x}")
    return response


def _unless_known(response: Response) -> Response:
    """304 if the client already has this version (RFC 9110 section 13.1.2)."""
    if "If-None-Match" in request.headers:
        etag, _ = response.get_etag()
        if etag is not None and request.if_none_match.contains_weak(etag):
            response.status_code = 304
    return response


def _versions() -> list[datetime] | None:
    """The versions that If-Match allows; None if any will do (RFC 9110 section 13.1.1).

    A weak tag, or one that this service never made, matches nothing.
    """
    if "If-Match" not in request.headers or request.if_match.star_tag:
        return None
    return [
        from_microseconds(int(tag, 16))
        for tag in request.if_match.as_set()
        if tag and _TAG.fullmatch(tag)
    ]


def _next_page(user_id: str, limit: int, last: Task, status: str | None) -> str:
    cursor = Cursor.encode(Position.of(last))
    query = {"limit": limit, "cursor": cursor} | ({"status": status} if status else {})
    return f"{url_for('.list_tasks', user_id=user_id)}?{urlencode(query)}"


def _chunks(user_id: str, first: list[Task], status: str | None) -> Iterator[bytes]:
    """A JSON array, a page at a time, each by a statement of its own.

    A failure half-way raises; the server then cuts the connection before the closing bracket.
    """
    yield b"[" + encode(first)[1:-1]
    rest = store.pages_of_tasks(
        user_id, size=_STREAM_PAGE, after=Position.of(first[-1]), status=status
    )
    for page in rest:
        yield b"," + encode(page)[1:-1]
    yield b"]"
