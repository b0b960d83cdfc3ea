"""What every response carries, and the one line that is logged about it."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from functools import cache

from flask import Flask, Response, g, has_request_context, request

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PLAIN = re.compile(r"[A-Za-z0-9._@|:+-]+")


def init_app(app: Flask) -> None:
    app.before_request(start)
    app.after_request(finish)


def start() -> None:
    """Take the client's request id if it is a sound one, else make one, and start the clock."""
    g.started = time.perf_counter()
    sent = request.headers.get("X-Request-ID", "")
    g.request_id = sent if _REQUEST_ID.fullmatch(sent) else new_request_id()


def new_request_id() -> str:
    return secrets.token_hex(8)


def finish(response: Response) -> Response:
    """Set the headers that do not depend on the route, and log the request."""
    elapsed = (time.perf_counter() - g.started) * 1000
    database = g.get("database_time", 0.0) * 1000
    pool_wait = g.get("pool_wait", 0.0) * 1000
    headers = response.headers
    # add, not set, which looks for an earlier value: nobody else sends these.
    headers.add("X-Request-ID", g.request_id)
    headers.add("X-Content-Type-Options", "nosniff")
    # https://www.w3.org/TR/server-timing/
    headers.add("Server-Timing", f"db;dur={database:.1f}, pool;dur={pool_wait:.1f}")
    if response.status_code >= 400:
        headers["Cache-Control"] = "no-store"
    elif request.path.startswith("/api/"):
        headers.add("Cache-Control", "private, no-cache")
    else:
        headers.setdefault("Cache-Control", "no-cache")
    if log.isEnabledFor(logging.INFO):
        log.info(
            "method=%s route=%s status=%d ms=%.1f db_ms=%.1f pool_ms=%.1f user=%s",
            quote(request.method),
            _template(request.url_rule.rule) if request.url_rule else "-",
            response.status_code,
            elapsed,
            database,
            pool_wait,
            quote(g.get("user_id", "-")),
        )
    return response


@cache
def _template(rule: str) -> str:
    """A rule of the URL map as the contract writes it: /api/{user_id}/tasks."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


def quote(value: str) -> str:
    """A value of a key=value line: plain, or a JSON string that can hold no line break."""
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


class RequestIdFilter(logging.Filter):
    """Gives log records that are written during a request the request's id."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = g.get("request_id", "-") if has_request_context() else "-"
        return True
