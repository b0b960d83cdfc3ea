"""A client's copy: what changed is pulled since a cursor, and pushed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, request
from marshmallow import ValidationError
from werkzeug.exceptions import Gone

from todo_service import store
from todo_service.blueprints.tasks import KEY_USED, NOT_FOUND, WAS_DELETED
from todo_service.cursors import encode_changes_cursor
from todo_service.schemas import CHANGES_QUERY, MAX_PUSH, NO_QUERY, load_push
from todo_service.store import PAGE_BYTES
from todo_service.task import Result
from todo_service.web.body import digest_of, encode, read_body, respond, respond_encoded
from todo_service.web.conditions import MODIFIED
from todo_service.web.routing import takes

# What the result of an entry says besides its task: what a single request would be answered.
_ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "created": {"status": 201},
    "repeated": {"status": 201, "replayed": True},
    "deleted since": {"status": 410, "error": WAS_DELETED},
    "key used": {"status": 422, "error": KEY_USED},
    "changed": {"status": 200},
    "deleted": {"status": 204},
    "modified": {"status": 412, "error": MODIFIED},
    "not found": {"status": 404, "error": NOT_FOUND},
}

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


@changes.post("")
@takes(query=NO_QUERY)
def push_changes(user_id: str) -> Response:
    if "Idempotency-Key" in request.headers or "If-Match" in request.headers:
        raise ValidationError("Send key and updated_at with each change")
    tasks, deleted = load_push(read_body(limit=MAX_PUSH))
    for task in tasks:
        if "id" not in task:
            content = {name: value for name, value in task.items() if name != "key"}
            task["digest"] = digest_of(content)
    of_tasks, of_deleted = store.push_changes(user_id, tasks, deleted)
    return respond({"tasks": list(map(_show, of_tasks)), "deleted": list(map(_show, of_deleted))})


def _show(result: Result) -> dict[str, Any]:
    task = {} if result.task is None else {"task": result.task}
    return {**_ANSWERS[result.outcome], **task}
