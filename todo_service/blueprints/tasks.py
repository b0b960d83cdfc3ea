"""The task routes: HTTP in, one call to the store, HTTP out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context, url_for
from werkzeug.exceptions import NotFound, PreconditionFailed, UnprocessableEntity

from todo_service import store
from todo_service.codec import encode, respond
from todo_service.errors import log_if_cut_short
from todo_service.incoming import (
    digest_of,
    read_body,
    read_idempotency_key,
    read_versions,
    unless_known,
    version_tag,
)
from todo_service.schemas import LIST_QUERY, NEW_TASK, TASK_CHANGES, Cursor, parse_task_id
from todo_service.store import Position, Task

# Rows a statement of an unlimited list: enough to make the statements' cost vanish, few enough
# that a page of the longest tasks is ten megabytes.
_STREAM_PAGE = 500

tasks = Blueprint("tasks", __name__, url_prefix="/api/<user_id:user_id>/tasks")


@tasks.get("")
def list_tasks(user_id: str) -> Response:
    query = _read_query(request.query_string)
    size: int = query["limit"] or _STREAM_PAGE
    status: str | None = query["status"]
    # One more than wanted tells whether there is more.
    rows = store.list_tasks(user_id, limit=size + 1, after=query["cursor"], status=status)
    if query["limit"] is None and len(rows) > size:
        chunks = log_if_cut_short(_chunks(user_id, rows[:size], status))
        return Response(stream_with_context(chunks), mimetype="application/json")
    response = respond(rows[:size])
    link = ""
    if len(rows) > size:
        link = f'<{_next_page(user_id, size, rows[size - 1], status)}>; rel="next"'
        response.headers["Link"] = link
    digest = hashlib.sha256(response.get_data() + link.encode())
    response.set_etag(digest.hexdigest()[:32], weak=True)
    return unless_known(response)


@tasks.post("")
def create_task(user_id: str) -> Response:
    data = NEW_TASK.load(read_body())
    key = read_idempotency_key()
    if key is not None:
        data |= {"key": key, "digest": digest_of(data)}
    created = store.create_task(user_id, **data)
    if created is None:
        raise UnprocessableEntity("Idempotency-Key was used before with another request body")
    task, replayed = created
    response = _answer(task, 201)
    response.headers["Location"] = f"{_path(user_id, request.root_path)}/{task['id']}"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@tasks.get("/<task_id:task_id>")
def get_task(user_id: str, task_id: str) -> Response:
    task = store.get_task(user_id, parse_task_id(task_id))
    if task is None:
        raise NotFound("Task not found")
    return unless_known(_answer(task))


@tasks.put("/<task_id:task_id>")
@tasks.patch("/<task_id:task_id>")
def update_task(user_id: str, task_id: str) -> Response:
    number = parse_task_id(task_id)
    return _update(user_id, number, TASK_CHANGES.load(read_body()))


@tasks.patch("/<task_id:task_id>/complete")
def complete_task(user_id: str, task_id: str) -> Response:
    return _update(user_id, parse_task_id(task_id), {"status": "complete"})


@tasks.patch("/<task_id:task_id>/incomplete")
def reopen_task(user_id: str, task_id: str) -> Response:
    return _update(user_id, parse_task_id(task_id), {"status": "incomplete"})


@tasks.delete("/<task_id:task_id>")
def delete_task(user_id: str, task_id: str) -> Response:
    number, versions = parse_task_id(task_id), read_versions()
    if not store.delete_task(user_id, number, versions=versions):
        _refuse(user_id, number, versions)
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


@lru_cache(maxsize=128)
def _read_query(_: bytes) -> Mapping[str, Any]:
    """What a list asks for, by the request's query string. Most clients send the same few."""
    query: Mapping[str, Any] = LIST_QUERY.load(request.args)
    return query


def _update(user_id: str, task_id: int, changes: dict[str, Any]) -> Response:
    versions = read_versions()
    task = store.update_task(user_id, task_id, changes, versions=versions)
    if task is None:
        _refuse(user_id, task_id, versions)
    return _answer(task)


def _refuse(user_id: str, task_id: int, versions: list[datetime] | None) -> NoReturn:
    """Nothing was changed: there is no such task, or If-Match names another version of it."""
    if versions is None or store.get_task(user_id, task_id) is None:
        raise NotFound("Task not found")
    raise PreconditionFailed("Task was modified")


def _answer(task: Task, status: int = 200) -> Response:
    response = respond(task, status)
    response.set_etag(version_tag(task["updated_at"]))
    return response


def _next_page(user_id: str, limit: int, last: Task, status: str | None) -> str:
    cursor = Cursor.encode(Position.of(last))
    query = {"limit": limit, "cursor": cursor} | ({"status": status} if status else {})
    return f"{_path(user_id, request.root_path)}?{urlencode(query)}"


@lru_cache(maxsize=1024)
def _path(user_id: str, _mount: str) -> str:
    """The path of a user's list, remembered: to build it takes as long as to check a task."""
    return url_for(".list_tasks", user_id=user_id)


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
