"""Query parameters: a misspelt or doubled one is refused, by name, on every path under /api/."""

from __future__ import annotations

import json

import httpx
import pytest
from flask import Flask

from tests.api.test_isolation import BODIES, fill, routes
from tests.conftest import User

LIMIT = "Limit must be an integer from 1 to 1000"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("stauts=complete", "Unknown parameter: stauts"),
        ("offset=10", "Unknown parameter: offset"),
        ("Status=complete", "Unknown parameter: Status"),
        ("status%20=complete", "Unknown parameter: status "),
        ("stauts", "Unknown parameter: stauts"),
        ("=5", "Unknown parameter: "),
        ("b=1&a=1", "Unknown parameter: a; Unknown parameter: b"),
        ("status=complete&status=incomplete", "Parameter given twice: status"),
        ("limit=5&limit=5", "Parameter given twice: limit"),
        ("limit=5&l%69mit=5", "Parameter given twice: limit"),
        ("cursor&cursor", "Invalid cursor; Parameter given twice: cursor"),
        ("x=1&x=1", "Parameter given twice: x; Unknown parameter: x"),
        (
            "x=1&limit=0&status=complete&status=complete",
            f"{LIMIT}; Parameter given twice: status; Unknown parameter: x",
        ),
        ("%00=1", "Unknown parameter: \0"),
        ("%FF=1", "Unknown parameter: \ufffd"),
        ("%ED%A0%80=1", "Unknown parameter: \ufffd\ufffd\ufffd"),
        ("%F0%9F%A5%9B=1", "Unknown parameter: \U0001f95b"),
        ("%22%0A%7B=1", 'Unknown parameter: "\n{'),
        ("a" * 7000, "Unknown parameter: " + "a" * 7000),
    ],
)
def test_a_parameter_that_a_list_does_not_know_or_gets_twice_is_named(
    alice: User, query: str, message: str
) -> None:
    answer = alice.get(f"{alice.tasks}?{query}")

    assert (answer.status_code, json.loads(answer.content)) == (400, {"error": message})


def test_of_many_parameters_the_first_twenty_are_looked_at(alice: User) -> None:
    query = "&" * 50 + "&".join(f"x{number:03}" for number in range(1000))

    answer = alice.get(f"{alice.tasks}?{query}")

    named = "; ".join(f"Unknown parameter: x{number:03}" for number in range(20))
    assert (answer.status_code, answer.json()) == (400, {"error": named})


@pytest.mark.parametrize("query", ["", "&", "&&status=complete&", "limit=5"])
def test_a_query_without_a_fault_is_answered(alice: User, query: str) -> None:
    task = alice.create(status="complete")

    answer = alice.get(f"{alice.tasks}?{query}")

    assert (answer.status_code, answer.json()) == (200, [task])


def test_thousands_of_parameters_are_refused_at_once(alice: User) -> None:
    query = "&".join("x" for _ in range(4000))

    answer = alice.get(f"{alice.tasks}?{query}")

    assert answer.status_code == 400
    assert answer.json() == {"error": "Parameter given twice: x; Unknown parameter: x"}


def test_no_route_under_api_takes_a_parameter_that_it_does_not_know(
    app: Flask, alice: User, bob: User
) -> None:
    task = alice.create()
    asked = [(method, rule) for method, rule in routes(app) if rule.startswith("/api/")]
    assert len(asked) >= 9

    for method, rule in asked:
        path = fill(rule, alice.tasks.split("/")[2], task["id"])
        for query, message in [
            ("dry_run=1", "Unknown parameter: dry_run"),
            ("_=1&_=2", "Parameter given twice: _; Unknown parameter: _"),
        ]:
            answer = alice.request(method, f"{path}?{query}", json=BODIES.get(method))
            assert answer.status_code == 400, (method, rule)
            if method != "HEAD":
                # A change of many needs a status, and says so first.
                error = answer.json()["error"].removeprefix("Status is required; ")
                assert error == message, (method, rule)
        # The token is checked first.
        assert httpx.request(method, f"{alice.server}{path}?x=1").status_code == 401
        assert bob.request(method, f"{path}?x=1").status_code == 403
    assert alice.get(alice.tasks).json() == [task]


def test_a_preflight_is_answered_whatever_stands_in_the_path(alice: User) -> None:
    for path in (f"{alice.tasks}?stauts=x", f"{alice.tasks}/1?x=1&x=1", f"{alice.tasks}/x"):
        answer = httpx.options(alice.server + path)
        assert answer.status_code == 200
        assert "GET" in answer.headers["Allow"]


def test_other_paths_ignore_their_query(server: str) -> None:
    for path in ("/", "/health", "/ready", "/openapi.yaml", "/docs/", "/docs/init.js"):
        assert httpx.get(f"{server}{path}?v=1&v=2").status_code == 200
