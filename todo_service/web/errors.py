"""Every failure becomes {"error": "..."}; nothing else in the service writes an error body."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from errno import ECONNRESET

import psycopg
from flask import Flask, Response, current_app
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException, InternalServerError, ServiceUnavailable

from todo_service import store
from todo_service.log import Fields
from todo_service.schemas import describe
from todo_service.web.body import respond

# In place of Werkzeug's own sentences, which are long and name what a client does not know.
_MESSAGES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    500: "Internal server error",
    503: "Service temporarily unavailable",
}
# https://www.postgresql.org/docs/current/errcodes-appendix.html
# By class: connection exception, insufficient resources, operator intervention (restart, timeout),
# system error, transaction rollback (deadlock, serialization).
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "57", "58", "40"})
# By code: lock timeout; a standby or a database that was set read-only; a database that does not
# hold the schema yet (table, column or constraint for ON CONFLICT missing) or is just being changed
# (a prepared statement whose result has another type now); and a create whose owner was erased
# meanwhile, which succeeds when it is repeated.
_UNAVAILABLE_CODES = frozenset({"55P03", "25006", "42P01", "42703", "42P10", "0A000", "23503"})


def init_app(app: Flask) -> None:
    """Register one handler for each kind of failure."""
    app.register_error_handler(HTTPException, answer_http)
    app.register_error_handler(ValidationError, answer_validation)
    app.register_error_handler(psycopg.Error, answer_database)
    app.register_error_handler(Exception, answer_bug)


def answer_http(error: HTTPException) -> Response:
    """Keep the status and the headers (Allow, WWW-Authenticate, Retry-After); replace the body."""
    # Show only a message that this service gave: Werkzeug's own are attributes of the class.
    message = vars(error).get("description") or _MESSAGES.get(error.code or 500, error.name)
    response = respond({"error": message}, error.code or 500)
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def answer_validation(error: ValidationError) -> Response:
    return respond({"error": describe(error)}, 400)


def answer_database(error: psycopg.Error) -> Response:
    """503 for an unavailable database, where a retry may help; 500 for a bug. The driver's message
    never goes to the client."""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        missing = []
        with suppress(psycopg.Error):
            missing = store.missing_rights()
        # The message names the table, and not the right.
        return answer_missing_rights(missing or [error.diag.message_primary or "-"])
    if _is_unavailable(error):
        current_app.logger.warning(_fields("database_unavailable", error))
        return answer_http(ServiceUnavailable(retry_after=1))
    message = error.diag.message_primary or "-"
    current_app.logger.error(
        Fields(event="database_error", sqlstate=error.sqlstate or "-", message=message),
        # Not the error itself: its DETAIL quotes the row, and with it what the user wrote.
        exc_info=(type(error), type(error)(message), error.__traceback__),
    )
    return answer_http(InternalServerError())


def answer_missing_rights(missing: list[str]) -> Response:
    """503: what needs other rights goes on, and a GRANT mends the rest."""
    current_app.logger.error(Fields(event="permission_denied", missing="; ".join(missing)))
    return answer_http(ServiceUnavailable(retry_after=1))


def log_if_cut_short(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Log a database failure mid-stream, and break the connection: the 200 has been sent."""
    try:
        yield from chunks
    except psycopg.Error as error:
        current_app.logger.warning(_fields("list_cut_short", error))
        # What servers take for a client that has gone: they close, without a traceback.
        raise ConnectionResetError(ECONNRESET, "list cut short") from error


def answer_bug(error: Exception) -> Response:
    """Logged here rather than by Flask, whose line quotes the path as the client sent it."""
    current_app.logger.error(Fields(event="bug"), exc_info=error)
    return answer_http(InternalServerError())


def _fields(event: str, error: psycopg.Error) -> Fields:
    return Fields(event=event, sqlstate=error.sqlstate or "-", reason=type(error).__name__)


def _is_unavailable(error: psycopg.Error) -> bool:
    state = error.sqlstate
    if state is None:
        # No SQLSTATE: the driver itself gave up (no connection, pool timeout, connection lost).
        return isinstance(error, psycopg.OperationalError)
    return state[:2] in _UNAVAILABLE_CLASSES or state in _UNAVAILABLE_CODES
