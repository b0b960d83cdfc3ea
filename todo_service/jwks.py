"""The issuer's public keys (RFC 7517): fetched rarely, remembered through outages."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock

from jwt import PyJWK, PyJWKClient
from werkzeug.exceptions import ServiceUnavailable

log = logging.getLogger(__name__)

ALGORITHMS = frozenset({"EdDSA", "ES256", "RS256"})


class Jwks:
    """Looks keys up by id; only an unknown id ever waits for the issuer.

    PyJWT's client fetches and parses. Its own cache is left aside: it forgets the keys when its
    time is up, issuer or no issuer, and holds everybody up while one fetch is under way.
    """

    LIFETIME = 300.0  # seconds until the set is read again in the background
    FETCH_TIMEOUT = 3.0  # seconds that one request waits for the issuer
    # Fetches on behalf of unknown ids: two at once, then one per interval. That is at most five in
    # any minute per worker process, whatever is sent, and a rotated-in key is found in 20 seconds.
    BURST = 2
    INTERVAL = 20.0

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, PyJWK] = {}
        self._stale_at = 0.0
        self._spent_until = 0.0
        self._last: Future[None] | None = None
        self._lock = Lock()
        # One thread, started by the first fetch and so after the fork, never two fetches at once.
        self._executor = ThreadPoolExecutor(1, "jwks")

    def find(self, key_id: object) -> PyJWK:
        """The key with this id.

        Raises KeyError if the issuer does not publish it, ServiceUnavailable if that cannot be
        told because the issuer does not answer.
        """
        key = self._keys.get(key_id) if isinstance(key_id, str) else None
        if key is not None:
            if time.monotonic() > self._stale_at:
                self._fetch()
            return key
        if not isinstance(key_id, str):
            raise KeyError("kid")
        fetch = self._fetch()
        wait([fetch], self.FETCH_TIMEOUT)
        if key_id in self._keys:
            return self._keys[key_id]
        if not fetch.done() or fetch.exception() is not None:
            raise ServiceUnavailable(retry_after=int(self.INTERVAL))
        raise KeyError(key_id)

    def _fetch(self) -> Future[None]:
        """The fetch under way, else a new one if the budget allows, else the last one."""
        with self._lock:
            if self._last is not None and not self._last.done():
                return self._last
            now = time.monotonic()
            if self._last is None or self._spent_until - now <= self.INTERVAL * (self.BURST - 1):
                self._spent_until = max(self._spent_until, now) + self.INTERVAL
                self._last = self._executor.submit(self._load)
                self._last.add_done_callback(_log_failure)
            return self._last

    def _load(self) -> None:
        self._keys, _ = fetch(self._url)
        self._stale_at = time.monotonic() + self.LIFETIME


def fetch(url: str) -> tuple[dict[str, PyJWK], set[str]]:
    """The issuer's keys by their ids, and the algorithms of those that cannot be used."""
    client = PyJWKClient(
        url,
        cache_jwk_set=False,
        headers={"User-Agent": "todo-service", "Accept": "application/json"},
        timeout=Jwks.FETCH_TIMEOUT,
    )
    keys: dict[str, PyJWK] = {}
    unusable: set[str] = set()
    for key in client.get_signing_keys():
        if key.algorithm_name in ALGORITHMS and key.key_id is not None:
            keys[key.key_id] = key
        else:
            unusable.add(key.algorithm_name)
    return keys, unusable


def _log_failure(fetch: Future[None]) -> None:
    error = fetch.exception()
    if error is not None:
        log.warning("event=jwks_fetch_failed reason=%s", type(error).__name__)
