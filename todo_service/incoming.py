"""What comes in with a request beside its path and query: the body, and conditions in headers."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

from flask import Response, request
from flask.globals import request_ctx
from marshmallow import ValidationError
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)

from todo_service.codec import decode, encode
from todo_service.schemas import MAX_BODY, from_microseconds, to_microseconds

# updated_at in microseconds, in hexadecimal: 14 digits last until the year 4253.
_TAG = re.compile("[1-9a-f][0-9a-f]{0,13}")


def read_body() -> dict[str, Any]:
    """The request's JSON object. Raises ValidationError, or 400, 413 or 415 as an HTTPException."""
    request = request_ctx.request
    try:
        raw = request.get_data(cache=False)
    except OSError:  # from the server's own stream; Werkzeug's would have turned it into this
        raise ClientDisconnected from None
    if len(raw) > MAX_BODY:
        raise RequestEntityTooLarge
    if request.content_length not in (None, len(raw)):
        raise BadRequest("Request body was cut short")
    if raw and request.mimetype != "application/json":
        raise UnsupportedMediaType
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedMediaType("Content-Encoding is not supported")
    try:
        body = decode(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ValidationError("Request body must be a JSON object")
    return body


def read_idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is None or re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        return key
    raise ValidationError("Idempotency-Key must be 1 to 255 visible ASCII characters")


def digest_of(data: dict[str, Any]) -> bytes:
    """SHA-256 of a validated body; the order in which its fields were sent does not matter."""
    return hashlib.sha256(encode(sorted(data.items()))).digest()


def version_tag(updated_at: datetime) -> str:
    """The opaque part of a task's ETag."""
    return f"{to_microseconds(updated_at.replace(tzinfo=UTC)):x}"


def read_versions() -> list[datetime] | None:
    """The versions that If-Match allows; None if any will do (RFC 9110 section 13.1.1).

    A weak tag, or one that this service never made, matches nothing.
    """
    if "If-Match" not in request.headers or request.if_match.star_tag:
        return None
    return [
        from_microseconds(int(tag, 16))
        for tag in request.if_match.as_set()
        if tag and _TAG.fullmatch(tag)
    ]


def unless_known(response: Response) -> Response:
    """304 if the client already has this version (RFC 9110 section 13.1.2)."""
    if "If-None-Match" in request.headers:
        etag, _ = response.get_etag()
        if etag is not None and request.if_none_match.contains_weak(etag):
            response.status_code = 304
    return response
