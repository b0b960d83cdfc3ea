"""The task routes: HTTP in, one call to the store, HTTP out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlencode
from zlib import crc32

from flask import Blueprint, Response, current_app, request, stream_with_context, url_for
from marshmallow import ValidationError
from werkzeug.exceptions import Gone, NotFound, UnprocessableEntity
from werkzeug.urls import iri_to_uri

from todo_service import store
from todo_service.web.errors import log_if_cut_short
from todo_service.web.body import (
    PATCH_TYPES,
    TaskModified,
    digest_of,
    encode,
    parse_query,
    read_body,
    read_idempotency_key,
    read_object_or_array,
    read_versions,
    refuse_if_match,
    respond,
    respond_encoded,
    unless_known,
)
from todo_service.web.routing import parse_task_id
from todo_service.schemas import (
    CHANGES_QUERY,
    LIST_QUERY,
    MAX_ARRAY,
    MAX_TASKS,
    NEW_TASK,
    NO_FIELDS,
    NO_QUERY,
    STATUS_CHANGE,
    STATUS_QUERY,
    TASK_CHANGES,
    ChangesCursor,
    Cursor,
)
from todo_service.task import ANY_VERSION, Position, Task, Versions, version_at, version_of

# A page ends where its JSON reaches this many bytes: the service holds it in memory for as long as
# a slow client takes to read it.
_PAGE_BYTES = 1024 * 1024
# A piece of a streamed list has at most this many tasks, and about this many bytes. It is in memory
# three times for a moment: as the page, as what gunicorn is given, and as the chunk that it sends.
_PIECE_TASKS = 500
_PIECE_BYTES = 256 * 1024

# The views that take parameters in the query, as their argument `query`. All others refuse any.
_QUERIES = {
    "tasks.list_tasks": LIST_QUERY,
    "tasks.list_changes": CHANGES_QUERY,
    "tasks.update_tasks": STATUS_QUERY,
    "tasks.delete_tasks": STATUS_QUERY,
}

tasks = Blueprint("tasks", __name__, url_prefix="/api/<user_id:user_id>/tasks")


@tasks.before_request
def read_arguments() -> Response | None:
    """Give the views the task's id as a number, and the query, parsed.

    What is wrong with them is a 400, but only after token and owner were checked. OPTIONS accepts
    anything: a browser sends it with the path and query of the request that it is going to make,
    and the answer to that says what is wrong.
    """
    if request.method == "OPTIONS":
        return _answer_options()
    arguments, endpoint = request.view_args, request.endpoint
    assert arguments is not None
    if "task_id" in arguments:
        arguments["task_id"] = parse_task_id(arguments["task_id"])
    if endpoint in _QUERIES:
        arguments["query"] = parse_query(_QUERIES[endpoint], request.query_string)
    elif request.query_string:
        parse_query(NO_QUERY, request.query_string)
    return None


def _answer_options() -> Response:
    """Flask's own answer, and what a PATCH may be sent as (RFC 5789 section 3.1)."""
    response = current_app.make_default_options_response()
    if "PATCH" in response.allow:
        response.headers["Accept-Patch"] = ", ".join(PATCH_TYPES)
    return response


@tasks.get("")
def list_tasks(user_id: str, query: Mapping[str, Any]) -> Response:
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
def list_changes(user_id: str, query: Mapping[str, Any]) -> Response:
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
        # JSON escapes can make texts six times as long as the bytes that the statement counted.
        count = len(changes.tasks) + len(changes.deleted)
        limit = max(1, count * _PAGE_BYTES // len(body))


@tasks.post("")
def create_task(user_id: str) -> Response:
    body = read_object_or_array(MAX_ARRAY)
    return _create_many(user_id, body) if isinstance(body, list) else _create(user_id, body)


def _create(user_id: str, body: dict[str, Any]) -> Response:
    data = NEW_TASK.load(body)
    created = store.create_task(user_id, **data, **_key_of(data))
    if created is None:
        raise _key_was_used()
    task, replayed = created
    response = _answer(task, 201)
    response.headers["Location"] = _path(".get_task", user_id=user_id, task_id=task["id"])
    return _note_replay(response, replayed)


def _create_many(user_id: str, body: list[Any]) -> Response:
    if not 1 <= len(body) <= MAX_TASKS:
        raise ValidationError(f"Send 1 to {MAX_TASKS} tasks")
    data = NEW_TASK.load(body, many=True)
    created = store.create_tasks(user_id, data, **_key_of(data))
    if created is None:
        raise _key_was_used()
    return _note_replay(respond(created[0], 201), created[1])


def _key_of(data: dict[str, Any] | list[dict[str, Any]]) -> dict[str, Any]:
    key = read_idempotency_key()
    return {} if key is None else {"key": key, "digest": digest_of(data)}


def _key_was_used() -> UnprocessableEntity:
    return UnprocessableEntity("Idempotency-Key was used before with another request body")


def _note_replay(response: Response, replayed: bool) -> Response:
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return response


@tasks.patch("")
def update_tasks(user_id: str, query: Mapping[str, Any]) -> Response:
    change = STATUS_CHANGE.load(read_body(PATCH_TYPES))
    refuse_if_match()
    count = store.update_tasks(user_id, status=query["status"], to=change["status"])
    return respond({"updated": count})


@tasks.delete("")
def delete_tasks(user_id: str, query: Mapping[str, Any]) -> Response:
    refuse_if_match()
    return respond({"deleted": store.delete_tasks(user_id, status=query["status"])})


@tasks.get("/<task_id:task_id>")
def get_task(user_id: str, task_id: int) -> Response:
    task = store.get_task(user_id, task_id)
    if task is None:
        raise NotFound("Task not found")
    return unless_known(_answer(task))


@tasks.put("/<task_id:task_id>")
@tasks.patch("/<task_id:task_id>")
def update_task(user_id: str, task_id: int) -> Response:
    return _update(user_id, task_id, TASK_CHANGES.load(read_body(PATCH_TYPES)))


@tasks.patch("/<task_id:task_id>/complete")
def complete_task(user_id: str, task_id: int) -> Response:
    _refuse_fields()
    return _update(user_id, task_id, {"status": "complete"})


@tasks.patch("/<task_id:task_id>/incomplete")
def reopen_task(user_id: str, task_id: int) -> Response:
    _refuse_fields()
    return _update(user_id, task_id, {"status": "incomplete"})


@tasks.delete("/<task_id:task_id>")
def delete_task(user_id: str, task_id: int) -> Response:
    versions = read_versions()
    if not store.delete_task(user_id, task_id, versions=versions):
        _refuse(user_id, task_id, versions)
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def _tag(response: Response, clock: datetime | None) -> Response:
    """Set a list's ETag, a new one after every change of any of the user's tasks.

    It is weak, because another version of the service may split the same tasks differently.
    """
    version = version_at(clock) if clock else "0"
    response.set_etag(f"{version}-{crc32(request.query_string):x}", weak=True)
    return response


def _refuse_fields() -> None:
    """The path says what to do. A body that asks for something else must not be ignored."""
    body = read_body(PATCH_TYPES, required=False)
    if body:
        NO_FIELDS.load(body)


def _update(user_id: str, task_id: int, changes: dict[str, Any]) -> Response:
    versions = read_versions()
    task = store.update_task(user_id, task_id, changes, versions=versions)
    if task is None:
        _refuse(user_id, task_id, versions)
    return _answer(task)


def _refuse(user_id: str, task_id: int, versions: Versions) -> NoReturn:
    """Say why nothing was changed: there is no such task, or its version is not one to change."""
    task = None if versions == ANY_VERSION else store.get_task(user_id, task_id)
    if task is None:
        raise NotFound("Task not found")
    raise TaskModified(version_of(task))


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
    # One task more than wanted shows whether there are more.
    clock, rows = store.list_tasks(user_id, limit=limit + 1, size=size, after=after, status=status)
    shown = rows[:limit]
    body = encode(shown)
    while len(body) >= size and len(shown) > 1:
        # Leave at least the last row for the next page: the statement may have left out more, and
        # that comes after it.
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
    """url_for, with the path of a mount percent-encoded too: a header holds ASCII only."""
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
