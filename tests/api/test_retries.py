"""Idempotency-Key: a create that is sent again makes no second task."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from random import Random
from uuid import uuid4

import psycopg
import pytest

from tests.conftest import User


def create(user: User, key: str, **body: object):
    return user.post(
        user.tasks, json={"title": "Buy milk"} | body, headers={"Idempotency-Key": key}
    )


def test_a_repeated_create_answers_with_the_first_task(alice: User) -> None:
    first = create(alice, "key-1")
    again = create(alice, "key-1")

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    for name in ("Location", "ETag"):
        assert again.headers[name] == first.headers[name]
    assert len(alice.get(alice.tasks).json()) == 1


def test_the_order_and_the_defaults_of_a_body_do_not_make_it_another(alice: User) -> None:
    headers = {"Idempotency-Key": "key", "Content-Type": "application/json"}
    bodies = [
        b'{"title": "x", "status": "incomplete"}',
        b'{"status":"incomplete","title":"x"}',
        b'{"title": "x", "description": null}',
        b'{"title": "\\u0078", "id": 5}',
    ]

    answers = [alice.post(alice.tasks, content=body, headers=headers) for body in bodies]

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    "body", [{"title": "Buy oat milk"}, {"description": "two"}, {"status": "complete"}]
)
def test_the_same_key_with_another_body_is_refused(alice: User, body: dict) -> None:
    first = create(alice, "key").json()

    answer = create(alice, "key", **body)

    assert answer.status_code == 422
    assert answer.json() == {"error": "Idempotency-Key was used before with another request body"}
    assert alice.get(alice.tasks).json() == [first]


def test_a_replay_shows_the_task_as_it_is_now_and_does_not_touch_it(alice: User) -> None:
    task = create(alice, "key").json()
    changed = alice.patch(f"{alice.path(task)}/complete")

    again = create(alice, "key")

    assert again.json() == changed.json()
    assert again.headers["ETag"] == changed.headers["ETag"]
    assert alice.get(alice.path(task)).json() == changed.json()


def test_keys_of_different_users_never_meet(alice: User, bob: User) -> None:
    mine, his = create(alice, "key"), create(bob, "key", title="His")

    assert (mine.status_code, his.status_code) == (201, 201)
    assert "Idempotency-Replayed" not in his.headers
    assert mine.json()["id"] != his.json()["id"]


def test_a_create_repeated_after_its_task_was_deleted_does_not_bring_it_back(alice: User) -> None:
    task = create(alice, "key").json()
    alice.delete(alice.path(task))

    for _ in range(2):
        again = create(alice, "key")
        assert (again.status_code, again.json()) == (410, {"error": "Task was deleted"})
    assert create(alice, "key", title="Another").status_code == 422
    assert alice.get(alice.tasks).json() == []


@pytest.mark.slow
def test_creates_that_race_with_deletes_make_one_task_per_key(alice: User) -> None:
    keys = [str(number) for number in range(40)] * 6
    Random(1).shuffle(keys)
    made: set[tuple[str, int]] = set()
    gone: set[int] = set()

    def send(key: str) -> None:
        gone_before = frozenset(gone)  # a task may go while its answer is on the way
        answer = create(alice, key)
        if answer.status_code == 410:
            return
        task = answer.json()
        assert (answer.status_code, task["id"] in gone_before) == (201, False)
        made.add((key, task["id"]))
        if int(key) % 2:
            alice.delete(alice.path(task))
            gone.add(task["id"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, keys))

    assert len(made) == len({key for key, _ in made}) == 40
    left = {task["id"] for task in alice.get(alice.tasks).json()}
    assert left == {task_id for key, task_id in made if int(key) % 2 == 0}


def test_a_key_is_forgotten_after_90_days_by_the_next_keyed_create(
    alice: User, connection: psycopg.Connection
) -> None:
    for key in ("old", "older", "younger"):
        create(alice, key)
    ages = {"old": "91 days", "older": "92 days", "younger": "89 days"}
    for key, age in ages.items():
        connection.execute(
            "UPDATE idempotency_keys SET created_at = now() - %s::interval"
            " WHERE user_id = %s AND key = %s",
            (age, alice.id, key),
        )

    assert create(alice, "old").headers["Idempotency-Replayed"] == "true"

    left = "SELECT key FROM idempotency_keys WHERE user_id = %s ORDER BY key"
    assert connection.execute(left, (alice.id,)).fetchall() == [("old",), ("younger",)]


def test_twenty_concurrent_retries_make_one_task(
    alice: User, connection: psycopg.Connection
) -> None:
    for _ in range(5):
        key = str(uuid4())
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _, key=key: create(alice, key), range(20)))

        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["id"] for answer in answers}) == 1
        replayed = [answer.headers.get("Idempotency-Replayed") for answer in answers]
        assert sorted(replayed, key=str) == [None] + ["true"] * 19
        rows = connection.execute(
            "SELECT replays FROM idempotency_keys WHERE user_id = %s AND key = %s",
            (alice.id, key),
        ).fetchall()
        assert rows == [(19,)]


VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
LEGAL = ["x", VISIBLE, "!~" * 127, "x" * 255, "a,b;c=d", '"', '"a', 'a"', '"a",b', "\\", '"a";b="c']


@pytest.mark.parametrize("key", LEGAL)
def test_a_key_in_quotes_is_the_same_key(alice: User, key: str) -> None:
    quoted = '"' + re.sub(r'(["\\])', r"\\\1", key) + '"'

    first, again = create(alice, key), create(alice, quoted)

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()


@pytest.mark.parametrize("keys", [("k", "k"), ("k", "j"), ('"k"', "j")])
def test_two_keys_are_one_key_that_is_the_same_each_time(
    alice: User, keys: tuple[str, str]
) -> None:
    headers = [("Idempotency-Key", keys[0]), ("X-Between", "x"), ("Idempotency-Key", keys[1])]

    answers = [alice.post(alice.tasks, json={"title": "x"}, headers=headers) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[1].headers["Idempotency-Replayed"] == "true"
    assert len(alice.get(alice.tasks).json()) == 1


@pytest.mark.parametrize(
    "key",
    [
        *("", "x" * 256, "with space", "tab\tbed", "é"),
        *('""', '"with space"', f'"{"x" * 256}"', '"k","j"', '"k", "j"', '"a"b"', '"a\\"', r'"\a"'),
    ],
)
def test_an_illegal_key_is_refused(alice: User, key: str) -> None:
    answer = alice.post(
        alice.tasks,
        json={"title": "x"},
        headers=[(b"Idempotency-Key", key.encode())],
    )

    assert answer.status_code == 400
    assert answer.json() == {"error": "Idempotency-Key must be 1 to 255 visible ASCII characters"}
    assert alice.get(alice.tasks).json() == []


def test_a_key_that_0_1_0_has_stored_is_still_known(
    alice: User, connection: psycopg.Connection
) -> None:
    task = alice.create("changed since")
    digest = "5756ec00a542765f6b0e8ff1e3cbdaf8c739c1e36764fa71d987641379dc6901"
    body = {"title": "Zwölf \U0001f95b", "description": "a\nb", "status": "complete"}
    connection.execute(
        "INSERT INTO idempotency_keys (user_id, key, digest, task_id, created_at)"
        " VALUES (%s, 'key', decode(%s, 'hex'), %s, now())",
        (alice.id, digest, task["id"]),
    )

    answer = create(alice, "key", **body)

    assert (answer.status_code, answer.json()["title"]) == (201, "changed since")
    assert answer.headers["Idempotency-Replayed"] == "true"
