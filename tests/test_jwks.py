"""Identity from an issuer that publishes its keys (RFC 7517): rotation, outages, forgeries."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from flask.testing import FlaskClient
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm
from werkzeug.test import TestResponse

from tests.conftest import ENVIRON, ROOT, Server, until
from tests.issuer import AUDIENCE, MAKE_KEY, Issuer, good_claims
from todo_service import create_app
from todo_service.auth.jwks import MAX_SET, Jwks
from todo_service.auth.tokens import VerifiedTokens
from todo_service.settings import Settings

SMALL_RSA_KEY = rsa.generate_private_key(65537, 1024)


@pytest.fixture
def client(issuer: Issuer, database_url: str) -> Iterator[FlaskClient]:
    app = create_app(
        Settings(
            database_url=database_url,
            jwt_jwks_url=issuer.url,
            jwt_issuer=AUDIENCE,
            jwt_audience=AUDIENCE,
        )
    )
    yield app.test_client()
    app.extensions["database"].close()


def ask(client: FlaskClient, token: str, scheme: str = "Bearer") -> TestResponse:
    return client.get("/api/alice/tasks", headers={"Authorization": f"{scheme} {token}"})


@pytest.mark.parametrize("algorithm", MAKE_KEY)
def test_a_token_of_each_algorithm_is_accepted(
    issuer: Issuer, client: FlaskClient, algorithm: str
) -> None:
    issuer.add_key(algorithm, algorithm)

    assert ask(client, issuer.sign(algorithm)).status_code == 200
    assert ask(client, issuer.sign(algorithm), "bEARER").status_code == 200
    assert len(issuer.hits) == 1
    assert issuer.agents == {"todo-service"}


def test_a_public_key_used_as_a_shared_secret_is_refused(
    issuer: Issuer, client: FlaskClient
) -> None:
    issuer.add_key("rsa", "RS256")
    public = issuer.keys["rsa"][1].public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    payload = json.dumps(good_claims()).encode()
    header = {"alg": "HS256", "kid": "rsa", "typ": "JWT"}
    # By hand: PyJWT itself refuses to sign with a PEM key.
    parts = [json.dumps(header).encode(), payload]
    message = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(pem, message, hashlib.sha256)).rstrip(b"=")

    assert ask(client, (message + b"." + signature).decode()).status_code == 401


def test_no_algorithm_but_the_keys_own_is_accepted(issuer: Issuer, client: FlaskClient) -> None:
    issuer.add_key("rsa", "RS256")

    for token in (
        jwt.encode(good_claims(), None, "none", headers={"kid": "rsa"}),
        jwt.encode(good_claims(), issuer.keys["rsa"][1], "RS512", headers={"kid": "rsa"}),
        jwt.encode(good_claims(), issuer.keys["rsa"][1], "PS256", headers={"kid": "rsa"}),
        jwt.encode(good_claims(), "x" * 64, "HS256", headers={"kid": "rsa"}),
        jwt.encode(good_claims(), issuer.keys["first"][1], "EdDSA", headers={"kid": "rsa"}),
    ):
        assert ask(client, token).status_code == 401


def test_the_key_id_of_another_key_is_refused(issuer: Issuer, client: FlaskClient) -> None:
    issuer.add_key("second")
    token = issuer.sign("first", headers={"kid": "second"})

    assert ask(client, token).status_code == 401


@pytest.mark.parametrize("key_id", ["", "../../etc/passwd"])
def test_a_token_without_a_usable_key_id_is_refused(
    issuer: Issuer, client: FlaskClient, key_id: str
) -> None:
    assert ask(client, issuer.sign("first", headers={"kid": key_id})).status_code == 401
    assert ask(client, issuer.sign("first")).status_code == 200


def test_a_token_without_a_key_id_is_checked_by_the_only_usable_key(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jwks, "INTERVAL", 0.0)
    issuer.keys["old"] = ("RS256", SMALL_RSA_KEY)  # not usable
    nameless = issuer.sign("first", headers={"kid": None})
    assert ask(client, nameless).status_code == 200
    assert ask(client, forge("EdDSA", {})).status_code == 401

    issuer.add_key("second")
    assert ask(client, issuer.sign("second")).status_code == 200
    assert ask(client, issuer.sign("second", headers={"kid": None})).status_code == 401


def test_a_key_without_an_id_is_used_if_it_is_the_only_one(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = json.loads(issuer.jwks())["keys"]
    del key["kid"]
    issuer.body = json.dumps({"keys": [key]}).encode()
    monkeypatch.setattr(Jwks, "INTERVAL", 0.0)

    assert ask(client, issuer.sign("first")).status_code == 200
    assert ask(client, issuer.sign("first", headers={"kid": None})).status_code == 200
    assert ask(client, forge("EdDSA", {"kid": "first"})).status_code == 401

    issuer.add_key("second")
    issuer.body = json.dumps({"keys": [key, *json.loads(issuer.jwks())["keys"][1:]]}).encode()
    assert ask(client, issuer.sign("second")).status_code == 200
    assert ask(client, issuer.sign("first", jti="another")).status_code == 401

    issuer.body = json.dumps({"keys": [key, key]}).encode()
    assert ask(client, issuer.sign("first", headers={"kid": "x"})).status_code == 401


def forge(algorithm: str, headers: dict[str, str]) -> str:
    """A token with good claims, signed with a key that nobody publishes."""
    return jwt.encode(good_claims(), MAKE_KEY[algorithm](), algorithm, headers=headers)


def test_rsa_keys_of_less_than_2048_bits_are_not_used(
    issuer: Issuer, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.keys["small"] = ("RS256", SMALL_RSA_KEY)
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = issuer.sign("small")

    assert ask(client, token).status_code == 401
    assert ask(client, issuer.sign("first")).status_code == 200
    assert 'event=jwks_keys_unusable keys="RS256 of 1024 bits"' in caplog.text


@pytest.mark.parametrize("alg", ["EdDSA", "Ed25519"])
@pytest.mark.parametrize("published", ["EdDSA", "Ed25519"])
def test_ed25519_is_another_name_for_eddsa(
    issuer: Issuer, client: FlaskClient, published: str, alg: str
) -> None:
    issuer.body = issuer.jwks().replace(b"EdDSA", published.encode())
    issuer.add_key("rsa", "RS256")
    signer = jwt.PyJWS()
    signer.register_algorithm("Ed25519", OKPAlgorithm())
    payload = json.dumps(good_claims()).encode()

    token = signer.encode(payload, issuer.keys["first"][1], alg, {"kid": "first"})
    assert ask(client, token).status_code == 200

    issuer.body = None
    assert ask(client, issuer.sign("rsa")).status_code == 200
    signer.unregister_algorithm(alg)
    signer.register_algorithm(alg, RSAAlgorithm(RSAAlgorithm.SHA256))
    token = signer.encode(payload, issuer.keys["rsa"][1], alg, {"kid": "rsa"})
    assert ask(client, token).status_code == 401


def test_keys_that_a_token_points_at_are_never_fetched(issuer: Issuer, client: FlaskClient) -> None:
    attacker = Issuer()
    attacker.add_key("evil")
    jwk = json.loads(attacker.jwks())["keys"][0]
    for headers in ({"jku": attacker.url}, {"x5u": attacker.url}, {"jwk": jwk}):
        for key_id in ("evil", "first"):
            token = attacker.sign("evil", headers=headers | {"kid": key_id})
            assert ask(client, token).status_code == 401

    attacker.close()
    assert attacker.hits == []
    assert len(issuer.hits) <= 2


def test_a_shared_secret_in_the_published_keys_is_not_used(
    issuer: Issuer, client: FlaskClient
) -> None:
    secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"
    issuer.body = json.dumps(
        {
            "keys": [
                {"kty": "oct", "kid": "oct", "k": secret, "alg": "HS256"},
                *json.loads(issuer.jwks())["keys"],
            ]
        }
    ).encode()
    raw = jwt.utils.base64url_decode(secret)

    assert ask(client, issuer.sign("first")).status_code == 200
    assert (
        ask(client, jwt.encode(good_claims(), raw, "HS256", headers={"kid": "oct"})).status_code
        == 401
    )


def test_a_rotated_in_key_is_accepted_at_once_and_the_old_one_still(
    issuer: Issuer, client: FlaskClient
) -> None:
    assert ask(client, issuer.sign("first")).status_code == 200
    issuer.add_key("second")

    assert ask(client, issuer.sign("second")).status_code == 200
    assert ask(client, issuer.sign("first", jti="another")).status_code == 200
    assert len(issuer.hits) == 2


@pytest.mark.parametrize("algorithm", ["EdDSA", "RS256"])
def test_a_new_key_under_an_old_id_is_accepted_at_once(
    issuer: Issuer, client: FlaskClient, algorithm: str
) -> None:
    assert ask(client, issuer.sign("first")).status_code == 200
    withdrawn = issuer.sign("first", jti="another")
    issuer.add_key("first", algorithm)

    assert ask(client, issuer.sign("first")).status_code == 200
    assert ask(client, withdrawn).status_code == 401
    assert len(issuer.hits) <= 1 + Jwks.BURST


def test_a_withdrawn_key_is_forgotten_after_its_lifetime(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of them different, so that none was verified before.
    tokens = (issuer.sign("first", jti=str(n)) for n in range(1000))
    assert ask(client, next(tokens)).status_code == 200
    issuer.add_key("second")
    withdrawn = [next(tokens) for _ in range(500)]
    del issuer.keys["first"]
    assert ask(client, withdrawn.pop()).status_code == 200

    monkeypatch.setattr(Jwks, "LIFETIME", 0.0)
    assert ask(client, issuer.sign("second")).status_code == 200

    until(lambda: ask(client, withdrawn.pop()).status_code == 401, 10)


@pytest.mark.slow
def test_a_flood_of_unknown_key_ids_and_bad_signatures_makes_few_fetches(
    issuer: Issuer, client: FlaskClient
) -> None:
    good = issuer.sign("first")
    assert ask(client, good).status_code == 200
    forged = [issuer.sign("first", headers={"kid": f"forged-{n}"}) for n in range(500)]
    forged += [forge("EdDSA", {"kid": "first", "n": str(n)}) for n in range(500)]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda token: ask(client, token).status_code, forged))

    assert set(statuses) == {401}
    assert len(issuer.hits) <= 1 + Jwks.BURST
    assert ask(client, good).status_code == 200


def test_known_keys_outlive_their_issuer(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(client, issuer.sign("first")).status_code == 200
    monkeypatch.setattr(Jwks, "LIFETIME", 0.0)
    issuer.status = 500
    issuer.add_key("second")

    for n in range(20):
        assert ask(client, issuer.sign("first", jti=str(n))).status_code == 200
    answer = ask(client, issuer.sign("second"))
    assert answer.status_code == 503
    assert answer.json == {"error": "Service temporarily unavailable"}
    assert int(answer.headers["Retry-After"]) >= 1


RUBBISH = {
    "not JSON": b"<html>",
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "no keys": b'{"keys": []}',
    "keys of no shape": b'{"keys": [1, null, "x"]}',
    "deep": b"[" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("name", RUBBISH)
def test_an_issuer_that_answers_rubbish_is_a_503(
    issuer: Issuer, client: FlaskClient, name: str
) -> None:
    issuer.body = RUBBISH[name]

    assert ask(client, issuer.sign("first")).status_code == 503


def test_one_unreadable_key_does_not_hide_the_others(issuer: Issuer, client: FlaskClient) -> None:
    keys = json.loads(issuer.jwks())["keys"]
    strange = [{"kty": "XYZ", "kid": "a"}, {"kty": "RSA", "kid": "b"}, {"kty": "EC", "crv": "P-9"}]
    issuer.body = json.dumps({"keys": strange + keys}).encode()

    assert ask(client, issuer.sign("first")).status_code == 200


def test_keys_that_cannot_be_used_hide_no_other_and_are_named_once(
    issuer: Issuer,
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def warnings() -> list[str]:
        lines = [r.getMessage() for r in caplog.records if r.name == "todo_service.auth.jwks"]
        return [line for line in lines if "unusable" in line]

    (good,) = json.loads(issuer.jwks())["keys"]
    issuer.add_key("es512", "ES256")
    unusable = [
        {"kty": "oct", "kid": "hs", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "OKP", "kid": "none", "alg": "none"},
        {"kty": "OKP", "kid": "list", "alg": ["EdDSA"]},
        {"kty": "oct", "kid": "no k"},
        {"kty": "EC", "kid": "p384", "alg": "ES384", "crv": "P-384"},
        {"kty": "RSA", "kid": "ps", "alg": "PS256"},
        {"kty": ["RSA"], "kid": {}},
        good | {"kid": None},
        good | {"kid": ["first"]},
    ]
    encryption = {"kty": "RSA", "kid": "enc", "alg": "RSA-OAEP", "use": "enc"}
    issuer.body = json.dumps({"keys": [*unusable, encryption, 5, None, good]}).encode()
    monkeypatch.setattr(Jwks, "LIFETIME", 0.0)
    monkeypatch.setattr(Jwks, "INTERVAL", 0.0)

    assert ask(client, issuer.sign("first")).status_code == 200
    assert ask(client, issuer.sign("first", headers={"kid": "x"})).status_code == 401
    (warning,) = warnings()
    for name in ("HS256", "none unreadable", "ES384", "PS256", "EdDSA without kid"):
        assert name in warning
    assert "RSA-OAEP" not in warning
    assert "c2VjcmV0" not in warning

    issuer.body = json.dumps({"keys": [*unusable[:1], good]}).encode()
    assert ask(client, issuer.sign("first", headers={"kid": "y"})).status_code == 401
    assert warnings()[1:] == ["event=jwks_keys_unusable keys=HS256"]


@pytest.mark.parametrize("coding", [None, "gzip"])
def test_a_set_of_keys_over_a_megabyte_is_not_read(
    issuer: Issuer, client: FlaskClient, coding: str | None
) -> None:
    issuer.coding = coding
    issuer.body = issuer.jwks() + b" " * MAX_SET

    assert ask(client, issuer.sign("first")).status_code == 503


@pytest.mark.parametrize("coding", ["gzip", "chunks"])
def test_keys_in_gzip_and_in_pieces_of_a_byte_are_read_though_nobody_asked_for_it(
    issuer: Issuer, client: FlaskClient, coding: str
) -> None:
    issuer.coding = coding

    assert ask(client, issuer.sign("first")).status_code == 200


def test_keys_come_through_the_proxy_that_the_environment_names(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Issuer()
    proxy.keys = issuer.keys
    monkeypatch.setenv("http_proxy", f"user:p4ssw0rd@127.0.0.1:{proxy.port}")
    assert ask(client, issuer.sign("first")).status_code == 200

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    issuer.add_key("second")
    assert ask(client, issuer.sign("second")).status_code == 200
    proxy.close()
    assert (proxy.hits, proxy.logins) == ([issuer.url], ["Basic dXNlcjpwNHNzdzByZA=="])
    assert issuer.hits == ["/api/auth/jwks"]


def test_a_redirect_is_not_followed(issuer: Issuer, client: FlaskClient) -> None:
    other = Issuer()
    other.keys = issuer.keys
    issuer.status, issuer.location = 302, other.url

    assert ask(client, issuer.sign("first")).status_code == 503
    other.close()
    assert other.hits == []


def test_an_issuer_that_was_down_is_asked_again(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Jwks, "INTERVAL", 0.2)
    issuer.status = 500
    assert ask(client, issuer.sign("first")).status_code == 503

    issuer.status = 200

    until(lambda: ask(client, issuer.sign("first")).status_code == 200, 10)
    assert ask(client, issuer.sign("first", headers={"kid": "forged"})).status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize("part", ["head", "body"])
def test_an_issuer_that_never_ends_its_answer_is_asked_again_soon(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(Jwks, "WAIT", 0.1)
    monkeypatch.setattr(Jwks, "DEADLINE", 0.5)
    monkeypatch.setattr(Jwks, "INTERVAL", 0.2)
    issuer.drip = part
    assert ask(client, issuer.sign("first")).status_code == 503

    issuer.drip = None  # The connection that is open goes on as before.

    until(lambda: ask(client, issuer.sign("first")).status_code == 200, 10)


def test_a_token_is_verified_once_and_not_past_its_exp(
    issuer: Issuer, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *a, **k: decoded.append(a[0]) or decode(*a, **k))
    token = issuer.sign("first", exp=int(time.time()) + 2)

    for _ in range(5):
        assert ask(client, token).status_code == 200
    assert len(decoded) == 1

    real_time = time.time
    monkeypatch.setattr(time, "time", lambda: real_time() + 40)
    ask(client, token)
    assert len(decoded) == 2


def test_a_clock_that_is_set_back_does_not_prolong_a_verified_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified = VerifiedTokens()
    now, ticks = time.time(), time.monotonic()
    verified.add("token", "alice", now + 900)
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert verified.get("token") == "alice"

    monkeypatch.setattr(time, "monotonic", lambda: ticks + VerifiedTokens.LIFETIME + 1)

    assert verified.get("token") is None


def test_neither_tokens_nor_keys_are_logged(
    issuer: Issuer,
    client: FlaskClient,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [issuer.sign("first"), issuer.sign("first", headers={"kid": "forged"})]
    for token in tokens:
        ask(client, token)
    issuer.status = 500
    ask(client, issuer.sign("first", headers={"kid": "unknown"}))

    logged = caplog.text + capsys.readouterr().err
    for token in tokens:
        for part in (token, *token.split(".")):
            assert part not in logged


@pytest.mark.slow
def test_through_gunicorn_a_slow_issuer_holds_up_nobody_with_a_known_key(
    issuer: Issuer, database_url: str, tmp_path: Path
) -> None:
    server = Server(
        tmp_path / "log",
        DATABASE_URL=database_url,
        JWT_JWKS_URL=issuer.url,
        JWT_ISSUER=AUDIENCE,
        JWT_AUDIENCE=AUDIENCE,
        WEB_CONCURRENCY="1",
    )
    server.wait("/ready")
    session = httpx.Client(timeout=10)

    def ask(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return session.get(server.url + "/api/alice/tasks", headers=headers).status_code

    assert ask(issuer.sign("first")) == 200
    issuer.add_key("second")
    issuer.delay = 4.0
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, issuer.sign("second", jti=str(n))) for n in range(8)]
        until(lambda: len(issuer.hits) == 2)
        for n in range(50):
            assert ask(issuer.sign("first", jti=str(n))) == 200
        assert not any(answer.done() for answer in waiting)
        assert {answer.result() for answer in waiting} == {503}
    # The late answer was taken all the same.
    until(lambda: ask(issuer.sign("second")) == 200)
    session.close()
    assert server.stop() == 0
    log = server.log.read_text()
    assert "Traceback" not in log
    for token in (issuer.sign("first"), issuer.sign("second")):
        assert token.rpartition(".")[0] not in log


@pytest.mark.slow
def test_keys_in_pieces_of_a_byte_hold_up_nobody(
    issuer: Issuer, database_url: str, tmp_path: Path
) -> None:
    server = Server(
        tmp_path / "log", DATABASE_URL=database_url, JWT_JWKS_URL=issuer.url, WEB_CONCURRENCY="1"
    )
    server.wait("/ready")
    token = {"Authorization": f"Bearer {issuer.sign('first')}"}
    issuer.coding = "chunks"
    issuer.body = issuer.jwks() + b" " * (MAX_SET - 1000)  # takes longer than a request waits

    with ThreadPoolExecutor() as pool, httpx.Client(base_url=server.url, timeout=30) as session:
        waiting = pool.submit(httpx.get, f"{server.url}/api/alice/tasks", headers=token, timeout=30)
        until(lambda: len(issuer.hits) == 1)
        time.sleep(1)  # Until the pieces lie ready faster than they are read.
        for _ in range(3):
            assert session.get("/health").status_code == 200
        assert not waiting.done()
    assert server.stop() == 0


@contextmanager
def dead(address: str, port: int) -> Iterator[None]:
    """A port that answers no one who wants to connect: its queue is full and never taken from."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind((address, port))
        full.listen(0)
        first.connect((address, port))
        second.settimeout(0.5)
        with pytest.raises(TimeoutError):
            second.connect((address, port))
        yield


@pytest.mark.slow
def test_an_issuer_is_reached_though_its_first_address_is_dead(
    database_url: str, tmp_path: Path
) -> None:
    issuer = Issuer("127.0.0.3")
    issuer.add_key("first")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.2 issuer.internal\n127.0.0.3 issuer.internal\n")
    # https://cwrap.org/nss_wrapper.html: the C library reads this file in place of /etc/hosts.
    names = {
        "LD_PRELOAD": os.environ.get("NSS_WRAPPER", "libnss_wrapper.so"),
        "NSS_WRAPPER_HOSTS": str(hosts),
    }
    look_up = "import socket; print(*(a[4][0] for a in socket.getaddrinfo('issuer.internal', 1)))"
    found = subprocess.check_output([sys.executable, "-c", look_up], env=ENVIRON | names, text=True)
    assert list(dict.fromkeys(found.split())) == ["127.0.0.2", "127.0.0.3"]
    server = Server(
        tmp_path / "log",
        DATABASE_URL=database_url,
        JWT_JWKS_URL=f"http://issuer.internal:{issuer.port}/jwks",
        WEB_CONCURRENCY="1",
        **names,
    )
    server.wait("/ready")

    with dead("127.0.0.2", issuer.port):
        token = {"Authorization": f"Bearer {issuer.sign('first')}"}
        answer = httpx.get(f"{server.url}/api/alice/tasks", headers=token, timeout=30)

    assert answer.status_code == 200, server.log.read_text()
    assert server.stop() == 0
    issuer.close()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", "from gevent import monkey; monkey.patch_all()\n"])
def test_a_process_that_ends_does_not_wait_for_its_fetch(issuer: Issuer, start: str) -> None:
    issuer.drip = "body"
    code = f"from todo_service.auth.jwks import Jwks\nJwks({issuer.url!r})._start_fetch()\n"

    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=ROOT, env=ENVIRON, timeout=30, check=False
    )

    assert done.returncode == 0
