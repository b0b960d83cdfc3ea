"""What gunicorn could not parse as HTTP is answered like every other error."""

from __future__ import annotations

import logging
from contextlib import suppress
from http import HTTPStatus
from socket import socket

from flask import Response
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from werkzeug.exceptions import BadRequest

from todo_service.log import Fields, new_request_id
from todo_service.web.body import encode
from todo_service.web.errors import answer_http

log = logging.getLogger(__name__)

# What gunicorn refuses with another status than 400.
_STATUSES: dict[type[Exception], int] = {
    LimitRequestLine: 414,
    ExpectationFailed: 417,
    LimitRequestHeaders: 431,
    UnsupportedTransferCoding: 501,
}
_MESSAGES = {
    400: "Bad request",
    414: "Request line must be at most 8190 bytes",
    417: "Expectation failed",
    431: "Request head must be at most 32 KiB, with 100 header fields of 8190 bytes",
    500: "Internal server error",
    501: "Transfer coding not supported",
}


def answer_malformed_body(_: ParseException) -> Response:
    """gunicorn reads a chunked body when the application asks for it, and finds its faults then."""
    return answer_http(BadRequest())


def answer_unparsed(client: socket, error: Exception, *, with_body: bool = True) -> None:
    """Answer bytes that could not be parsed as HTTP; HEAD without a body (RFC 9110 section 9.3.2).

    Nothing that the client sent is logged: in a malformed request, a token may be anywhere.
    """
    status, request_id = 500, new_request_id()
    extra = {"request_id": request_id}
    if isinstance(error, ParseException):
        status, reason = _STATUSES.get(type(error), 400), type(error).__name__
        log.warning(Fields(event="malformed_request", status=status, reason=reason), extra=extra)
    else:
        log.error(Fields(event="bug"), exc_info=error, extra=extra)
    body = encode({"error": _MESSAGES[status]})
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        f"X-Request-ID: {request_id}",
    )
    with suppress(OSError):
        client.sendall("\r\n".join((*head, "", "")).encode() + (body if with_body else b""))
