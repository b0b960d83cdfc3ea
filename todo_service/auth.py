"""Who is asking: a bearer token becomes a user id, and the path must name the same one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from threading import Lock
from typing import Any

import jwt
from flask import Flask, Request, g, request
from werkzeug.exceptions import Forbidden, HTTPException, MethodNotAllowed

from todo_service.jwks import ALGORITHMS, Jwks
from todo_service.schemas import is_storable
from todo_service.settings import Settings, SettingsError

Authenticator = Callable[[Request], str]

_LEEWAY = 30.0  # seconds of clock skew forgiven
USER_ID_BYTES = 1024  # users_id_length_check in sql/schema.sql
_PROTECTED = "/api/"


class Unauthorized(HTTPException):
    """401 with the challenge that RFC 6750 section 3 asks for."""

    code = 401

    def __init__(self, challenge: str = "Bearer") -> None:
        super().__init__()
        self.challenge = challenge

    def get_headers(self, *_: Any) -> list[tuple[str, str]]:
        return [("WWW-Authenticate", self.challenge)]


def invalid_token() -> Unauthorized:
    return Unauthorized('Bearer error="invalid_token"')


def init_app(app: Flask, authenticate: Authenticator) -> None:
    """Guard every path under /api/, whether or not a route answers there.

    A hook on the app rather than on a blueprint: a route that is added under /api/ is guarded
    wherever it is defined.
    """

    @app.before_request
    def require_owner() -> None:
        # A CORS preflight carries no token (Fetch standard) and OPTIONS shows no data.
        if not request.path.startswith(_PROTECTED) or request.method == "OPTIONS":
            return
        user_id = authenticate(request)
        if not 0 < len(user_id.encode(errors="replace")) <= USER_ID_BYTES:
            raise invalid_token()
        if not is_storable(user_id):
            raise invalid_token()
        g.user_id = user_id
        arguments: Mapping[str, Any] | None = request.view_args
        if isinstance(request.routing_exception, MethodNotAllowed):
            arguments = _arguments_of_another_method(app, request)
        path_user = (arguments or {}).get("user_id", user_id)
        if path_user != user_id:
            g.path_user = path_user
            raise Forbidden


def _arguments_of_another_method(app: Flask, request: Request) -> Mapping[str, Any]:
    """The parts of a path that has routes, but none for the request's method."""
    adapter, error = app.create_url_adapter(request), request.routing_exception
    assert adapter is not None
    assert isinstance(error, MethodNotAllowed) and error.valid_methods
    return adapter.match(method=next(iter(error.valid_methods)))[1]


def bearer(settings: Settings) -> Authenticator:
    """The authenticator for JWTs from the Authorization header (RFC 6750, RFC 7519).

    Raises SettingsError unless exactly one of JWT_SECRET and JWT_JWKS_URL is set.
    """
    if (settings.jwt_secret is None) == (settings.jwt_jwks_url is None):
        raise SettingsError("exactly one of JWT_SECRET and JWT_JWKS_URL must be set")
    keys = None if settings.jwt_jwks_url is None else Jwks(settings.jwt_jwks_url)
    claim = settings.jwt_user_claim
    options: Any = {
        "require": ["exp", claim],
        "verify_aud": settings.jwt_audience is not None,
        "verify_sub": claim == "sub",
    }
    verified = VerifiedTokens()

    def authenticate(request: Request) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not (token := token.strip(" ")):
            raise Unauthorized()
        user_id = verified.get(token)
        if user_id is not None:
            return user_id
        try:
            key: Any = settings.jwt_secret
            algorithms = ["HS256"]
            if keys is not None:
                header = jwt.get_unverified_header(token)
                if header.get("alg") not in ALGORITHMS:
                    raise invalid_token()
                key = keys.find(header.get("kid"))
                algorithms = [key.algorithm_name]
            claims = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                options=options,
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=_LEEWAY,
            )
        # Not only PyJWT's own: it lets ValueError and RecursionError out of rubbish JSON.
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, RecursionError):
            raise invalid_token() from None
        user_id = claims[claim]
        if not isinstance(user_id, str) or not user_id:
            raise invalid_token()
        verified.add(token, user_id, int(claims["exp"]))
        return user_id

    return authenticate


class VerifiedTokens:
    """The user ids of tokens that were verified lately, so that a client pays for that once.

    An entry is good until its token's `exp`, and for at most `LIFETIME` seconds, which bounds how
    long a key that the issuer has withdrawn goes on working. Holds a digest, never a token.
    """

    SIZE = 4096
    LIFETIME = 300.0

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[str, float]] = {}
        self._lock = Lock()

    def get(self, token: str) -> str | None:
        entry = self._entries.get(_digest(token))
        if entry is None or entry[1] <= time.time():
            return None
        return entry[0]

    def add(self, token: str, user_id: str, expires_at: float) -> None:
        digest = _digest(token)
        with self._lock:
            self._entries.pop(digest, None)
            if len(self._entries) >= self.SIZE:
                # The oldest: a dict keeps the order of insertion.
                del self._entries[next(iter(self._entries))]
            good_until = min(expires_at, time.time() + self.LIFETIME)
            self._entries[digest] = (user_id, good_until)


def _digest(token: str) -> bytes:
    return blake2b(token.encode(errors="surrogateescape"), digest_size=32).digest()
