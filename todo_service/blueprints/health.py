"""Is the process up, is the database: for load balancers, platforms and people."""

from __future__ import annotations

from flask import Blueprint, Response

from todo_service import store
from todo_service.web import errors
from todo_service.web.body import respond

health = Blueprint("health", __name__)


@health.get("/health")
def is_alive() -> Response:
    """Never asks the database: a restart would not bring that back."""
    return respond({"status": "ok"})


@health.get("/ready")
def is_ready() -> Response:
    if missing := store.check_schema():
        return errors.answer_missing_rights(missing)
    return respond({"status": "ok"})
