"""JSON in and out, queries, entity tags, conditions and idempotency keys."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import parse_qsl

import orjson
from flask import Response, request
from marshmallow import ValidationError
from werkzeug.datastructures import Headers, MultiDict
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    PreconditionFailed,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)
from werkzeug.http import quote_etag

from todo_service.schemas import MAX_BODY, Query
from todo_service.task import ANY_VERSION, Versions, from_microseconds

# How many tags an If-Match or If-None-Match may list; a client needs one.
MAX_TAGS = 100

JSON = "application/json"
# What PATCH takes. In a merge patch (RFC 7396), a member is set, and null removes it. Here, plain
# JSON means the same.
PATCH_TYPES = (JSON, "application/merge-patch+json")

_KEY = re.compile("[!-~]{1,255}")
# A string of RFC 9651 section 3.3.3.
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')

# For a path that takes arrays; errors.py has the message for the others.
_TOO_LARGE = "Request body must be at most 64 KiB, an array of tasks at most 1 MiB"

# The tag of a version as task.version_of writes it; 14 digits are enough until the year 4253.
_TAG = re.compile('"[1-9a-f][0-9a-f]{0,13}"')


def encode(value: object) -> bytes:
    """Compact JSON. Times are in UTC, as RFC 3339 with Z; one without a zone is taken for UTC."""
    return orjson.dumps(value, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def respond(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return respond_encoded(encode(value), status)


def respond_encoded(body: bytes, status: int = 200) -> Response:
    """A JSON response whose body is JSON already."""
    return JsonResponse(body, status, content_type=JSON)


class JsonResponse(Response):
    """A response that has its whole body, and the length of it, from the start."""

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        """The headers as they are: Werkzeug would copy and check each of them once more.

        Except for 304, where Werkzeug takes out those of a body.
        """
        if self.status_code == 304:
            return super().get_wsgi_headers(environ)
        return self.headers


def decode(raw: bytes) -> Any:
    """Parse RFC 8259 JSON: UTF-8, no NaN or Infinity. None for anything else.

    Not by orjson, which stops at a lone surrogate: the standard library lets it through to the
    schema, and that can name the field.
    """
    try:
        return _DECODER.decode(raw.decode())
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_int(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # too long for int(), and for any field of ours
        return float(digits)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_parse_int)


class UnsupportedBody(UnsupportedMediaType):
    """415. Where there is a PATCH, it names the types that may be sent (RFC 5789 section 2.2)."""

    def __init__(self, message: str, types: tuple[str, ...]) -> None:
        super().__init__(message)
        self.types = types

    def get_headers(self, *_: Any) -> list[tuple[str, str]]:
        return [("Accept-Patch", ", ".join(self.types))] if self.types == PATCH_TYPES else []


def read_body(types: tuple[str, ...] = (JSON,), *, required: bool = True) -> dict[str, Any]:
    """The request's JSON object, of one of these types; `{}` for no body that is not required.

    Raises ValidationError, or 400, 413 or 415 as an HTTPException.
    """
    if not required and not request.content_length and not request.headers.get("Transfer-Encoding"):
        return {}
    raw = _read(MAX_BODY, types)
    body = decode(raw) if raw or required else {}
    if not isinstance(body, dict):
        raise ValidationError("Request body must be a JSON object")
    return body


def read_object_or_array(max_array: int) -> dict[str, Any] | list[Any]:
    """As read_body, or a JSON array of at most so many bytes."""
    body = decode(_read(max_array, (JSON,)))
    if not isinstance(body, dict | list):
        raise ValidationError("Request body must be a JSON object")
    return body


def _read(max_array: int, types: tuple[str, ...]) -> bytes:
    """The whole body; no more of it than is needed to know that it is too large."""
    try:
        raw = _read_in_limits(max_array)
    except OSError:  # raised by gunicorn; Werkzeug's own streams raise ClientDisconnected
        raise ClientDisconnected from None
    if request.content_length not in (None, len(raw)):
        raise BadRequest("Request body was cut short")
    if raw and request.mimetype not in types:
        raise UnsupportedBody(f"Content-Type must be {' or '.join(types)}", types)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedBody("Content-Encoding is not supported", types)
    return raw


def _read_in_limits(max_array: int) -> bytes:
    announced = request.content_length
    if announced is not None and announced <= MAX_BODY:
        return request.get_data(cache=False)
    if announced is not None and announced > max_array > MAX_BODY:
        raise RequestEntityTooLarge(_TOO_LARGE)  # which of the two it is, is not known yet
    # One byte over a limit is read, because Werkzeug cuts a chunked body off without an error.
    request.max_content_length = max_array + 1
    raw: bytes = request.stream.read(MAX_BODY + 1)
    if len(raw) <= MAX_BODY:
        return raw
    if max_array == MAX_BODY or raw.lstrip(b" \t\r\n")[:1] != b"[":
        raise RequestEntityTooLarge
    raw += request.stream.read(max_array + 1 - len(raw))
    if len(raw) > max_array:
        raise RequestEntityTooLarge(_TOO_LARGE)
    return raw


@lru_cache(maxsize=128)
def parse_query(schema: Query, query_string: bytes) -> Mapping[str, Any]:
    """What a query asks for. Remembered, because most clients send the same few.

    Raises ValidationError.
    """
    parameters = parse_qsl(query_string.decode(errors="replace"), keep_blank_values=True)
    query: Mapping[str, Any] = schema.load(MultiDict(parameters))
    return query


def read_idempotency_key() -> str | None:
    """The key, without the quotes that the IETF draft wants (draft-ietf-httpapi-idempotency-key).

    Two keys are refused: gunicorn.conf.py joins their lines by ", ", which a key cannot hold.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if len(key) > 1 and key[0] == key[-1] == '"':
        quoted = _QUOTED.fullmatch(key)
        key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if _KEY.fullmatch(key):
        return key
    raise ValidationError("Idempotency-Key must be 1 to 255 visible ASCII characters")


def digest_of(data: dict[str, Any] | list[dict[str, Any]]) -> bytes:
    """SHA-256 of a validated body; the order in which its fields were sent does not matter."""
    fields = (
        [sorted(item.items()) for item in data] if isinstance(data, list) else sorted(data.items())
    )
    return hashlib.sha256(encode(fields)).digest()


def read_versions() -> Versions:
    """The versions that the request may change: those in If-Match, except those in If-None-Match.

    RFC 9110 section 13.1. A tag that this service never made matches nothing.
    """
    versions = ANY_VERSION
    if "If-Match" in request.headers:
        tags = _read_tags("If-Match")
        if tags != {"*"}:
            versions = Versions(one_of=_parse_versions(tags))
    if "If-None-Match" in request.headers:
        tags = _read_tags("If-None-Match")
        if tags == {"*"}:  # only if there is no task
            return Versions(one_of=[])
        versions = versions._replace(none_of=_parse_versions(_weaken(tags)))
    return versions


def refuse_if_match() -> None:
    """For a change of many tasks: If-Match could only name a list's ETag, and that is weak.

    RFC 9110 section 13.1.1: a change whose condition is false must not be made.
    """
    if "If-Match" in request.headers and _read_tags("If-Match") != {"*"}:
        raise PreconditionFailed("A list has no strong ETag that If-Match could name")


def _parse_versions(tags: set[str]) -> list[datetime]:
    return [from_microseconds(int(tag[1:-1], 16)) for tag in tags if _TAG.fullmatch(tag)]


def unless_known(response: Response) -> Response:
    """304 if the client already has this version (RFC 9110 section 13.1.2)."""
    if "If-None-Match" in request.headers:
        tags = _read_tags("If-None-Match")
        etag = response.headers.get("ETag")
        if etag is not None and (tags == {"*"} or etag.removeprefix("W/") in _weaken(tags)):
            response.status_code = 304
    return response


def _read_tags(name: str) -> set[str]:
    """The entity tags of a header, with their quotes and W/. Those of ours hold no comma."""
    header = request.headers[name]
    if header.count(",") >= MAX_TAGS:
        raise BadRequest(f"{name} must list at most {MAX_TAGS} tags")
    return {tag.strip(" \t") for tag in header.split(",")}


def _weaken(tags: set[str]) -> set[str]:
    """For the comparison in which weak and strong tags are equal (RFC 9110 section 8.8.3.2)."""
    return {tag.removeprefix("W/") for tag in tags}


class TaskModified(PreconditionFailed):
    """412, with the ETag that the task has now."""

    def __init__(self, version: str) -> None:
        super().__init__("Task was modified")
        self.version = version

    def get_headers(self, *_: Any) -> list[tuple[str, str]]:
        return [("ETag", quote_etag(self.version))]
