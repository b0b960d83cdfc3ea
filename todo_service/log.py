"""The log, in which every event is a line of key=value or JSON; and the id of a request, which is
in its lines and in its response."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache

from flask import Flask, Response, g, has_request_context, request

_FORMAT = "time={} level={} logger={} {} request_id={}"
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S%z"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PLAIN = re.compile(r"[A-Za-z0-9._@|:+-]+")
# https://www.w3.org/TR/trace-context-1/#traceparent-header: version, trace id, parent id and flags.
# A later version may append more, 00 may not; ff is not a version.
_TRACEPARENT = re.compile(
    "(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_SHOWN = 256  # characters of a path's user id; it can be as long as a request line

_FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"]+)')
_FIELDS = re.compile(rf"{_FIELD.pattern}(?: {_FIELD.pattern})*")
# By name, because a user id, a request id and an SQLSTATE may consist of digits, too.
_NUMBERS = frozenset({"status", "ms", "db_ms", "pool_ms", "pid"})

requests = logging.getLogger("todo_service.requests")


_write_directly = False


def configure(log_format: str = "logfmt") -> None:
    """Give the service and its libraries their one handler, on standard error.

    For the service's own start. Whoever embeds the app configures logging themselves.
    """
    global _write_directly
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    fields = "%(asctime)s", "%(levelname)s", "%(name)s", "%(message)s", "%(request_id)s"
    formatter = JsonFormatter if log_format == "json" else logging.Formatter
    handler.setFormatter(formatter(_FORMAT.format(*fields), TIME_FORMAT))
    logging.basicConfig(handlers=[handler])
    _write_directly = log_format == "logfmt"
    # It quotes the driver with every attempt to connect; database.UnreachableLog says it instead.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class JsonFormatter(logging.Formatter):
    """The fields of a key=value format as one JSON object.

    A message of fields is taken apart, any other one is the field `message`.
    """

    def __init__(self, fmt: str, datefmt: str) -> None:
        super().__init__(fmt, datefmt)
        self.parts = fmt.split(" ")

    def format(self, record: logging.LogRecord) -> str:
        record.asctime = self.formatTime(record, self.datefmt)
        message = record.getMessage()
        line, _, traceback = message.partition("\n")
        if not _FIELDS.fullmatch(line):
            line, traceback = f"message={json.dumps(message)}", ""
        text = " ".join(
            line if part == "%(message)s" else part % vars(record) for part in self.parts
        )
        fields = {name: _value(name, value) for name, value in _FIELD.findall(text)}
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
        if traceback:
            fields["traceback"] = traceback
        return json.dumps(fields)


def _value(name: str, text: str) -> object:
    if text.startswith('"') or name in _NUMBERS:
        with suppress(ValueError):
            return json.loads(text)
    return text


class RequestIdFilter(logging.Filter):
    """Gives log records that are written during a request the request's id."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):  # given by what is logged outside of a request
            record.request_id = g.get("request_id", "-") if has_request_context() else "-"
        return True


@dataclass(slots=True)
class Timings:
    """Of a request, in seconds: by a clock without a date, when it began, and how long it waited
    for a connection of the pool and for the database."""

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
    line = (
        f"method={quote(request.method)} route={_template(rule.rule) if rule else '-'}"
        f" status={response.status_code} ms={elapsed:.1f} db_ms={database:.1f}"
        f" pool_ms={pool_wait:.1f} user={quote(g.get('user_id', '-'))}"
    )
    if response.status_code == 403 and "path_user" in g:
        # Whoever gets a 403 for /api/v1/alice/tasks sees here that the path is v1/alice's.
        line += f" path_user={quote(g.path_user[:_SHOWN])}"
    traceparent = request.headers.get("traceparent")
    if traceparent and (match := _TRACEPARENT.fullmatch(traceparent)):
        line += f" trace={match[1]}"
    _write_request_line(line, g.request_id)
    return response


def _write_request_line(message: str, request_id: str) -> None:
    """The one line that every request leaves, at level INFO.

    If `configure` has set up the log as key=value, the line is written directly, in the same form:
    a record of the logging package takes more than a twentieth of a request's time.
    """
    if not _write_directly:
        requests.info(message)
    elif requests.isEnabledFor(logging.INFO):
        time_of_day = _format_time(int(time.time()))
        line = _FORMAT.format(time_of_day, "INFO", requests.name, message, request_id)
        try:
            sys.stderr.write(f"{line}\n")
        except (AttributeError, OSError, ValueError):
            return  # There is no standard error, or nobody reads it, and no other place to say so.


@lru_cache(maxsize=1)
def _format_time(seconds: int) -> str:
    return time.strftime(TIME_FORMAT, time.localtime(seconds))


@cache
def _template(rule: str) -> str:
    """A rule of the URL map as the contract writes it: /api/{user_id}/tasks."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)
