"""What every response carries, whatever it answers."""

from __future__ import annotations

import re
import time
from email.utils import format_datetime, parsedate_to_datetime

import httpx
import pytest

from tests.conftest import User

TIMING = re.compile(r"db;dur=[0-9]+\.[0-9], pool;dur=[0-9]+\.[0-9]")


def answers(alice: User, headers: dict[str, str]) -> dict[str, httpx.Response]:
    """A response of every kind, by name."""
    path = alice.path(alice.create())
    tag = alice.get(path).headers["ETag"]
    with httpx.Client(base_url=alice.server) as stranger:
        return {
            "list": alice.get(alice.tasks, headers=headers),
            "page": alice.get(f"{alice.tasks}?limit=1", headers=headers),
            "list not modified": alice.get(alice.tasks, headers=headers | {"If-None-Match": "*"}),
            "changes": alice.get(f"{alice.tasks}/changes", headers=headers),
            "created": alice.post(alice.tasks, json={"title": "x"}, headers=headers),
            "task": alice.get(path, headers=headers),
            "head": alice.head(path, headers=headers),
            "not modified": alice.get(path, headers=headers | {"If-None-Match": tag}),
            "changed": alice.put(path, json={"title": "x"}, headers=headers),
            "completed": alice.patch(f"{path}/complete", headers=headers),
            "modified": alice.delete(path, headers=headers | {"If-Match": tag}),
            "deleted": alice.delete(path, headers=headers),
            "task not found": alice.get(path, headers=headers),
            "bad body": alice.post(alice.tasks, headers=headers),
            "too large": alice.post(alice.tasks, content=b"x" * 70_000, headers=headers),
            "not JSON": alice.post(alice.tasks, content=b"x", headers=headers),
            "forbidden": alice.get("/api/somebody-else/tasks", headers=headers),
            "unauthorized": stranger.get(alice.tasks, headers=headers),
            "options": stranger.options(alice.tasks, headers=headers),
            "method not allowed": stranger.post("/health", headers=headers),
            "not found": stranger.get("/nothing", headers=headers),
            "index": stranger.get("/", headers=headers),
            "health": stranger.get("/health", headers=headers),
            "ready": stranger.get("/ready", headers=headers),
            "document": stranger.get("/openapi.yaml", headers=headers),
            "docs": stranger.get("/docs/", headers=headers),
            "asset": stranger.get("/docs/init.js", headers=headers),
            "no asset": stranger.get("/docs/nothing.js", headers=headers),
        }


def test_every_response_can_be_traced_timed_and_is_not_sniffed(alice: User) -> None:
    for kind, answer in answers(alice, {"X-Request-ID": "trace-me_1.2"}).items():
        assert answer.headers.get_list("X-Request-ID") == ["trace-me_1.2"], kind
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"], kind
        assert TIMING.fullmatch(answer.headers["Server-Timing"]), kind
        assert len(answer.headers.get_list("Cache-Control")) == 1, kind


def test_every_response_says_who_may_keep_it(alice: User) -> None:
    public = {"asset": "public, max-age=3600"} | dict.fromkeys(
        ("index", "health", "ready", "document", "docs"), "no-cache"
    )

    for kind, answer in answers(alice, {}).items():
        expected = "no-store" if answer.is_client_error else public.get(kind, "private, no-cache")
        assert answer.headers["Cache-Control"] == expected, kind


@pytest.mark.slow
def test_every_answer_bears_its_own_date(server: str) -> None:
    for _ in range(2):
        before = int(time.time())
        date = httpx.get(f"{server}/health").headers["Date"]
        answered = parsedate_to_datetime(date)
        assert format_datetime(answered, usegmt=True) == date
        assert before <= answered.timestamp() <= time.time()
        time.sleep(1)


def test_time_in_the_database_shows_in_server_timing(alice: User) -> None:
    assert alice.get("/health").headers["Server-Timing"] == "db;dur=0.0, pool;dur=0.0"

    timings = [alice.get("/ready").headers["Server-Timing"] for _ in range(5)]

    assert any(not timing.startswith("db;dur=0.0,") for timing in timings)


@pytest.mark.parametrize(
    "request_id",
    ["x", "x" * 128, "0", "-", "a.b_c-D9", "550e8400-e29b-41d4-a716-446655440000"],
)
def test_a_sound_request_id_is_kept(server: str, request_id: str) -> None:
    answer = httpx.get(f"{server}/health", headers={"X-Request-ID": request_id})

    assert answer.headers["X-Request-ID"] == request_id


@pytest.mark.parametrize(
    "request_id",
    ["", "x" * 129, "a b", "a,b", "a/b", 'a"b', "a=b", "{a}", "ä", "a\tb", "<script>"],
)
def test_any_other_request_id_is_replaced(server: str, request_id: str) -> None:
    seen = {
        httpx.get(f"{server}/health", headers=[(b"X-Request-ID", request_id.encode())]).headers[
            "X-Request-ID"
        ]
        for _ in range(2)
    }

    assert len(seen) == 2
    assert request_id not in seen
    for fresh in seen:
        assert re.fullmatch("[A-Za-z0-9._-]{1,128}", fresh)
