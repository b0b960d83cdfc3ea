"""How a user id and a task id look in a path."""

from __future__ import annotations

import re
from urllib.parse import quote

from marshmallow import ValidationError
from werkzeug.routing import BaseConverter

MAX_ID = 2**63 - 1

_ID = re.compile("0*([1-9][0-9]{0,18})")


class UserIdConverter(BaseConverter):
    """A user id, percent-encoded: any non-empty string.

    WSGI decodes the path before it is routed, so an id with a slash (`google-oauth2/123`) spans
    several segments here.
    """

    regex = "(?s:.+?)"  # a line break is a character like any other
    part_isolating = False

    def to_url(self, value: str) -> str:
        return quote(value, safe="")


class TaskIdConverter(BaseConverter):
    """One segment, as it came: parse_task_id checks it, so that a bad id is a 400 and not a 404.

    Never a word with which another path ends. Else, with a user id such as `team/tasks`, the path
    of the list would be taken for a task of `team`.
    """

    regex = r"(?!(?:tasks|changes)\Z)[^/]+"


def parse_task_id(text: str) -> int:
    """The id in a path: ASCII digits, 1 to 2^63-1. Raises ValidationError for anything else."""
    match = _ID.fullmatch(text)
    if match is None or int(match[1]) > MAX_ID:
        raise ValidationError("Invalid task ID")
    return int(match[1])
