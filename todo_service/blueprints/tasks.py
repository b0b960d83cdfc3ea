"""One task: HTTP in, a call to the store, HTTP out. A refused write makes a second, to say why."""

from __future__ import annotations

from typing import Any, NoReturn

from flask import Blueprint, Response
from werkzeug.exceptions import Gone, NotFound, UnprocessableEntity

from todo_service import store
from todo_service.schemas import NEW_TASK, NO_FIELDS, NO_QUERY, TASK_CHANGES
from todo_service.task import ANY_VERSION, Task, Versions
from todo_service.web.body import PATCH_TYPES, digest_of, read_body, respond
from todo_service.web.conditions import (
    TaskModified,
    answer_304_if_known,
    read_idempotency_key,
    read_versions,
    tag_of,
)
from todo_service.web.routing import path_of, takes

KEY_USED = "Idempotency-Key was used before with another request body"
NOT_FOUND = "Task not found"
WAS_DELETED = "Task was deleted"

tasks = Blueprint("tasks", __name__, url_prefix="/api/<user_id:user_id>/tasks")


@tasks.post("")
@takes(query=NO_QUERY)
def create_task(user_id: str) -> Response:
    data = NEW_TASK.load(read_body())
    key = read_idempotency_key()
    if key is None:
        return _answer_created(store.create_task(user_id, **data))
    outcome, task = store.create_task_once(user_id, key=key, digest=digest_of(data), **data)
    if outcome == "key used":
        raise UnprocessableEntity(KEY_USED)
    if task is None:
        raise Gone(WAS_DELETED)
    response = _answer_created(task)
    if outcome == "repeated":
        response.headers["Idempotency-Replayed"] = "true"
    return response


@tasks.get("/<task_id:task_id>")
@takes(query=NO_QUERY)
def get_task(user_id: str, task_id: int) -> Response:
    task = store.get_task(user_id, task_id)
    if task is None:
        raise NotFound(NOT_FOUND)
    return answer_304_if_known(_answer(task))


@tasks.put("/<task_id:task_id>")
@tasks.patch("/<task_id:task_id>")
@takes(query=NO_QUERY)
def update_task(user_id: str, task_id: int) -> Response:
    return _update(user_id, task_id, TASK_CHANGES.load(read_body(PATCH_TYPES)))


@tasks.patch("/<task_id:task_id>/complete", defaults={"status": "complete"})
@tasks.patch("/<task_id:task_id>/incomplete", defaults={"status": "incomplete"})
@takes(query=NO_QUERY)
def set_status(user_id: str, task_id: int, status: str) -> Response:
    NO_FIELDS.load(read_body(PATCH_TYPES, required=False))
    return _update(user_id, task_id, {"status": status})


@tasks.delete("/<task_id:task_id>")
@takes(query=NO_QUERY)
def delete_task(user_id: str, task_id: int) -> Response:
    versions = read_versions()
    if not store.delete_task(user_id, task_id, versions=versions):
        _raise_why_unchanged(user_id, task_id, versions)
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def _update(user_id: str, task_id: int, changes: dict[str, Any]) -> Response:
    versions = read_versions()
    task = store.update_task(user_id, task_id, changes, versions=versions)
    if task is None:
        _raise_why_unchanged(user_id, task_id, versions)
    return _answer(task)


def _raise_why_unchanged(user_id: str, task_id: int, versions: Versions) -> NoReturn:
    """There is no such task, or it has another version than the request names."""
    task = None if versions == ANY_VERSION else store.get_task(user_id, task_id)
    if task is None:
        raise NotFound(NOT_FOUND)
    raise TaskModified(task)


def _answer_created(task: Task) -> Response:
    response = _answer(task, 201)
    path = path_of(".get_task", user_id=task["user_id"], task_id=task["id"])
    response.headers["Location"] = path
    return response


def _answer(task: Task, status: int = 200) -> Response:
    response = respond(task, status)
    response.headers["ETag"] = tag_of(task)
    return response
