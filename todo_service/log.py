"""Logging (key=value or JSON), and request ids."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cache

from flask import Flask, Response, g, has_request_context, request

_FORMAT = "time={} level={} logger={} {} request_id={}"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# What is written without quotes: a word, or the path of a route or file.
_PLAIN = re.compile(r"[A-Za-z0-9._@|:+-]+|/[A-Za-z0-9._{}/-]*")
# https://www.w3.org/TR/trace-context-1/#traceparent-header: version, trace id, parent id and flags.
# A later version may append more, 00 may not; ff is not a version.
_TRACEPARENT = re.compile(
    "(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_SHOWN = 256  # characters of what a client sent, such as a path's user id

requests = logging.getLogger("todo_service.requests")

_write_directly = False


def configure(log_format: str = "logfmt") -> None:
    """Give the service and its libraries their one handler, on standard error.

    For the service's own start. Whoever embeds the app configures logging themselves.
    """
    global _write_directly
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        names = "%(asctime)s", "%(levelname)s", "%(name)s", "%(message)s", "%(request_id)s"
        handler.setFormatter(logging.Formatter(_FORMAT.format(*names), TIME_FORMAT))
    logging.basicConfig(handlers=[handler])
    # Its warnings quote the URL of the issuer's keys, query and all.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    _write_directly = log_format == "logfmt"
    # It quotes the driver with every attempt to connect; Database says it instead.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class Fields(dict[str, str | float]):
    """A log message of named values: `log.warning(Fields(event="…", reason="…"))`.

    As text it is key=value; JsonFormatter takes the values as they are.
    """

    def __str__(self) -> str:
        return " ".join(
            [f"{name}={quote(v) if isinstance(v, str) else v}" for name, v in self.items()]
        )


class JsonFormatter(logging.Formatter):
    """One JSON object per record. A message that is not Fields is the field `message`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": self.formatTime(record, TIME_FORMAT),
            "level": record.levelname,
            "logger": record.name,
        }
        request_id = getattr(record, "request_id", None)
        if request_id is None:  # a line of gunicorn's
            fields["pid"] = record.process
        if isinstance(record.msg, Fields):
            fields |= record.msg
        else:
            fields["message"] = record.getMessage()
        if request_id is not None:
            fields["request_id"] = request_id
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class RequestIdFilter(logging.Filter):
    """Gives log records that are written during a request the request's id."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):  # given by what is logged outside of a request
            record.request_id = g.get("request_id", "-") if has_request_context() else "-"
        return True


class RateLimit:
    """Allows something so many times in so many seconds."""

    def __init__(self, *, times: int, seconds: float) -> None:
        self._last = deque([float("-inf")] * times, maxlen=times)
        self._seconds = seconds

    def allows(self) -> bool:
        now = time.monotonic()
        if now - self._last[0] < self._seconds:
            return False
        self._last.append(now)
        return True


@dataclass(slots=True)
class Timings:
    """Of a request, in seconds: when it began (time.perf_counter), and how long it waited for a
    connection of the pool and for the database."""

    started: float = field(default_factory=time.perf_counter)
    pool_wait: float = 0.0
    database: float = 0.0


def quote(value: str) -> str:
    """A value of a key=value line: plain, or a JSON string that can hold no line break."""
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def init_app(app: Flask) -> None:
    app.before_request(start)
    app.after_request(finish)


def start() -> None:
    """Take the client's request id if it is a valid one, else make one, and start the clock."""
    sent = request.headers.get("X-Request-ID", "")
    g.request_id = sent if _REQUEST_ID.fullmatch(sent) else new_request_id()
    g.timings = Timings()


def new_request_id() -> str:
    return os.urandom(8).hex()


def finish(response: Response) -> Response:
    """Set the headers that do not depend on the route, and log the request."""
    timings: Timings = g.timings
    elapsed = (time.perf_counter() - timings.started) * 1000
    database, pool_wait = timings.database * 1000, timings.pool_wait * 1000
    headers = response.headers
    # add, because set would look for an earlier value, and nothing else sets these.
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
    rule = request.url_rule
    fields = Fields(
        method=request.method,
        route=_template(rule.rule) if rule else "-",
        status=response.status_code,
        ms=round(elapsed, 1),
        db_ms=round(database, 1),
        pool_ms=round(pool_wait, 1),
        user=g.get("user_id", "-"),
    )
    if response.status_code == 403 and "path_user" in g:
        # Whoever gets a 403 for /api/v1/alice/tasks sees here that the path is v1/alice's.
        fields["path_user"] = g.path_user[:_SHOWN]
    origin = request.headers.get("Origin")
    if (
        origin is not None
        and "Access-Control-Allow-Origin" not in headers
        # What a page sends to its own origin, this service or a proxy in front, is not refused.
        and request.headers.get("Sec-Fetch-Site") != "same-origin"
    ):
        fields["origin"] = origin[:_SHOWN]
    traceparent = request.headers.get("traceparent")
    if traceparent and (match := _TRACEPARENT.fullmatch(traceparent)):
        fields["trace"] = match[1]
    _write_request_line(fields, g.request_id)
    return response


def _write_request_line(fields: Fields, request_id: str) -> None:
    """The one line that every request leaves, at level INFO.

    If `configure` has set up the log as key=value, the line is written directly, in the same form:
    a record of the logging package takes more than a twentieth of a request's time.
    """
    if not _write_directly:
        requests.info(fields)
    elif requests.isEnabledFor(logging.INFO):
        line = _FORMAT.format(time.strftime(TIME_FORMAT), "INFO", requests.name, fields, request_id)
        try:
            sys.stderr.write(f"{line}\n")
        except (AttributeError, OSError, ValueError):
            return  # There is no standard error, or nobody reads it, and no other place to say so.


@cache
def _template(rule: str) -> str:
    """A rule of the URL map as the contract writes it: /api/{user_id}/tasks."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)
