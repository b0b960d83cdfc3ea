"""Who is let in: bearer tokens signed with the shared secret (RFC 6750, RFC 7519)."""

from __future__ import annotations

import base64
import hmac
import json
import time

import httpx
import jwt
import pytest

from tests.conftest import SECRET, User, sign

NOW = int(time.time())


def raw(header: object, payload: object, signature: bytes = b"") -> str:
    """A token of any shape, signed by nobody."""
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hs512(payload: object) -> str:
    """Signed with the right secret by another algorithm; PyJWT warns that the key is short."""
    message = raw({"alg": "HS512"}, payload).rstrip(".")
    signature = hmac.digest(SECRET.encode(), message.encode(), "sha512")
    return f"{message}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def ask(alice: User, authorization: str | bytes | None) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return httpx.get(alice.server + alice.tasks, headers=headers)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_is_read_in_any_letter_case(alice: User, scheme: str) -> None:
    assert ask(alice, f"{scheme} {sign(alice.id)}").status_code == 200


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic YTpi", "Token x"])
def test_no_token_is_a_plain_challenge(alice: User, authorization: str | None) -> None:
    answer = ask(alice, authorization)

    assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
    assert answer.headers["WWW-Authenticate"] == "Bearer"


PRIVATE = {
    "another secret": lambda u: sign(u, "some other secret of sufficient length"),
    "expired": lambda u: sign(u, exp=int(time.time()) - 31),
    "no exp": lambda u: sign(u, exp=None),
    "exp is text": lambda u: sign(u, exp="tomorrow"),
    "exp is huge": lambda u: jwt.api_jws.encode(
        b'{"sub": "%s", "exp": 1e999}' % u.encode(), SECRET, "HS256"
    ),
    "not yet valid": lambda u: sign(u, nbf=int(time.time()) + 60),
    "no subject": lambda _: sign(None),
    "empty subject": lambda _: sign(""),
    "subject with U+0000": lambda _: sign("a\0b"),
    "subject too long": lambda _: sign("x" * 1025),
    "alg none": lambda u: jwt.encode({"sub": u, "exp": NOW + 900}, None, "none"),
    "alg NONE": lambda u: raw({"alg": "NONE"}, {"sub": u, "exp": NOW + 900}),
    "alg HS512": lambda u: hs512({"sub": u, "exp": NOW + 900}),
    "alg is a list": lambda u: raw({"alg": ["HS256"]}, {"sub": u, "exp": NOW + 900}, b"x"),
    "no alg": lambda u: raw({}, {"sub": u, "exp": NOW + 900}, b"x"),
    "signature cut": lambda u: sign(u)[:-2],
    "signature missing": lambda u: sign(u).rpartition(".")[0] + ".",
    "unknown crit": lambda u: jwt.encode(
        {"sub": u, "exp": NOW + 900}, SECRET, "HS256", headers={"crit": ["x"], "x": 1}
    ),
    "payload is a list": lambda _: jwt.api_jws.encode(b"[]", SECRET, "HS256"),
    "payload is not JSON": lambda _: jwt.api_jws.encode(b"\xff", SECRET, "HS256"),
    "payload is deep": lambda _: jwt.api_jws.encode(b"[" * 4000, SECRET, "HS256"),
    "header is deep": lambda _: f"{base64.urlsafe_b64encode(b'[' * 4500).decode()}.e30.x",
    "one part": lambda _: "abc",
    "two tokens": lambda u: f"{sign(u)} {sign(u)}",
    "dots": lambda _: "..",
    "many dots": lambda _: "." * 5000,
    "JSON": lambda _: "{}",
}


@pytest.mark.parametrize("name", PRIVATE)
def test_a_bad_token_is_refused(alice: User, name: str) -> None:
    token = PRIVATE[name](alice.id)

    answer = ask(alice, f"Bearer {token}")

    assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("subject", [5, True, ["alice"], {"id": "alice"}])
def test_a_subject_that_is_not_a_string_is_refused(alice: User, subject: object) -> None:
    claims = json.dumps({"sub": subject, "exp": NOW + 900}).encode()

    answer = ask(alice, f"Bearer {jwt.api_jws.encode(claims, SECRET, 'HS256')}")

    assert answer.status_code == 401


def test_a_subject_with_a_lone_surrogate_is_refused(alice: User) -> None:
    claims = b'{"sub": "\\ud800", "exp": %d}' % (NOW + 900)

    answer = ask(alice, f"Bearer {jwt.api_jws.encode(claims, SECRET, 'HS256')}")

    assert answer.status_code == 401


@pytest.mark.parametrize("claims", [{"exp": -25}, {"nbf": 25}, {"iat": 25}])
def test_thirty_seconds_of_clock_skew_are_forgiven(alice: User, claims: dict[str, int]) -> None:
    shifted = {name: int(time.time()) + seconds for name, seconds in claims.items()}

    assert ask(alice, f"Bearer {sign(alice.id, **shifted)}").status_code == 200


def test_a_token_may_carry_an_audience_that_nobody_asked_for(alice: User) -> None:
    token = sign(alice.id, aud="https://app.example.com", iss="https://issuer.example.com")

    assert ask(alice, f"Bearer {token}").status_code == 200


def test_bytes_that_are_no_text_are_refused(alice: User) -> None:
    assert ask(alice, b"Bearer \xff\xfe\x80").status_code == 401


def test_a_header_over_eight_kilobytes_is_refused(alice: User) -> None:
    answer = ask(alice, "Bearer " + "x" * 9000)

    assert answer.status_code == 431
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("place", ["?access_token={}", "?token={}", "?jwt={}"])
def test_a_token_only_ever_comes_from_the_header(alice: User, place: str) -> None:
    token = sign(alice.id)

    answer = httpx.get(
        f"{alice.server}{alice.tasks}{place.format(token)}",
        headers={"Cookie": f"token={token}; access_token={token}"},
    )

    assert answer.status_code == 401


def test_user_ids_are_compared_exactly(alice: User) -> None:
    for other in (alice.id.upper(), alice.id + " ", alice.id + "%20", alice.id[:-1], "*"):
        answer = alice.get(f"/api/{other}/tasks")
        assert (answer.status_code, answer.json()) == (403, {"error": "Forbidden"})


def test_the_token_is_checked_before_anything_else(alice: User) -> None:
    url = alice.server + alice.tasks

    assert httpx.post(url, content=b"x" * 100_000).status_code == 401
    assert httpx.get(url + "/not-a-number").status_code == 401


def test_the_owner_is_checked_before_the_request(alice: User, bob: User) -> None:
    assert bob.post(alice.tasks, content=b"x" * 100_000).status_code == 403
    assert bob.get(f"{alice.tasks}/not-a-number").status_code == 403
