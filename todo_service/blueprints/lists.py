"""Many tasks: a page, a stream of all, and what is done to all of a status at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode
from zlib import crc32

from flask import Blueprint, Response, request, stream_with_context

from todo_service import store
from todo_service.cursors import encode_list_cursor
from todo_service.schemas import LIST_QUERY, STATUS_CHANGE, STATUS_QUERY
from todo_service.store import PAGE_BYTES
from todo_service.task import ListCursor
from todo_service.web.body import JSON, PATCH_TYPES, encode, read_body, respond, respond_encoded
from todo_service.web.conditions import answer_304_if_known, refuse_if_match
from todo_service.web.errors import log_if_cut_short
from todo_service.web.routing import path_of, takes

# A piece of a streamed list has at most this many tasks, and about this many bytes. It is in memory
# three times for a moment: as the page, as what gunicorn is given, and as the chunk that it sends.
_PIECE_TASKS = 500
_PIECE_BYTES = 256 * 1024

lists = Blueprint("lists", __name__, url_prefix="/api/<user_id:user_id>/tasks")


@lists.get("")
@takes(query=LIST_QUERY)
def list_tasks(user_id: str, query: Mapping[str, Any]) -> Response:
    if "If-None-Match" in request.headers:
        known = answer_304_if_known(_tag(Response(), store.get_clock(user_id)))
        if known.status_code == 304:
            return known
    limit: int | None = query["limit"]
    status: str | None = query["status"]
    if limit is None:
        page = _read_page(user_id, _PIECE_TASKS, _PIECE_BYTES, query["cursor"], status)
        if page.next:
            pieces = log_if_cut_short(_stream(user_id, page, status))
            return _tag(Response(stream_with_context(pieces), content_type=JSON), page.clock)
    else:
        page = _read_page(user_id, limit, PAGE_BYTES, query["cursor"], status)
    response = _tag(respond_encoded(page.body), page.clock)
    if page.next:
        response.headers["Link"] = f'<{_path_of_next(user_id, page.next)}>; rel="next"'
    return response


@lists.patch("")
@takes(query=STATUS_QUERY)
def update_tasks(user_id: str, query: Mapping[str, Any]) -> Response:
    change = STATUS_CHANGE.load(read_body(PATCH_TYPES))
    refuse_if_match()
    count, more = store.update_tasks(user_id, status=query["status"], to=change["status"])
    return respond({"updated": count, "more": more})


@lists.delete("")
@takes(query=STATUS_QUERY)
def delete_tasks(user_id: str, query: Mapping[str, Any]) -> Response:
    refuse_if_match()
    count, more = store.delete_tasks(user_id, status=query["status"])
    return respond({"deleted": count, "more": more})


def _tag(response: Response, clock: datetime | None) -> Response:
    """Set a list's ETag, a new one after every change of any of the user's tasks.

    It is weak, because another version of the service may split the same tasks differently.
    """
    version = encode(clock).decode().strip('"') if clock else "0"
    response.set_etag(f"{version}-{crc32(request.query_string):x}", weak=True)
    return response


class _Page(NamedTuple):
    """Tasks as a JSON array, the owner's clock, and where the next page begins, if there is one."""

    body: bytes
    clock: datetime | None
    next: ListCursor | None


def _read_page(
    user_id: str, limit: int, size: int, after: ListCursor | None, status: str | None
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
    return _Page(body, clock, ListCursor.of(shown[-1]) if len(shown) < len(rows) else None)


def _path_of_next(user_id: str, after: ListCursor) -> str:
    """The path of this list with all parameters that were sent, and the cursor of the next page."""
    parameters = request.args.to_dict() | {"cursor": encode_list_cursor(after)}
    return f"{path_of('.list_tasks', user_id=user_id)}?{urlencode(parameters)}"


def _stream(user_id: str, page: _Page, status: str | None) -> Iterator[bytes]:
    """A JSON array in pieces, each read by a statement of its own.

    A failure half-way raises; the server then cuts the connection before the closing bracket.
    """
    yield b"[" + page.body[1:-1]
    while page.next:
        page = _read_page(user_id, _PIECE_TASKS, _PIECE_BYTES, page.next, status)
        if page.body != b"[]":  # else the rest was deleted meanwhile
            yield b"," + page.body[1:-1]
    yield b"]"
