"""An issuer of tokens that publishes its keys (RFC 7517), for tests."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

AUDIENCE = "https://app.example.com"
MAKE_KEY: dict[str, Callable[[], Any]] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
}


def good_claims() -> dict[str, Any]:
    now = int(time.time())
    return {"sub": "alice", "iat": now, "exp": now + 900, "iss": AUDIENCE, "aud": AUDIENCE}


class Issuer:
    """A JWKS server on loopback that can rotate its keys, be slow, fail and count its requests.

    `drip` makes it send an answer that never ends, a byte at a time: "head" or "body". `coding` is
    how it sends its answers, whatever was asked for: "gzip", or "chunks" of one byte each.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.keys: dict[str, tuple[str, Any]] = {}
        self.hits: list[str] = []
        self.agents: set[str | None] = set()
        self.logins: list[str | None] = []  # as a proxy
        self.status = 200
        self.delay = 0.0
        self.body: bytes | None = None
        self.location: str | None = None
        self.drip: str | None = None
        self.coding: str | None = None
        self.closing = threading.Event()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.hits.append(self.path)
                issuer.agents.add(self.headers["User-Agent"])
                issuer.logins.append(self.headers["Proxy-Authorization"])
                if issuer.drip:
                    self.drip(b"X: " if issuer.drip == "head" else b"\r\n{")
                    return
                time.sleep(issuer.delay)
                body = issuer.body if issuer.body is not None else issuer.jwks()
                self.send_response(issuer.status)
                if issuer.location:
                    self.send_header("Location", issuer.location)
                if issuer.coding == "gzip":
                    body = gzip.compress(body)
                    self.send_header("Content-Encoding", "gzip")
                if issuer.coding == "chunks":
                    body = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
                    self.send_header("Transfer-Encoding", "chunked")
                else:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(OSError):  # whoever asked may have heard enough
                    self.wfile.write(body)

            def drip(self, start: bytes) -> None:
                with suppress(OSError):
                    self.wfile.write(b"HTTP/1.0 200 OK\r\n" + start)
                    while not issuer.closing.wait(0.05):
                        self.wfile.write(b" ")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((address, 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://{address}:{self.port}/api/auth/jwks"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def jwks(self) -> bytes:
        keys = []
        for key_id, (algorithm, key) in self.keys.items():
            public = get_default_algorithms()[algorithm].to_jwk(key.public_key(), as_dict=True)
            # As Better Auth publishes them: with "alg", without "use".
            keys.append(
                {k: v for k, v in public.items() if k != "key_ops"}
                | {"kid": key_id, "alg": algorithm}
            )
        return json.dumps({"keys": keys}).encode()

    def add_key(self, key_id: str, algorithm: str = "EdDSA") -> None:
        self.keys[key_id] = (algorithm, MAKE_KEY[algorithm]())

    def sign(self, key_id: str, headers: dict[str, Any] | None = None, **claims: object) -> str:
        algorithm, key = self.keys[key_id]
        headers = {"kid": key_id} | (headers or {})
        headers = {name: value for name, value in headers.items() if value is not None}
        payload = {k: v for k, v in (good_claims() | claims).items() if v is not None}
        return jwt.encode(payload, key, algorithm, headers=headers)

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
