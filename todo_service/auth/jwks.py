"""The issuer's public keys (RFC 7517): fetched rarely, and kept while the issuer is down."""

from __future__ import annotations

import json
import logging
import time
from threading import Lock, Thread, current_thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from jwt import PyJWK
from werkzeug.exceptions import ServiceUnavailable

from todo_service.log import Fields

log = logging.getLogger(__name__)

ALGORITHMS = ("EdDSA", "ES256", "RS256")
MAX_SET = 1024 * 1024  # bytes; an issuer's set of keys has a few thousand


class DownloadError(Exception):
    """An answer came, but not what was asked for; the message says what it was."""


class Jwks:
    """Finds keys by their id. Only an unknown id makes a request wait for the issuer.

    Not PyJWT's client: it forgets the keys when their time is up, even while the issuer is down,
    and its time limit is for each piece of an answer, however many pieces there are.
    """

    LIFETIME = 300.0  # seconds until the set is read again in the background
    WAIT = 3.0  # seconds that one request waits for the issuer
    DEADLINE = 10.0  # seconds that a fetch may take; an issuer that has to wake up needs a few
    # Fetches for unknown ids: two at once, then one per interval. So a worker makes at most five in
    # any minute, whatever is sent, and finds a new key within 20 seconds.
    BURST = 2
    INTERVAL = 20.0

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, PyJWK] = {}
        self._unusable: set[str] = set()
        self._stale_at = 0.0
        self._spent_until = 0.0
        self._fetch: Thread | None = None
        self._give_up_at = 0.0
        self._failed = False
        self._lock = Lock()

    def ids(self) -> list[str]:
        """The ids of the keys that are known now."""
        return sorted(self._keys)

    def find(self, key_id: object) -> PyJWK:
        """The key with this id.

        Raises KeyError if the issuer does not publish it, ServiceUnavailable if the issuer cannot
        be reached, so nobody knows.
        """
        key = self._keys.get(key_id) if isinstance(key_id, str) else None
        if key is not None:
            if time.monotonic() > self._stale_at:
                self._start_fetch()
            return key
        if not isinstance(key_id, str):
            raise KeyError("kid")
        fetching = self._start_fetch()
        fetching.join(self.WAIT)
        if key_id in self._keys:
            return self._keys[key_id]
        if fetching.is_alive() or self._failed:
            raise ServiceUnavailable(retry_after=int(self.INTERVAL))
        raise KeyError(key_id)

    def _start_fetch(self) -> Thread:
        """The fetch under way, else a new one if the budget allows, else the last one."""
        with self._lock:
            now = time.monotonic()
            if self._fetch is not None and self._fetch.is_alive() and now < self._give_up_at:
                return self._fetch
            if self._fetch is None or self._spent_until - now <= self.INTERVAL * (self.BURST - 1):
                self._spent_until = max(self._spent_until, now) + self.INTERVAL
                # A daemon: a process that stops does not wait for it.
                self._fetch = Thread(target=self._load, name="jwks", daemon=True)
                self._give_up_at = now + self.DEADLINE
                self._fetch.start()
            return self._fetch

    def _load(self) -> None:
        try:
            keys, unusable = fetch(self._url, self.DEADLINE)
        except Exception as error:  # Whatever it is, the known keys go on working.
            self._failed = True
            reason = str(error) if isinstance(error, DownloadError) else type(error).__name__
            log.warning(Fields(event="jwks_fetch_failed", reason=reason))
            return
        if current_thread() is not self._fetch:
            return  # It was given up, and what it brings may be older than what came since.
        self._keys = keys
        self._stale_at = time.monotonic() + self.LIFETIME
        self._failed = False
        if unusable != self._unusable:
            self._unusable = unusable
            if unusable:
                names = ", ".join(sorted(unusable))
                log.warning(Fields(event="jwks_keys_unusable", keys=names))


def fetch(url: str, seconds: float) -> tuple[dict[str, PyJWK], set[str]]:
    """The issuer's keys by their ids, and names for those that cannot be used."""
    return parse(download(url, seconds))


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: whoever can redirect could choose the keys. urllib raises HTTPError then."""


_opener = build_opener(_NoRedirect)


def download(url: str, seconds: float) -> bytes:
    """The body at this address; given up after so many seconds, or past MAX_SET bytes.

    The time is checked after each piece of the body. A head that never ends takes longer, but
    nobody waits for it: Jwks starts another fetch then.
    """
    deadline = time.monotonic() + seconds
    headers = {"User-Agent": "todo-service", "Accept": "application/json"}
    request = Request(url, headers=headers)  # noqa: S310 the settings refuse other schemes than http
    try:
        with _opener.open(request, timeout=seconds) as response:
            body = b""
            while piece := response.read1(65536):
                body += piece
                if len(body) > MAX_SET:
                    raise DownloadError(f"more than {MAX_SET} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except HTTPError as error:
        with error:
            raise DownloadError(f"status {error.code}") from None
    return body


def parse(body: bytes) -> tuple[dict[str, PyJWK], set[str]]:
    """The keys of a set by their ids, and names for those that cannot be used.

    Keys for encryption are in neither. Each key is read by itself: one that PyJWT cannot read, or
    that makes it fail, must not hide the others.
    """
    keys: dict[str, PyJWK] = {}
    unusable: set[str] = set()
    for data in json.loads(body)["keys"]:
        if not isinstance(data, dict) or data.get("use") not in (None, "sig"):
            continue
        try:
            key = PyJWK(data)
        except Exception:  # not only its own: KeyError, TypeError, NotImplementedError were seen
            unusable.add(f"{data.get('alg') or data.get('kty')} unreadable")
            continue
        if key.algorithm_name not in ALGORITHMS:
            unusable.add(key.algorithm_name)
        elif not isinstance(key.key_id, str):
            unusable.add(f"{key.algorithm_name} without kid")
        else:
            keys[key.key_id] = key
    if not keys and not unusable:
        raise DownloadError("no keys")
    return keys, unusable
