"""What schemathesis cannot make up from the document: a token, a user with tasks, a cursor.

Loaded by the schemathesis process that test_schemathesis.py starts.
"""

from __future__ import annotations

import os
import re
import time
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import schemathesis

from tests.conftest import User, sign
from todo_service.cursors import encode_changes_cursor, encode_list_cursor
from todo_service.schemas import MAX_CHANGES
from todo_service.task import ListCursor, parse_time

user = User(os.environ["SCHEMATHESIS_SERVER"], os.environ["SCHEMATHESIS_USER"])
# Newer than any task, so that the page behind it holds the newest ones.
CURSOR = encode_list_cursor(ListCursor(datetime(9000, 1, 1), 1))
# The changes from the first one on.
BEGINNING = encode_changes_cursor(None)
# The cursors of changes so far. A sequence of requests goes on from one of them.
cursors: set[str] = set()
# The ids of all tasks so far. A sequence of requests goes on with one of them, deleted or not.
created: set[object] = set()
TAG = re.compile(r'"[0-9T:.-]{19,26}Z"')


def is_valid(case: schemathesis.Case) -> bool:
    """Whether the request was made to succeed, not to be refused."""
    return case.meta is not None and case.meta.generation.mode.is_positive


@schemathesis.auth(refresh_interval=None).apply_to(path_regex="^/api/")
class Owner:
    """A token for the user in the path. Valid requests are all one user's, to meet tasks."""

    def get(self, case: schemathesis.Case, _: schemathesis.AuthContext) -> str:
        # Not by "parameters" in schemathesis.toml: they replace the ids that are wrong on purpose.
        if is_valid(case):
            case.path_parameters["user_id"] = user.id
        match = re.match("/api/(.*?)/tasks", unquote(case.formatted_path), re.DOTALL)
        return sign(match[1] if match else user.id, exp=int(time.time()) + 3600)

    def set(self, case: schemathesis.Case, token: str, _: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {token}"


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, kwargs: Any) -> None:
    """Give a valid request what it cannot guess: a cursor, a task, the tag of its version."""
    if not is_valid(case):
        return
    if "cursor" in case.query:
        if not case.path.endswith("/changes"):
            case.query["cursor"] = CURSOR
        elif str(case.query["cursor"]) not in cursors:
            case.query["cursor"] = BEGINNING
    if case.method == "POST" and case.path.endswith("/changes"):
        complete(case.body)
    if "task_id" not in case.path_parameters:
        return
    tag = case.headers.get("If-Match", "")
    if case.meta.phase.name == "stateful" and case.path_parameters["task_id"] in created:
        if not TAG.fullmatch(tag):
            case.headers.pop("If-Match", None)
    else:
        answer = user.post(user.tasks, json={"title": "Buy milk"})
        case.path_parameters["task_id"] = answer.json()["id"]
        created.add(answer.json()["id"])
        if tag:
            case.headers["If-Match"] = answer.headers["ETag"]


def complete(push: dict[str, list[dict[str, Any]]]) -> None:
    """Make a push good in what no schema can say, such as what an entry needs, and no id twice."""
    del push.get("deleted", [])[MAX_CHANGES - len(push.get("tasks", [])) :]
    for number, task in enumerate(push.get("tasks", []), start=1):
        task.setdefault("title", "Buy milk")
        if "id" in task:
            task["id"] = number
        else:
            task["key"] = f"key {number} {time.monotonic_ns()}".replace(" ", "-")
    for number, task in enumerate(push.get("deleted", []), start=101):
        task["id"] = number
    for entry in (*push.get("tasks", []), *push.get("deleted", [])):
        if "updated_at" in entry and parse_time(entry["updated_at"]) is None:
            entry["updated_at"] = "2026-11-21T09:30:00.123456Z"
    if not any(push.values()):
        push["deleted"] = [{"id": 101}]


@schemathesis.hook
def after_call(
    _: schemathesis.HookContext, case: schemathesis.Case, response: schemathesis.Response
) -> None:
    if response.status_code == 201:
        created.add(response.json()["id"])
    if case.method == "GET" and case.path.endswith("/changes") and response.status_code == 200:
        cursors.add(response.json()["cursor"])
