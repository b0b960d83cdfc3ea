"""The issuer's public keys (RFC 7517): fetched rarely, and kept while the issuer is down."""

from __future__ import annotations

import json
import logging
import socket
import time
from contextlib import closing
from threading import Lock, Thread, current_thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from jwt import PyJWK
from werkzeug.exceptions import ServiceUnavailable

from todo_service.log import Fields

log = logging.getLogger(__name__)

ALGORITHMS = ("EdDSA", "ES256", "RS256")
MAX_SET = 1024 * 1024  # bytes; an issuer's set of keys has a few thousand

# By their ids. None is that of a key without one, which is used if it is the only key.
Keys = dict[str | None, PyJWK]


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
        self._keys: Keys = {}
        self._unusable: set[str] = set()
        self._stale_at = 0.0
        self._spent_until = 0.0
        self._fetch: Thread | None = None
        self._give_up_at = 0.0
        self._failed = False
        self._lock = Lock()

    def ids(self) -> list[str | None]:
        """The ids of the keys that are known now."""
        return sorted(self._keys, key=str)

    def find(self, key_id: str | None) -> PyJWK:
        """The key with this id; without one, the only key there is.

        Raises KeyError if the issuer does not publish it, ServiceUnavailable if the issuer cannot
        be reached, so nobody knows.
        """
        key = self._known(key_id)
        if key is not None:
            if time.monotonic() > self._stale_at:
                self._start_fetch()
            return key
        fetching = self._start_fetch()
        fetching.join(self.WAIT)
        if (key := self._known(key_id)) is not None:
            return key
        if fetching.is_alive() or self._failed:
            raise ServiceUnavailable(retry_after=int(self.INTERVAL))
        raise KeyError(key_id)

    def find_newer(self, key_id: str | None) -> PyJWK | None:
        """The key with this id, after a fetch if the budget allows one."""
        self._start_fetch().join(self.WAIT)
        return self._known(key_id)

    def _known(self, key_id: str | None) -> PyJWK | None:
        keys = self._keys
        if key_id is None or None in keys:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(key_id)

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


def fetch(url: str, seconds: float) -> tuple[Keys, set[str]]:
    """The issuer's keys by their ids, and names for those that cannot be used."""
    return parse(download(url, seconds))


def download(url: str, seconds: float) -> bytes:
    """The body at this address; given up after so many seconds, or past MAX_SET bytes.

    The time is checked after each piece of the body. A head that never ends takes longer, but
    nobody waits for it: Jwks starts another fetch then.
    """
    deadline = time.monotonic() + seconds
    with _client(url) as client:
        host = urlsplit(client.proxy.url if client.proxy else url).hostname
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        # The limit is for each address: all but one of them may be dead, and a request that waits
        # needs some of its time for the answer.
        timeout = urllib3.Timeout(connect=Jwks.WAIT / (len(addresses) + 1), read=seconds)
        answer = client.request(
            "GET",
            url,
            headers={"User-Agent": "todo-service", "Accept": "application/json"},
            timeout=timeout,
            retries=False,
            redirect=False,  # Whoever can redirect could choose the keys.
            preload_content=False,
        )
        with closing(answer):
            if answer.status != 200:
                raise DownloadError(f"status {answer.status}")
            body = bytearray()
            while piece := answer.read1(65536, decode_content=True):
                body += piece
                if len(body) > MAX_SET:
                    raise DownloadError(f"more than {MAX_SET} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(0)  # Pieces may be as small as a byte: let others run between them.
    return bytes(body)


def _client(url: str) -> urllib3.PoolManager:
    """A client that goes through the proxy of the environment (HTTPS_PROXY), if it names one."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        return urllib3.PoolManager()
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    login = urllib3.make_headers(proxy_basic_auth=urllib3.util.parse_url(proxy).auth)
    return urllib3.ProxyManager(proxy, proxy_headers=login)


def parse(body: bytes) -> tuple[Keys, set[str]]:
    """The keys of a set by their ids, and names for those that cannot be used.

    Keys for encryption are in neither. Each key is read by itself: one that PyJWT cannot read, or
    that makes it fail, must not hide the others.
    """
    usable: list[PyJWK] = []
    unusable: set[str] = set()
    for data in json.loads(body)["keys"]:
        if not isinstance(data, dict) or data.get("use") not in (None, "sig"):
            continue
        try:
            # RFC 9864 calls it Ed25519, which PyJWT does not know.
            key = PyJWK(data, "EdDSA" if data.get("alg") == "Ed25519" else None)
        except Exception:  # not only its own: KeyError, TypeError, NotImplementedError were seen
            unusable.add(f"{data.get('alg') or data.get('kty')} unreadable")
            continue
        if key.algorithm_name not in ALGORITHMS:
            unusable.add(key.algorithm_name)
        elif key.algorithm_name == "RS256" and key.key.key_size < 2048:
            unusable.add(f"RS256 of {key.key.key_size} bits")
        else:
            usable.append(key)
    keys: Keys = {key.key_id: key for key in usable if isinstance(key.key_id, str)}
    if len(usable) == 1:
        keys = keys or {None: usable[0]}
    else:
        nameless = (key for key in usable if not isinstance(key.key_id, str))
        unusable |= {f"{key.algorithm_name} without kid" for key in nameless}
    if not keys and not unusable:
        raise DownloadError("no keys")
    return keys, unusable
