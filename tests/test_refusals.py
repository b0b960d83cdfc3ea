"""Why a token was refused: what the log says, and what `flask check-token` says to a person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import jwt
import pytest
from flask import Flask

from tests.conftest import SECRET, app_with_commands, sign
from tests.issuer import AUDIENCE, MAKE_KEY, Issuer, good_claims
from todo_service import log
from todo_service.settings import Settings

REASON = "event=token_refused reason="


@pytest.fixture
def issuer_app(issuer: Issuer, database_url: str) -> Iterator[Flask]:
    issuer.add_key("rsa", "RS256")
    app = app_with_commands(
        Settings(
            database_url=database_url,
            jwt_jwks_url=issuer.url,
            jwt_issuer=AUDIENCE,
            jwt_audience=AUDIENCE,
        )
    )
    yield app
    app.extensions["database"].close()


def ask(app: Flask, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return app.test_client().get("/api/alice/tasks", headers=headers).status_code


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [r.getMessage() for r in caplog.records if r.name == "todo_service.auth.guard"]
    assert all(line.startswith(REASON) for line in lines)
    return [line.removeprefix(REASON) for line in lines]


def signed(key: object, algorithm: str, key_id: str) -> str:
    return jwt.encode(good_claims(), key, algorithm, headers={"kid": key_id})


OPAQUE = "dUmU7cLPpyXGb4fFtqAn3kEyWrTQ5vHs"  # as Better Auth's session.token is

# A token, the reason for which it is refused, and words that a person is told.
BAD: dict[str, tuple[Callable[[Issuer], str], str, str]] = {
    "Better Auth's session.token": (lambda _: OPAQUE, "malformed", "This is not a JWT"),
    "Better Auth's session_data": (
        lambda _: jwt.encode({"sub": "alice", "exp": 4_000_000_000}, SECRET, "HS256"),
        "algorithm",
        "cookie session_data",
    ),
    "another algorithm": (
        lambda i: signed(i.keys["rsa"][1], "PS256", "rsa"),
        "algorithm",
        "jwks.keyPairConfig.alg",
    ),
    "another audience": (
        lambda i: i.sign("first", aud="https://other.example"),
        "audience",
        "'https://other.example' 'https://app.example.com' (JWT_AUDIENCE)",
    ),
    "no audience": (lambda i: i.sign("first", aud=None), "audience", "set JWT_AUDIENCE"),
    "another issuer": (
        lambda i: i.sign("first", iss="https://other.example"),
        "issuer",
        "'https://other.example' 'https://app.example.com' (JWT_ISSUER)",
    ),
    "no issuer": (lambda i: i.sign("first", iss=None), "issuer", "set JWT_ISSUER"),
    "expired": (
        lambda i: i.sign("first", exp=1_700_000_000),
        "expired",
        "exp 2023-11-14 22:13:20 UTC, ",
    ),
    "not yet valid": (
        lambda i: i.sign("first", nbf=4_000_000_000),
        "not_yet_valid",
        "nbf 2096-10-02 07:06:40 UTC, ",
    ),
    "issued in the future": (
        lambda i: i.sign("first", iat=4_000_000_000),
        "not_yet_valid",
        "Compare the clocks",
    ),
    "no subject": (lambda i: i.sign("first", sub=None), "subject", "sub none a user id"),
    "empty subject": (lambda i: i.sign("first", sub=""), "subject", "JWT_USER_CLAIM"),
    "subject too long": (lambda i: i.sign("first", sub="x" * 1025), "subject", "1 to 1024 bytes"),
    "key of another issuer": (
        lambda i: i.sign("first", headers={"kid": "other"}),
        "unknown_key",
        "kid 'other' 'first' or 'rsa'",
    ),
    "signed with another key": (
        lambda _: signed(MAKE_KEY["EdDSA"](), "EdDSA", "first"),
        "signature",
        "changed since it was signed",
    ),
    "no expiry": (lambda i: i.sign("first", exp=None), "malformed", 'missing the "exp" claim'),
    "with the scheme": (
        lambda i: f"Bearer {i.sign('first')}",
        "malformed",
        "such as the word Bearer",
    ),
    "nothing": (lambda _: "..", "malformed", "PyJWT says"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_log_and_check_token_give_the_same_reason_and_never_the_token(
    issuer: Issuer, issuer_app: Flask, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    make, reason, words = BAD[name]
    token = make(issuer)

    assert ask(issuer_app, token) == 401
    told = issuer_app.test_cli_runner().invoke(args=["check-token", token])

    assert reasons(caplog) == [reason]
    assert told.exit_code == 1
    assert told.output.startswith(f"Refused: {reason}\n")
    assert words in " ".join(told.output.split())
    for part in filter(None, (token, *token.split("."))):
        assert part not in caplog.text + told.output


def test_check_token_names_the_user_of_a_good_token(issuer: Issuer, issuer_app: Flask) -> None:
    told = issuer_app.test_cli_runner().invoke(args=["check-token", issuer.sign("first")])

    assert told.exit_code == 0
    assert told.output.startswith("Accepted, for the user 'alice'\n")


def test_check_token_reads_standard_input(issuer: Issuer, issuer_app: Flask) -> None:
    runner = issuer_app.test_cli_runner()

    assert (
        runner.invoke(args=["check-token", "-"], input=issuer.sign("first") + "\n").exit_code == 0
    )
    told = runner.invoke(args=["check-token", "-"], input=b"\xff\n")
    assert (told.exit_code, told.output.splitlines()[0]) == (1, "Refused: malformed")


def test_check_token_says_when_the_keys_cannot_be_read(issuer: Issuer, issuer_app: Flask) -> None:
    issuer.status = 500

    told = issuer_app.test_cli_runner().invoke(args=["check-token", issuer.sign("first")])

    assert told.exit_code == 1
    assert told.output.startswith("Not known: the keys at JWT_JWKS_URL cannot be read\n")


def test_what_a_token_holds_is_shown_without_what_a_terminal_acts_on(
    issuer: Issuer, issuer_app: Flask
) -> None:
    token = issuer.sign("first", iss="\x1b[2J\x9b2J\u202e", aud=["a" * 5000])

    told = issuer_app.test_cli_runner().invoke(args=["check-token", token]).output

    assert "'\\x1b[2J\\x9b2J\\u202e'" in told
    assert all(character.isprintable() or character == "\n" for character in told)
    assert max(map(len, told.splitlines())) < 300


def test_check_token_works_with_a_shared_secret(app: Flask) -> None:
    runner = app.test_cli_runner()
    other = "another secret of sufficient length"
    key = MAKE_KEY["EdDSA"]()

    good = runner.invoke(args=["check-token", sign("alice")])
    forged = runner.invoke(args=["check-token", sign("alice", other)])
    asymmetric = runner.invoke(args=["check-token", signed(key, "EdDSA", "first")])

    assert (good.exit_code, forged.exit_code, asymmetric.exit_code) == (0, 1, 1)
    assert "another secret than JWT_SECRET" in forged.output
    assert "needs JWT_JWKS_URL" in asymmetric.output
    assert SECRET not in good.output + forged.output + asymmetric.output


def test_check_token_needs_tokens_to_check(database_url: str) -> None:
    app = app_with_commands(Settings(database_url=database_url), lambda _: "alice")

    told = app.test_cli_runner().invoke(args=["check-token", "x"])

    assert told.exit_code == 1
    assert told.output == "Error: neither JWT_SECRET nor JWT_JWKS_URL is set; set one of them\n"


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic YTpi"])
def test_a_request_without_a_token_leaves_no_reason(
    app: Flask, caplog: pytest.LogCaptureFixture, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}

    assert app.test_client().get("/api/alice/tasks", headers=headers).status_code == 401
    assert reasons(caplog) == []


def test_an_attack_leaves_ten_reasons_a_second(
    app: Flask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    clock = SimpleNamespace(**vars(time) | {"monotonic": lambda: now})
    monkeypatch.setattr(log, "time", clock)
    for _ in range(50):
        assert ask(app, "x.y.z") == 401
    assert reasons(caplog) == ["malformed"] * 10

    now += 0.9
    ask(app, "x.y.z")
    assert len(reasons(caplog)) == 10
    now += 0.1
    for _ in range(50):
        ask(app, "x.y.z")
    assert len(reasons(caplog)) == 20
