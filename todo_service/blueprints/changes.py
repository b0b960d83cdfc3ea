"""A client's copy: what changed since a cursor is pulled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response
from werkzeug.exceptions import Gone

from todo_service import store
from todo_service.cursors import encode_changes_cursor
from todo_service.schemas import CHANGES_QUERY
from todo_service.store import PAGE_BYTES
from todo_service.web.body import encode, respond_encoded
from todo_service.web.routing import takes

changes = Blueprint("changes", __name__, url_prefix="/api/<user_id:user_id>/tasks/changes")


@changes.get("")
@takes(query=CHANGES_QUERY)
def list_changes(user_id: str, query: Mapping[str, Any]) -> Response:
    limit = query["limit"]
    while True:
        found = store.list_changes(user_id, limit=limit, after=query["cursor"])
        if found.expired:
            raise Gone("Cursor has expired")
        body = encode(
            {
                "tasks": found.tasks,
                "deleted": found.deleted,
                "cursor": encode_changes_cursor(found.cursor),
                "more": found.more,
            }
        )
        if len(body) <= 1.25 * PAGE_BYTES or limit == 1:
            return respond_encoded(body)
        # JSON escapes can make texts six times as long as the bytes that the statement counted.
        count = len(found.tasks) + len(found.deleted)
        limit = max(1, count * PAGE_BYTES // len(body))
