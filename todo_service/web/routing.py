"""How a user id and a task id look in a path, and what a view takes from a query."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any
from urllib.parse import parse_qsl, quote

from flask import Flask, Response, request, url_for
from marshmallow import ValidationError
from werkzeug.datastructures import MultiDict
from werkzeug.routing import BaseConverter
from werkzeug.urls import iri_to_uri

from todo_service.schemas import MAX_ID, MAX_NAMED, Query

_ID = re.compile("0*([1-9][0-9]{0,18})")
# What a proxy may say that it has stripped: a path of unreserved characters (RFC 3986 section 2.3).
# Two slashes at the start would make an address at another host of it.
_PREFIX = re.compile("((?:/[A-Za-z0-9._~-]+)+)/?")


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
    """One segment, as it came: `takes` reads it, so that a bad id is a 400 and not a 404.

    Never a word with which another path ends. Else, with a user id such as `team/tasks`, the path
    of the list would be taken for a task of `team`.
    """

    regex = r"(?!(?:tasks|changes)\Z)[^/]+"


def init_app(app: Flask) -> None:
    app.url_map.converters["user_id"] = UserIdConverter
    app.url_map.converters["task_id"] = TaskIdConverter
    # A user id may hold two slashes in a row, and a redirect would lose a request's body.
    app.url_map.merge_slashes = False


def parse_task_id(text: str) -> int:
    """The id in a path: ASCII digits, 1 to 2^63-1. Raises ValidationError for anything else."""
    match = _ID.fullmatch(text)
    if match is None or int(match[1]) > MAX_ID:
        raise ValidationError("Invalid task ID")
    return int(match[1])


def path_of(endpoint: str, **values: Any) -> str:
    """url_for, as the client of a proxy that strips a path has to send it.

    The path of a mount is percent-encoded, too: a header holds ASCII only.
    """
    stripped = _PREFIX.fullmatch(request.headers.get("X-Forwarded-Prefix", ""))
    return (stripped[1] if stripped else "") + iri_to_uri(url_for(endpoint, **values))


View = Callable[..., Response]


def takes(*, query: Query) -> Callable[[View], View]:
    """Give a view the task's id as a number, and its query as a mapping, if that may hold anything.

    A fault in either is a 400. Token and owner were checked before.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def checked(**arguments: Any) -> Response:
            if "task_id" in arguments:
                arguments["task_id"] = parse_task_id(arguments["task_id"])
            parameters = parse_query(query, request.query_string)
            if query.fields:
                arguments["query"] = parameters
            return view(**arguments)

        return checked

    return decorate


@lru_cache(maxsize=128)
def parse_query(schema: Query, query_string: bytes) -> Mapping[str, Any]:
    """What a query asks for. Remembered, because most clients send the same few.

    Raises ValidationError. The first MAX_NAMED parameters are enough to find a fault: no query may
    hold more.
    """
    first = b"&".join([part for part in query_string.split(b"&") if part][:MAX_NAMED])
    parameters = parse_qsl(first.decode(errors="replace"), keep_blank_values=True)
    query: Mapping[str, Any] = schema.load(MultiDict(parameters))
    return query
