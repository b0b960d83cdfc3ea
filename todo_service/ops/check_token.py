"""Explain why a token is accepted or refused: what came, what is expected, what to do."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import jwt
from werkzeug.exceptions import ServiceUnavailable

from todo_service.auth.guard import check_user_id
from todo_service.auth.tokens import LEEWAY, TokenRefused, Verifier
from todo_service.settings import Settings

_JWT_PLUGIN = (
    "Take the token of Better Auth's jwt plugin, from authClient.token() or GET /api/auth/token."
)
_HINTS = {
    "expired": "Fetch a new one in time. If this one is new, compare the clocks.",
    "not_yet_valid": "Compare the clocks of the issuer and of this machine.",
    "audience": (
        "If this is a token for this service, set JWT_AUDIENCE to what came, letter by letter."
        " Better Auth puts its base URL into aud, unless its jwt plugin is told otherwise."
    ),
    "issuer": (
        "If this is the issuer that you mean, set JWT_ISSUER to what came, letter by letter."
        " Better Auth puts its base URL into iss, unless its jwt plugin is told otherwise."
    ),
    "subject": (
        "The claim that names the user has to be a string of 1 to 1024 bytes, without U+0000."
        " JWT_USER_CLAIM says which claim that is."
    ),
    "unknown_key": (
        "The issuer at JWT_JWKS_URL does not publish the key with this kid."
        " Is the token from another issuer, or from another environment of it?"
    ),
}


def explain(token: str, settings: Settings) -> tuple[bool, str]:
    """Whether the service accepts the token, and the report. The token itself is not in it.

    Raises SettingsError if the settings have no way to verify tokens.
    """
    verifier = Verifier(settings)
    try:
        user_id = check_user_id(verifier.verify(token)[0])
    except TokenRefused as refused:
        accepted, verdict = False, f"Refused: {refused.reason}"
        hint = _hint(refused, token, verifier)
    except ServiceUnavailable:
        accepted, verdict = False, "Not known: the keys at JWT_JWKS_URL cannot be read"
        hint = "Requests with this token get a 503."
    else:
        accepted, verdict, hint = True, f"Accepted, for the user {user_id!r}", ""
    return accepted, "\n\n".join(filter(None, [verdict, _table(token, verifier), hint]))


def _table(token: str, verifier: Verifier) -> str:
    """What came and what is expected, side by side; empty for what is no JWT."""
    try:
        parts = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return ""
    header, claims, settings = parts["header"], parts["payload"], verifier.settings
    key_ids = [] if verifier.keys is None else verifier.keys.ids()
    user_claim, now = settings.jwt_user_claim, time.time()
    rows = [
        ("", "came", "expected"),
        ("alg", _show(header.get("alg")), " or ".join(verifier.algorithms)),
        ("kid", _show(header.get("kid")), " or ".join(map(_show, key_ids)) or "-"),
        ("iss", _show(claims.get("iss")), _setting("JWT_ISSUER", settings.jwt_issuer)),
        ("aud", _show(claims.get("aud")), _setting("JWT_AUDIENCE", settings.jwt_audience)),
        (user_claim, _show(claims.get(user_claim)), "a user id"),
        ("exp", _show_time(claims.get("exp"), now), f"at most {LEEWAY:.0f} s ago"),
        ("nbf", _show_time(claims.get("nbf"), now), f"if any, at most {LEEWAY:.0f} s from now"),
        ("iat", _show_time(claims.get("iat"), now), f"if any, at most {LEEWAY:.0f} s from now"),
    ]
    names, came = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"  {a:{names}}  {b:{came}}  {c}" for a, b, c in rows)


def _show(value: object) -> str:
    """As Python writes it: control characters, which a terminal would obey, are escaped."""
    text = "none" if value is None else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _show_time(value: Any, now: float) -> str:
    try:
        moment = datetime.fromtimestamp(int(value), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return _show(value)
    seconds = int(value) - now
    distance = f"{seconds:.0f} s from now" if seconds >= 0 else f"{-seconds:.0f} s ago"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC, {distance}"


def _setting(name: str, value: str | None) -> str:
    return f"anything: {name} is not set" if value is None else f"{value!r} ({name})"


def _hint(refused: TokenRefused, token: str, verifier: Verifier) -> str:
    by_secret = verifier.keys is None
    match refused.reason:
        case "malformed" if token.count(".") != 2:
            return (
                "This is not a JWT, which has three parts with dots between them."
                f" Better Auth's session.token is not one either. {_JWT_PLUGIN}"
            )
        case "malformed":
            return (
                f"PyJWT says: {_show(str(refused.__cause__))}."
                " Is it whole, and nothing else, such as the word Bearer?"
            )
        case "algorithm" if by_secret:
            return (
                "JWT_SECRET is for HS256. A token signed with an issuer's key needs JWT_JWKS_URL."
            )
        case "algorithm" if jwt.get_unverified_header(token).get("alg") == "HS256":
            return (
                "It is signed with a secret, and JWT_JWKS_URL is for an issuer's keys."
                f" Better Auth's cookie session_data is such a token. {_JWT_PLUGIN}"
            )
        case "algorithm":
            return (
                "The issuer has to sign with one of the three, and publish the key as one for that."
                " In Better Auth's jwt plugin this is jwks.keyPairConfig.alg."
            )
        case "signature" if by_secret:
            return "It was signed with another secret than JWT_SECRET, or changed since."
        case "signature":
            return (
                "It was changed since it was signed, or signed with another key than its kid says."
            )
    return _HINTS[refused.reason]
