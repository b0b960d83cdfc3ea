"""What every response carries, and the one line that is logged about it."""

from __future__ import annotations

import os
import re
import time
from functools import cache

from flask import Flask, Response
from flask.globals import app_ctx, request_ctx

from todo_service.log import quote, write_request_line

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def init_app(app: Flask) -> None:
    app.before_request(start)
    app.after_request(finish)


def start() -> None:
    """Take the client's request id if it is a sound one, else make one, and start the clock."""
    # Through the contexts, here and wherever each request comes by: every use of the proxies g and
    # request would look the context up anew.
    g = app_ctx.g
    g.started = time.perf_counter()
    sent = request_ctx.request.headers.get("X-Request-ID", "")
    g.request_id = sent if _REQUEST_ID.fullmatch(sent) else new_request_id()


def new_request_id() -> str:
    return os.urandom(8).hex()


def finish(response: Response) -> Response:
    """Set the headers that do not depend on the route, and log the request."""
    g, request = app_ctx.g, request_ctx.request
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
    route = _template(request.url_rule.rule) if request.url_rule else "-"
    write_request_line(
        f"method={quote(request.method)} route={route} status={response.status_code}"
        f" ms={elapsed:.1f} db_ms={database:.1f} pool_ms={pool_wait:.1f}"
        f" user={quote(g.get('user_id', '-'))}",
        g.request_id,
    )
    return response


@cache
def _template(rule: str) -> str:
    """A rule of the URL map as the contract writes it: /api/{user_id}/tasks."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)
