"""What the log looks like: a line an event, key=value, from time and level to the request's id."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from functools import lru_cache

from flask import g, has_request_context

_FORMAT = "time={} level={} logger={} {} request_id={}"
_TIME = "%Y-%m-%dT%H:%M:%S%z"
_PLAIN = re.compile(r"[A-Za-z0-9._@|:+-]+")

_requests = logging.getLogger("todo_service.requests")


def configure() -> None:
    """Give the service and its libraries their one handler, on standard error."""
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    fields = "%(asctime)s", "%(levelname)s", "%(name)s", "%(message)s", "%(request_id)s"
    logging.basicConfig(format=_FORMAT.format(*fields), datefmt=_TIME, handlers=[handler])


class RequestIdFilter(logging.Filter):
    """Gives log records that are written during a request the request's id."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = g.get("request_id", "-") if has_request_context() else "-"
        return True


def write_request_line(message: str, request_id: str) -> None:
    """Write the one line that every request leaves, at level INFO.

    In the same form as a record of the logging package but past it, so that no handler sees it: a
    record, its locks and its handlers would cost a request a twentieth of its time.
    """
    if not _requests.isEnabledFor(logging.INFO):
        return
    time_of_day = _format_time(int(time.time()))
    line = _FORMAT.format(time_of_day, "INFO", _requests.name, message, request_id)
    try:
        sys.stderr.write(f"{line}\n")
    except (AttributeError, OSError, ValueError):
        return  # There is no standard error, or nobody reads it: no other place to say so.


@lru_cache(maxsize=1)
def _format_time(seconds: int) -> str:
    return time.strftime(_TIME, time.localtime(seconds))


def quote(value: str) -> str:
    """A value of a key=value line: plain, or a JSON string that can hold no line break."""
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
