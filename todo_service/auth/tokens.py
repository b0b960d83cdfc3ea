"""A JWT (RFC 7519) becomes the user it names, or the reason why it is refused."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import blake2b
from threading import Lock
from typing import Any

import jwt
from jwt import PyJWK
from werkzeug.exceptions import HTTPException

from todo_service.auth.jwks import ALGORITHMS, Jwks
from todo_service.settings import Settings, SettingsError

LEEWAY = 30.0  # seconds of clock skew forgiven

# What jwt.decode and Jwks.find raise, and the reason that it stands for; all else is `malformed`.
_REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "expired",
    jwt.ImmatureSignatureError: "not_yet_valid",
    jwt.InvalidAudienceError: "audience",
    jwt.InvalidIssuerError: "issuer",
    jwt.InvalidAlgorithmError: "algorithm",
    jwt.InvalidSignatureError: "signature",
    KeyError: "unknown_key",
}


class Unauthorized(HTTPException):
    """401 with the challenge that RFC 6750 section 3 asks for."""

    code = 401

    def __init__(self, challenge: str = "Bearer") -> None:
        super().__init__()
        self.challenge = challenge

    def get_headers(self, *_: Any) -> list[tuple[str, str]]:
        return [("WWW-Authenticate", self.challenge)]


class TokenRefused(Unauthorized):
    """A token came, and is not accepted. The reason is for the log: the client is not told."""

    def __init__(self, reason: str) -> None:
        super().__init__('Bearer error="invalid_token"')
        self.reason = reason


class Verifier:
    """Verifies tokens as the settings say: with JWT_SECRET, or with the keys at JWT_JWKS_URL."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError unless exactly one of the two is set."""
        by_secret, by_issuer = settings.jwt_secret is not None, settings.jwt_jwks_url is not None
        if by_secret and by_issuer:
            raise SettingsError(
                "JWT_SECRET and JWT_JWKS_URL are both set; unset JWT_SECRET if an issuer signs"
                " (it may stand in .env)"
            )
        if not by_secret and not by_issuer:
            raise SettingsError("neither JWT_SECRET nor JWT_JWKS_URL is set; set one of them")
        self.settings = settings
        self.keys = None if settings.jwt_jwks_url is None else Jwks(settings.jwt_jwks_url)
        self.algorithms = ("HS256",) if self.keys is None else ALGORITHMS

    def verify(self, token: str) -> tuple[str, int]:
        """The user id and the `exp` of a good token.

        Raises TokenRefused; or ServiceUnavailable, if its key is not known and the issuer does not
        answer.
        """
        settings, claim = self.settings, self.settings.jwt_user_claim
        try:
            if self.keys is None:
                claims = self._decode(token, settings.jwt_secret, self.algorithms)
            else:
                claims = self._decode_by_published_key(token, self.keys)
        except jwt.MissingRequiredClaimError as error:
            missing = {"aud": "audience", "iss": "issuer", claim: "subject"}
            raise TokenRefused(missing.get(error.claim, "malformed")) from error
        # Not only PyJWT's own errors: malformed JSON makes it raise ValueError or RecursionError.
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise TokenRefused(_REASONS.get(type(error), "malformed")) from error
        user_id = claims[claim]
        if not isinstance(user_id, str) or not user_id:
            raise TokenRefused("subject")
        return user_id, int(claims["exp"])

    def _decode_by_published_key(self, token: str, keys: Jwks) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in (*self.algorithms, "Ed25519"):
            raise jwt.InvalidAlgorithmError
        key = keys.find(header.get("kid"))
        try:
            return self._decode(token, *_named_as_in(header, key))
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
            # The issuer may have put a new key in its place, under the same id.
            newer = keys.find_newer(header.get("kid"))
            if newer is None or newer is key:
                raise
            return self._decode(token, *_named_as_in(header, newer))

    def _decode(self, token: str, key: Any, algorithms: Sequence[str]) -> dict[str, Any]:
        settings = self.settings
        return jwt.decode(
            token,
            key,
            algorithms=algorithms,
            options={
                "require": ["exp", settings.jwt_user_claim],
                "verify_aud": settings.jwt_audience is not None,
                "verify_sub": False,  # In verify, for whichever claim names the user.
            },
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            leeway=LEEWAY,
        )


def _named_as_in(header: Mapping[str, Any], key: PyJWK) -> tuple[PyJWK, list[str]]:
    """The key and its algorithm; the token's own `alg` only chooses between two names of it."""
    if key.algorithm_name == "EdDSA" and header["alg"] == "Ed25519":  # RFC 9864
        key = copy(key)
        key.algorithm_name = "Ed25519"
    return key, [key.algorithm_name]


class VerifiedTokens:
    """The user ids of tokens that were verified lately, so that each is verified once.

    An entry is good until its token's `exp`, and for at most `LIFETIME` seconds, because the issuer
    may withdraw the key meanwhile. These are counted by a clock that nobody can set back. Holds
    digests, never a token.
    """

    SIZE = 4096
    LIFETIME = 300.0

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[str, float, float]] = {}
        self._lock = Lock()

    def get(self, token: str) -> str | None:
        entry = self._entries.get(_digest(token))
        if entry is None:
            return None
        user_id, expires_at, good_until = entry
        if time.time() >= expires_at or time.monotonic() >= good_until:
            return None
        return user_id

    def add(self, token: str, user_id: str, expires_at: float) -> None:
        digest = _digest(token)
        with self._lock:
            self._entries.pop(digest, None)
            if len(self._entries) >= self.SIZE:
                # The oldest: a dict keeps the order of insertion.
                del self._entries[next(iter(self._entries))]
            self._entries[digest] = (user_id, expires_at, time.monotonic() + self.LIFETIME)


def _digest(token: str) -> bytes:
    return blake2b(token.encode(errors="surrogateescape"), digest_size=32).digest()
