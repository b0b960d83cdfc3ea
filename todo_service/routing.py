"""How a user id and a task id stand in a path."""

from __future__ import annotations

from urllib.parse import quote

from werkzeug.routing import BaseConverter


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
    """One segment, checked by the schema later, so that a bad id is a 400.

    Never the word that ends a list's path: with a user id such as `team/tasks`, that would be
    taken for a task of `team`.
    """

    regex = r"(?!tasks\Z)[^/]+"
