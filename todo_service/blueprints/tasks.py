"""The task routes: HTTP in, one call to the store, HTTP out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl, urlencode
from zlib import crc32

from flask import Blueprint, Response, request, stream_with_context, url_for
from werkzeug.exceptions import Gone, NotFound, PreconditionFailed, UnprocessableEntity
from werkzeug.urls import iri_to_uri

from todo_service import store
from todo_service.errors import log_if_cut_short
from todo_service.http import (
    digest_of,
    encode,
    read_body,
    read_idempotency_key,
    read_versions,
    respond,
    respond_encoded,
    unless_known,
)
from todo_service.routing import parse_task_id
from todo_service.schemas import (
    CHANGES_QUERY,
    LIST_QUERY,
    NEW_TASK,
    TASK_CHANGES,
    ChangesCursor,
    Cursor,
)
from todo_service.task import Position, Task, version_at, version_of

# A page ends where its JSON reaches this many bytes: a slow client makes the service hold one page.
_PAGE_BYTES = 1024 * 1024
# The pieces of a list that is streamed: tasks and bytes. Of a piece, three copies are held for a
# moment: the page, what is handed to gunicorn, and the chunk that gunicorn makes of it.
_PIECE_TASKS = 500
_PIECE_BYTES = 256 * 1024

tasks = Blueprint("tasks", __name__, url_prefix="/api/<user_id:user_id>/tasks")


@tasks.before_request
def read_task_id() -> None:
    """Give the views a number; a bad one is a 400, but only after token and owner were checked."""
    arguments = request.view_args
    if arguments and "task_id" in arguments:
        arguments["task_id"] = parse_task_id(arguments["task_id"])


@tasks.get("")
def list_tasks(user_id: str) -> Response:
    query = _read_query(request.query_string)
    if "If-None-Match" in request.headers:
        known = unless_known(_tag(Response(), store.get_clock(user_id)))
        if known.status_code == 304:
            return known
    limit: int | None = query["limit"]
    status: str | None = query["status"]
    if limit is None:
        page = _read_page(user_id, _PIECE_TASKS, _PIECE_BYTES, query["cursor"], status)
        if page.more:
            pieces = log_if_cut_short(_stream(user_id, page, status))
            whole = Response(stream_with_context(pieces), mimetype="application/json")
            return _tag(whole, page.clock)
    else:
        page = _read_page(user_id, limit, _PAGE_BYTES, query["cursor"], status)
    response = _tag(respond_encoded(page.body), page.clock)
    if page.more:
        response.headers["Link"] = f'<{_next_page(user_id, query, page.last)}>; rel="next"'
    return response


@tasks.get("/changes")
def list_changes(user_id: str) -> Response:
    query = CHANGES_QUERY.load(_parameters(request.query_string))
    limit = query["limit"]
    while True:
        changes = store.list_changes(user_id, limit=limit, after=query["cursor"])
        if changes.expired:
            raise Gone("Cursor has expired")
        body = encode(
            {
                "tasks": changes.tasks,
                "deleted": changes.deleted,
                "cursor": ChangesCursor.encode(changes.mark),
                "more": changes.more,
            }
        )
        if len(body) <= 1.25 * _PAGE_BYTES or limit == 1:
            return respond_encoded(body)
        # Texts full of what JSON escapes: up to six times as long here as in the database.
        count = len(changes.tasks) + len(changes.deleted)
        limit = max(1, count * _PAGE_BYTES // len(body))


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
    response.headers["Location"] = _path(".get_task", user_id=user_id, task_id=task["id"])
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@tasks.get("/<task_id:task_id>")
def get_task(user_id: str, task_id: int) -> Response:
    task = store.get_task(user_id, task_id)
    if task is None:
        raise NotFound("Task not found")
    return unless_known(_answer(task))


@tasks.put("/<task_id:task_id>")
@tasks.patch("/<task_id:task_id>")
def update_task(user_id: str, task_id: int) -> Response:
    return _update(user_id, task_id, TASK_CHANGES.load(read_body()))


@tasks.patch("/<task_id:task_id>/complete")
def complete_task(user_id: str, task_id: int) -> Response:
    return _update(user_id, task_id, {"status": "complete"})


@tasks.patch("/<task_id:task_id>/incomplete")
def reopen_task(user_id: str, task_id: int) -> Response:
    return _update(user_id, task_id, {"status": "incomplete"})


@tasks.delete("/<task_id:task_id>")
def delete_task(user_id: str, task_id: int) -> Response:
    versions = read_versions()
    if not store.delete_task(user_id, task_id, versions=versions):
        _refuse(user_id, task_id, versions)
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


@lru_cache(maxsize=128)
def _read_query(query_string: bytes) -> Mapping[str, Any]:
    """What a list's query asks for. Remembered, since most clients send the same few."""
    query: Mapping[str, Any] = LIST_QUERY.load(_parameters(query_string))
    return query


def _parameters(query_string: bytes) -> dict[str, str]:
    return dict(parse_qsl(query_string.decode(errors="replace"), keep_blank_values=True))


def _tag(response: Response, clock: datetime | None) -> Response:
    """A list's tag: weak, because the same tasks may come in other pieces; new with each change of
    any of the user's tasks."""
    version = version_at(clock) if clock else "0"
    response.set_etag(f"{version}-{crc32(request.query_string):x}", weak=True)
    return response


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
    response.set_etag(version_of(task))
    return response


class _Page(NamedTuple):
    """Tasks as a JSON array, the owner's clock, the place of the last task, whether more come."""

    body: bytes
    clock: datetime | None
    last: Position | None
    more: bool


def _read_page(
    user_id: str, limit: int, size: int, after: Position | None, status: str | None
) -> _Page:
    """At most `limit` tasks, and about `size` bytes of JSON, but one task at least."""
    # One more than wanted tells whether there is more.
    clock, rows = store.list_tasks(user_id, limit=limit + 1, size=size, after=after, status=status)
    shown = rows[:limit]
    body = encode(shown)
    while len(body) >= size and len(shown) > 1:
        # Whatever the statement left out comes after the last row, which is left for the next page.
        fitting = len(shown) * size // len(body)
        shown = shown[: max(1, min(fitting, len(shown) - 1))]
        body = encode(shown)
    last = Position.of(shown[-1]) if shown else None
    return _Page(body, clock, last, more=len(shown) < len(rows))


def _next_page(user_id: str, query: Mapping[str, Any], last: Position | None) -> str:
    assert last is not None
    status = {"status": query["status"]} if query["status"] else {}
    parameters = {"limit": query["limit"], "cursor": Cursor.encode(last)} | status
    return f"{_path('.list_tasks', user_id=user_id)}?{urlencode(parameters)}"


def _path(endpoint: str, **values: Any) -> str:
    """url_for, with the mount's name percent-encoded too, as a header needs it."""
    return iri_to_uri(url_for(endpoint, **values))


def _stream(user_id: str, page: _Page, status: str | None) -> Iterator[bytes]:
    """A JSON array in pieces, each read by a statement of its own.

    A failure half-way raises; the server then cuts the connection before the closing bracket.
    """
    yield b"[" + page.body[1:-1]
    while page.more:
        page = _read_page(user_id, _PIECE_TASKS, _PIECE_BYTES, page.last, status)
        if page.last is not None:  # None: the rest was deleted meanwhile
            yield b"," + page.body[1:-1]
    yield b"]"
