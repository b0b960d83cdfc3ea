"""The floor: what a Flask on the same gunicorn costs if it only checks the same tokens."""

from __future__ import annotations

import json
from unittest.mock import Mock

from flask import Flask, Response, request

from bench import data
from todo_service import auth
from todo_service.settings import Settings

_TASK = {
    "id": data.FIRST_TASK,
    "user_id": data.user_id(0),
    "title": data.title(0),
    "description": data.DESCRIPTION,
    "status": "incomplete",
    "created_at": f"{data.FIRST_TIME:%Y-%m-%dT%H:%M:%S.%fZ}",
    "updated_at": f"{data.FIRST_TIME:%Y-%m-%dT%H:%M:%S.%fZ}",
}
# As short as the service writes it.
NOTHING = b'{"tasks":[],"deleted":[],"cursor":"%s","more":false}' % (b"A" * 56)
ONE = json.dumps(_TASK, separators=(",", ":")).encode()
LIST = json.dumps([_TASK] * data.TASKS_EACH, separators=(",", ":")).encode()

app = Flask(__name__, static_folder=None)
auth.init_app(app, auth.bearer(Settings.from_env()))
# The hooks in gunicorn.conf.py open and close it.
app.extensions["database"] = Mock()


def answer(body: bytes, status: int = 200) -> Response:
    return Response(body, status, content_type="application/json")


@app.get("/health")
def is_alive() -> Response:
    return answer(b'{"status":"ok"}')


@app.get("/api/<user_id>/tasks")
def list_tasks(user_id: str) -> Response:  # noqa: ARG001
    if "If-None-Match" in request.headers:
        return Response(status=304)
    return answer(LIST)


@app.get("/api/<user_id>/tasks/changes")
def list_changes(user_id: str) -> Response:  # noqa: ARG001
    return answer(NOTHING)


@app.post("/api/<user_id>/tasks")
def create_task(user_id: str) -> Response:  # noqa: ARG001
    request.get_data(cache=False)
    return answer(ONE, 201)


@app.get("/api/<user_id>/tasks/<task_id>")
@app.patch("/api/<user_id>/tasks/<task_id>/complete")
def get_task(user_id: str, task_id: str) -> Response:  # noqa: ARG001
    return answer(ONE)


@app.put("/api/<user_id>/tasks/<task_id>")
def update_task(user_id: str, task_id: str) -> Response:  # noqa: ARG001
    request.get_data(cache=False)
    return answer(ONE)
