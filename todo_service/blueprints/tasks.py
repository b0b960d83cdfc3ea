"""The task routes: HTTP in, one call to the store, HTTP out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, request, stream_with_context, url_for
from werkzeug.exceptions import NotFound, UnprocessableEntity
from werkzeug.urls import iri_to_uri

from todo_service import store
from todo_service.errors import log_if_cut_short
from todo_service.http import (
    PATCH_TYPES,
    TaskModified,
    digest_of,
    encode,
    parse_query,
    read_body,
    read_idempotency_key,
    read_versions,
    respond,
    respond_encoded,
    unless_known,
)
from todo_service.routing import parse_task_id
from todo_service.schemas import (
    LIST_QUERY,
    NEW_TASK,
    NO_FIELDS,
    NO_QUERY,
    TASK_CHANGES,
    Cursor,
)
from todo_service.task import ANY_VERSION, Position, Task, Versions, version_of

# A page ends where its JSON reaches this many bytes: a slow client makes the service hold one page.
_PAGE_BYTES = 1024 * 1024
# The pieces of a list that is streamed: tasks and bytes. Of a piece, three copies are held for a
# moment: the page, what is handed to gunicorn, and the chunk that gunicorn makes of it.
_PIECE_TASKS = 500
_PIECE_BYTES = 256 * 1024

# The views that take parameters in the query, as their argument `query`. All others take none.
_QUERIES = {
    "tasks.list_tasks": LIST_QUERY,
}

tasks = Blueprint("tasks", __name__, url_prefix="/api/<user_id:user_id>/tasks")


@tasks.before_request
def read_arguments() -> Response | None:
    """Give the views a number and a query.

    A bad one is a 400, but only after token and owner were checked. And not for OPTIONS: a browser
    sends it with path and query of the request to come, whose answer says what is wrong with them.
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
    limit: int | None = query["limit"]
    status: str | None = query["status"]
    if limit is None:
        page = _read_page(user_id, _PIECE_TASKS, _PIECE_BYTES, query["cursor"], status)
        if page.more:
            pieces = log_if_cut_short(_stream(user_id, page, status))
            return Response(stream_with_context(pieces), mimetype="application/json")
    else:
        page = _read_page(user_id, limit, _PAGE_BYTES, query["cursor"], status)
    response = respond_encoded(page.body)
    link = ""
    if page.more:
        link = f'<{_next_page(user_id, query, page.last)}>; rel="next"'
        response.headers["Link"] = link
    digest = hashlib.sha256(page.body + link.encode())
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


def _refuse_fields() -> None:
    """For a path that says it all: a body that asks for something else must not be ignored."""
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
    """Nothing was changed: there is no such task, or it is of a version that was not meant."""
    task = None if versions == ANY_VERSION else store.get_task(user_id, task_id)
    if task is None:
        raise NotFound("Task not found")
    raise TaskModified(version_of(task))


def _answer(task: Task, status: int = 200) -> Response:
    response = respond(task, status)
    response.set_etag(version_of(task))
    return response


class _Page(NamedTuple):
    """Tasks as a JSON array, the place of the last of them, and whether there are more."""

    body: bytes
    last: Position | None
    more: bool


def _read_page(
    user_id: str, limit: int, size: int, after: Position | None, status: str | None
) -> _Page:
    """At most `limit` tasks, and about `size` bytes of JSON, but one task at least."""
    # One more than wanted tells whether there is more.
    rows = store.list_tasks(user_id, limit=limit + 1, size=size, after=after, status=status)
    shown = rows[:limit]
    body = encode(shown)
    while len(body) >= size and len(shown) > 1:
        # Whatever the statement left out comes after the last row, which is left for the next page.
        fitting = len(shown) * size // len(body)
        shown = shown[: max(1, min(fitting, len(shown) - 1))]
        body = encode(shown)
    return _Page(body, Position.of(shown[-1]) if shown else None, len(shown) < len(rows))


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
