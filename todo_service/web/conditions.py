"""Entity tags and conditional requests (RFC 9110 sections 8.8.3 and 13), and idempotency keys."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from flask import Response, request
from marshmallow import ValidationError
from werkzeug.exceptions import BadRequest, PreconditionFailed

from todo_service.schemas import is_key
from todo_service.task import ANY_VERSION, Task, Versions, parse_time
from todo_service.web.body import encode

# How many tags an If-Match or If-None-Match may list; a client needs one.
MAX_TAGS = 100

# An entity tag as it was made, or as a proxy that compresses has rewritten it: nginx, HAProxy and
# Cloudflare put W/ before it, Apache the name of the coding before its closing quote.
_TAG = re.compile(r'(?:W/)?"([^"]*?)(?:(?:--?|;)(?:gzip|br|zstd|deflate))?"')

# A string of RFC 9651 section 3.3.3.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')

MODIFIED = "Task was modified"


class TaskModified(PreconditionFailed):
    """412, with the ETag that the task has now."""

    def __init__(self, task: Task) -> None:
        super().__init__(MODIFIED)
        self.tag = tag_of(task)

    def get_headers(self, *_: Any) -> list[tuple[str, str]]:
        return [("ETag", self.tag)]


def tag_of(task: Task) -> str:
    """The ETag of a task: its updated_at, in the same characters as in its JSON."""
    return encode(task["updated_at"]).decode()


def read_versions() -> Versions:
    """The versions that the request may change: those in If-Match, except those in If-None-Match.

    RFC 9110 section 13.1. A tag that this service never made matches nothing.
    """
    versions = ANY_VERSION
    if "If-Match" in request.headers:
        tags = _read_tags("If-Match")
        if tags != {"*"}:
            versions = Versions(one_of=_times_of(tags))
    if "If-None-Match" in request.headers:
        tags = _read_tags("If-None-Match")
        if tags == {"*"}:  # only if there is no task
            return Versions(one_of=[])
        versions = versions._replace(none_of=_times_of(tags))
    return versions


def refuse_if_match() -> None:
    """For a change of many tasks: If-Match could only name a list's ETag, and that is weak.

    RFC 9110 section 13.1.1: a change whose condition is false must not be made.
    """
    if "If-Match" in request.headers and _read_tags("If-Match") != {"*"}:
        raise PreconditionFailed("A list has no strong ETag that If-Match could name")


def answer_304_if_known(response: Response) -> Response:
    """304 if the client already has what this ETag names (RFC 9110 section 13.1.2)."""
    if "If-None-Match" in request.headers and "ETag" in response.headers:
        tags = _read_tags("If-None-Match")
        if tags == {"*"} or _named(response.headers["ETag"]) in map(_named, tags):
            response.status_code = 304
    return response


def _read_tags(name: str) -> set[str]:
    """The entity tags of a header, with their quotes and W/. Those of ours hold no comma."""
    header = request.headers[name]
    if header.count(",") >= MAX_TAGS:
        raise BadRequest(f"{name} must list at most {MAX_TAGS} tags")
    return {tag.strip(" \t") for tag in header.split(",")}


def _named(tag: str) -> datetime | str | None:
    """What is inside the quotes, without what proxies add, as a time if it is one.

    None for what is no tag at all.
    """
    match = _TAG.fullmatch(tag)
    return match and (parse_time(match[1]) or match[1])


def _times_of(tags: set[str]) -> list[datetime]:
    return [time for time in map(_named, tags) if isinstance(time, datetime)]


def read_idempotency_key() -> str | None:
    """The key, without quotes around it (draft-ietf-httpapi-idempotency-key-header has them)."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if len(key) > 1 and key[0] == key[-1] == '"':
        quoted = _QUOTED.fullmatch(key)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if not is_key(key):
        raise ValidationError("Idempotency-Key must be 1 to 255 visible ASCII characters")
    return key
