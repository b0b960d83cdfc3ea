"""JSON in and out."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Any, NoReturn

import orjson
from flask import Flask, Response, request
from marshmallow import ValidationError
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)

from todo_service.schemas import MAX_BODY, MAX_CHANGES, MAX_PUSH

JSON = "application/json"
# What PATCH takes. In a merge patch (RFC 7396), a member is set, and null removes it. Here, plain
# JSON means the same.
PATCH_TYPES = (JSON, "application/merge-patch+json")

# In a body that is larger than MAX_BODY, which only a push may be: far more than a legal one has.
MAX_VALUES = 10_000

_WHITE_SPACE = b" \t\n\r"


def init_app(app: Flask) -> None:
    # One byte over the limit is read: Werkzeug cuts a chunked body off there without an error.
    app.config["MAX_CONTENT_LENGTH"] = MAX_PUSH + 1

    @app.after_request
    def name_patch_types(response: Response) -> Response:
        """In the answer to OPTIONS (RFC 5789 section 3.1)."""
        if request.method == "OPTIONS" and "PATCH" in response.allow:
            response.headers["Accept-Patch"] = ", ".join(PATCH_TYPES)
        return response


def encode(value: object) -> bytes:
    """Compact JSON. Times are in UTC, as RFC 3339 with Z; one without a zone is taken for UTC."""
    return orjson.dumps(value, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def respond(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return respond_encoded(encode(value), status)


def respond_encoded(body: bytes, status: int = 200) -> Response:
    """A JSON response whose body is JSON already."""
    return Response(body, status, content_type=JSON)


def decode(raw: bytes) -> Any:
    """Parse RFC 8259 JSON: UTF-8, no NaN or Infinity. Raises ValueError or RecursionError.

    Not by orjson, which stops at a lone surrogate: the standard library lets it through to the
    schema, and that can name the field.
    """
    return _DECODER.decode(raw.decode())


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_int(digits: str) -> int | float:
    # int() takes ever longer for each digit, and refuses more than 4,300.
    return int(digits) if len(digits) < 25 else float(digits)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_parse_int)


class UnsupportedBody(UnsupportedMediaType):
    """415. Where there is a PATCH, it names the types that may be sent (RFC 5789 section 2.2)."""

    def __init__(self, message: str, types: tuple[str, ...]) -> None:
        super().__init__(message)
        self.types = types

    def get_headers(self, *_: Any) -> list[tuple[str, str]]:
        return [("Accept-Patch", ", ".join(self.types))] if self.types == PATCH_TYPES else []


def read_body(
    types: tuple[str, ...] = (JSON,), *, limit: int = MAX_BODY, required: bool = True
) -> dict[str, Any]:
    """The request's JSON object, of one of these types and of at most so many bytes.

    Unless a body is required, none at all and null count as `{}`. Raises ValidationError, or 400,
    413 or 415 as an HTTPException.
    """
    raw = _read(types, limit)
    if not required and (not raw or raw.strip(_WHITE_SPACE) == b"null"):
        return {}
    body: Any = None
    # Of what is no object, nothing is decoded: an array of small values would take longest.
    if raw.lstrip(_WHITE_SPACE).startswith(b"{"):
        if len(raw) > MAX_BODY and _holds_more_values(raw, MAX_VALUES):
            raise ValidationError(f"Send 1 to {MAX_CHANGES} changes")
        with suppress(ValueError, RecursionError):  # not JSON, or nested too deeply
            body = decode(raw)
    if not isinstance(body, dict):
        raise ValidationError("Request body must be a JSON object")
    return body


def _holds_more_values(raw: bytes, limit: int) -> bool:
    """Whether JSON holds more values than that, in a fraction of the time that decoding takes.

    Each value but the first follows a comma or an opening bracket. Strings are left out only if
    there are too many with them.
    """

    def count(text: bytes) -> int:
        return text.count(b",") + text.count(b"[") + text.count(b"{")

    if count(raw) <= limit:
        return False
    unescaped = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    # A value may have a name, and a string has two quotes.
    return unescaped.count(b'"') > 4 * limit or count(b"".join(unescaped.split(b'"')[::2])) > limit


def _read(types: tuple[str, ...], limit: int) -> bytes:
    """The body; reading stops one byte past the limit."""
    request.max_content_length = limit + 1
    try:
        raw = request.get_data(cache=False)
    except OSError:  # raised by gunicorn; Werkzeug's own streams raise ClientDisconnected
        raise ClientDisconnected from None
    except RequestEntityTooLarge:
        raise _too_large(limit) from None
    if len(raw) > limit:
        raise _too_large(limit)
    if request.content_length not in (None, len(raw)):
        raise BadRequest("Request body was cut short")
    if raw and request.mimetype not in types:
        raise UnsupportedBody(f"Content-Type must be {' or '.join(types)}", types)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedBody("Content-Encoding is not supported", types)
    return raw


def _too_large(limit: int) -> RequestEntityTooLarge:
    size = "1 MiB" if limit == MAX_PUSH else "64 KiB"
    return RequestEntityTooLarge(f"Request body must be at most {size}")


def digest_of(data: dict[str, Any]) -> bytes:
    """SHA-256 of a validated body; the order in which its fields were sent does not matter."""
    return hashlib.sha256(encode(sorted(data.items()))).digest()
