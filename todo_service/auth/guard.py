"""Who is asking: a bearer token becomes a user id, and the path must name the same one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Request, g, request
from werkzeug.exceptions import Forbidden, MethodNotAllowed

from todo_service.auth.tokens import TokenRefused, Unauthorized, VerifiedTokens, Verifier
from todo_service.log import Fields, RateLimit
from todo_service.schemas import is_storable
from todo_service.settings import Settings

log = logging.getLogger(__name__)

Authenticator = Callable[[Request], str]

USER_ID_BYTES = 1024  # users_id_length_check in sql/schema.sql
_PROTECTED = "/api/"


def init_app(app: Flask, authenticate: Authenticator) -> None:
    """Guard every path under /api/, whether or not a route answers there.

    A hook on the app rather than on a blueprint: a route that is added under /api/ is guarded
    wherever it is defined.
    """
    # A flood leaves no more. At level INFO: tokens expire every day, and nobody on call has to act.
    refusals = RateLimit(times=10, seconds=1.0)

    @app.before_request
    def require_owner() -> None:
        # A CORS preflight carries no token (Fetch standard) and OPTIONS shows no data.
        if not request.path.startswith(_PROTECTED) or request.method == "OPTIONS":
            return
        try:
            user_id = check_user_id(authenticate(request))
        except TokenRefused as refused:
            if refusals.allows():
                log.info(Fields(event="token_refused", reason=refused.reason))
            raise
        g.user_id = user_id
        arguments: Mapping[str, Any] | None = request.view_args
        if isinstance(request.routing_exception, MethodNotAllowed):
            arguments = _arguments_of_another_method(app, request)
        path_user = (arguments or {}).get("user_id", user_id)
        if path_user != user_id:
            g.path_user = path_user
            raise Forbidden


def check_user_id(user_id: str) -> str:
    """The id, if the database can hold it; else raises TokenRefused."""
    if not 0 < len(user_id.encode(errors="replace")) <= USER_ID_BYTES or not is_storable(user_id):
        raise TokenRefused("subject")
    return user_id


def _arguments_of_another_method(app: Flask, request: Request) -> Mapping[str, Any]:
    """The parts of a path that has routes, but none for the request's method."""
    adapter, error = app.create_url_adapter(request), request.routing_exception
    assert adapter is not None
    assert isinstance(error, MethodNotAllowed) and error.valid_methods
    return adapter.match(method=next(iter(error.valid_methods)))[1]


def bearer(settings: Settings) -> Authenticator:
    """The authenticator for JWTs from the Authorization header (RFC 6750).

    Raises SettingsError unless exactly one of JWT_SECRET and JWT_JWKS_URL is set.
    """
    verifier = Verifier(settings)
    verified = VerifiedTokens()

    def authenticate(request: Request) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not (token := token.strip(" ")):
            raise Unauthorized()
        user_id = verified.get(token)
        if user_id is None:
            user_id, expires_at = verifier.verify(token)
            verified.add(token, user_id, expires_at)
        return user_id

    return authenticate
