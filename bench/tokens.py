"""What verifying a token costs a request, with and without the memory of verified tokens.

.venv/bin/python -m bench.tokens
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from statistics import median

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Request
from jwt.algorithms import OKPAlgorithm
from werkzeug.test import EnvironBuilder

from todo_service.auth import Authenticator, bearer
from todo_service.settings import Settings
from todo_service.tokens import VerifiedTokens

SECRET = "a shared secret of at least 32 characters"
CALLS, ROUNDS = 2000, 7


def microseconds(authenticate: Authenticator, tokens: list[str]) -> float:
    """Median over rounds of the mean time of a call, in microseconds."""
    requests = [
        Request(EnvironBuilder(headers={"Authorization": f"Bearer {token}"}).get_environ())
        for token in tokens
    ]
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for number in range(CALLS):
            authenticate(requests[number % len(requests)])
        rounds.append((time.perf_counter() - started) / CALLS * 1e6)
    return median(rounds)


def claims(number: int) -> dict[str, object]:
    return {"sub": f"user-{number}", "exp": int(time.time()) + 3600}


def measure(name: str, settings: Settings, sign: Callable[[int], str]) -> None:
    tokens = [sign(number) for number in range(100)]
    remembered = microseconds(bearer(settings), tokens)
    VerifiedTokens.SIZE, size = 1, VerifiedTokens.SIZE
    verified = microseconds(bearer(settings), tokens)
    VerifiedTokens.SIZE = size
    print(f"| {name} | {verified:.1f} | {remembered:.1f} | {verified / remembered:.1f} |")


def main() -> None:
    key = Ed25519PrivateKey.generate()
    jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "k", "alg": "EdDSA"}
    body = json.dumps({"keys": [jwk]}).encode()

    class Issuer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Issuer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("| token | verified, µs | remembered, µs | ratio |\n|---|---|---|---|")
    measure("HS256", Settings(jwt_secret=SECRET), lambda n: jwt.encode(claims(n), SECRET, "HS256"))
    measure(
        "EdDSA",
        Settings(jwt_jwks_url=f"http://127.0.0.1:{server.server_port}/jwks"),
        lambda n: jwt.encode(claims(n), key, "EdDSA", headers={"kid": "k"}),
    )
    server.shutdown()


if __name__ == "__main__":
    main()
