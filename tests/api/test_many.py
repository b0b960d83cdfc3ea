"""Many at once: arrays on POST, PATCH and DELETE of all tasks of a status."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.conftest import User

JSON = {"Content-Type": "application/json"}


def titles(user: User, query: str = "") -> list[str]:
    return [task["title"] for task in user.get(user.tasks + query).json()]


def create(user: User, tasks: list, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return user.post(user.tasks, json=tasks, headers=headers)


def test_an_array_creates_its_tasks_in_the_order_sent(alice: User) -> None:
    sent = [
        {"title": "first", "description": "d"},
        {"title": "second", "status": "complete"},
        {"title": "third", "id": 7, "user_id": "x", "created_at": "y"},
    ]

    answer = create(alice, sent)

    assert answer.status_code == 201
    assert "Location" not in answer.headers
    tasks = answer.json()
    assert [(task["title"], task["description"], task["status"]) for task in tasks] == [
        ("first", "d", "incomplete"),
        ("second", None, "complete"),
        ("third", None, "incomplete"),
    ]
    assert {task["user_id"] for task in tasks} == {alice.id}
    assert len({task["created_at"] for task in tasks} | {task["updated_at"] for task in tasks}) == 1
    assert alice.get(alice.tasks).json() == tasks[::-1]
    assert [alice.get(alice.path(task)).json() for task in tasks] == tasks


@pytest.mark.parametrize("count", [1, 2, 100])
def test_as_many_tasks_as_were_sent_are_created(alice: User, count: int) -> None:
    answer = create(alice, [{"title": f"Task {n}"} for n in range(count)])

    assert [task["title"] for task in answer.json()] == [f"Task {n}" for n in range(count)]
    assert len(alice.get(alice.tasks).json()) == count


@pytest.mark.parametrize("count", [0, 101])
def test_none_or_too_many_are_refused(alice: User, count: int) -> None:
    answer = create(alice, [{"title": "x"}] * count)

    assert (answer.status_code, answer.json()) == (400, {"error": "Send 1 to 100 tasks"})
    assert titles(alice) == []


def test_a_fault_names_its_item_and_nothing_is_created(alice: User) -> None:
    sent = [
        {"title": "good"},
        {"title": " ", "status": "done", "priority": 1},
        5,
        {"title": "x" * 256, "description": 5},
        {},
        None,
        {"title": "a\0b"},
    ]

    answer = create(alice, sent)

    assert answer.status_code == 400
    assert answer.json()["error"].split("; ") == [
        "Item 1: Title is required",
        "Item 1: Invalid status value. Must be 'incomplete' or 'complete'",
        "Item 1: Unknown field: priority",
        "Item 2: Task must be a JSON object",
        "Item 3: Title must be 255 characters or less",
        "Item 3: Description must be a string",
        "Item 4: Title is required",
        "Item 5: Task must be a JSON object",
        "Item 6: Title must not contain U+0000 or lone surrogates",
    ]
    assert titles(alice) == []


def test_an_array_may_be_a_mebibyte_and_an_object_64_kib(alice: User) -> None:
    array = json.dumps([{"title": "x", "description": "y" * 5000}] * 100).encode()
    assert len(array) > 500_000
    largest = array.ljust(1024 * 1024)

    def send(body: bytes) -> httpx.Response:
        return alice.post(alice.tasks, content=body, headers=JSON)

    def send_chunked(body: bytes) -> httpx.Response:
        return alice.post(alice.tasks, content=iter([body]), headers=JSON)

    object_too_large = "Request body must be at most 64 KiB"
    too_large = f"{object_too_large}, an array of tasks at most 1 MiB"
    for post in (send, send_chunked):
        assert post(largest).status_code == 201
        assert post(b" \r\n\t" + array).status_code == 201
        for body, message in (
            (largest + b" ", too_large),
            (b'{"title": "x"}'.ljust(64 * 1024 + 1), object_too_large),
            (b" " * 70_000, object_too_large),
        ):
            answer = post(body)
            assert (answer.status_code, answer.json()) == (413, {"error": message})
    assert len(titles(alice)) == 400


def test_only_a_create_takes_an_array(alice: User) -> None:
    task = alice.create()

    for path in (alice.path(task), f"{alice.tasks}?status=incomplete"):
        answer = alice.patch(path, json=[{"title": "x"}])
        assert answer.json() == {"error": "Request body must be a JSON object"}
    assert alice.get(alice.tasks).json() == [task]


def test_an_array_with_a_key_is_repeated_safely(alice: User) -> None:
    sent = [{"title": f"Task {n}"} for n in range(3)]
    first, again = create(alice, sent, "key"), create(alice, sent, "key")

    assert (first.status_code, again.status_code) == (201, 201)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    assert titles(alice) == ["Task 2", "Task 1", "Task 0"]

    alice.delete(alice.path(first.json()[1]))
    changed = alice.patch(alice.path(first.json()[2]), json={"title": "changed"}).json()
    assert create(alice, sent, "key").json() == [first.json()[0], changed]


@pytest.mark.parametrize(
    "other",
    [
        [{"title": "Task 0"}],
        [{"title": "Task 0"}, {"title": "Task 1"}, {"title": "Task 2"}],
        [{"title": "Task 1"}, {"title": "Task 0"}],
        {"title": "Task 0"},
    ],
)
def test_another_body_under_the_same_key_is_refused(alice: User, other: object) -> None:
    create(alice, [{"title": "Task 0"}, {"title": "Task 1"}], "key")

    answer = create(alice, other, "key")

    assert answer.status_code == 422
    assert titles(alice) == ["Task 1", "Task 0"]


def test_a_key_of_one_task_is_not_that_of_an_array(alice: User) -> None:
    alice.post(alice.tasks, json={"title": "x"}, headers={"Idempotency-Key": "key"})

    assert create(alice, [{"title": "x"}], "key").status_code == 422
    assert titles(alice) == ["x"]


def test_eight_that_send_an_array_at_once_make_one_set_of_tasks(
    alice: User, connection: psycopg.Connection
) -> None:
    for _ in range(5):
        key, title = str(uuid4()), str(uuid4())
        sent = [{"title": f"{title} {n}"} for n in range(20)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda _, key=key, sent=sent: create(alice, sent, key), range(8))
            )

        assert {answer.status_code for answer in answers} == {201}
        replayed = [answer.headers.get("Idempotency-Replayed") for answer in answers]
        assert sorted(replayed, key=str) == [None] + ["true"] * 7
        assert len({answer.content for answer in answers}) == 1
        (stored,) = connection.execute(
            "SELECT count(*) FROM tasks WHERE user_id = %s AND starts_with(title, %s)",
            (alice.id, title),
        ).fetchone()
        assert stored == 20


def test_an_array_whose_first_task_is_deleted_meanwhile_is_made_whole_or_repeated(
    alice: User,
) -> None:
    """The key goes with the first task: who comes after its deletion makes another set."""
    sent = [{"title": f"Task {n}"} for n in range(5)]
    key, deleted, stop = str(uuid4()), 0, threading.Event()

    def repeat() -> list[httpx.Response]:
        answers = []
        while not stop.is_set():
            answers.append(create(alice, sent, key))
        return answers

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(repeat) for _ in range(8)]
        try:
            while deleted < 3:
                firsts = [t for t in alice.get(alice.tasks).json() if t["title"] == "Task 0"]
                deleted += sum(alice.delete(alice.path(t)).status_code == 204 for t in firsts)
        finally:
            stop.set()
    answers = [answer for one in running for answer in one.result()]

    assert {answer.status_code for answer in answers} == {201}
    made = [answer.json() for answer in answers if "Idempotency-Replayed" not in answer.headers]
    assert len(made) in (3, 4)
    for tasks in made:
        assert [task["title"] for task in tasks] == [task["title"] for task in sent]
    sets = [[task["id"] for task in tasks] for tasks in made]
    for answer in answers:
        ids = [task["id"] for task in answer.json()]
        assert any(ids in (whole, whole[1:]) for whole in sets)
    assert len(titles(alice)) == 5 * len(made) - deleted


def test_keys_of_different_users_never_meet(alice: User, bob: User) -> None:
    mine = create(alice, [{"title": "mine"}], "key")
    his = create(bob, [{"title": "his"}, {"title": "his too"}], "key")

    assert (mine.status_code, his.status_code) == (201, 201)
    assert "Idempotency-Replayed" not in his.headers


def test_all_tasks_of_a_status_are_changed_at_once(alice: User, bob: User) -> None:
    create(alice, [{"title": "a"}, {"title": "b"}, {"title": "c", "status": "complete"}])
    his = bob.create()
    before = alice.get(f"{alice.tasks}?status=complete").json()

    answer = alice.patch(f"{alice.tasks}?status=incomplete", json={"status": "complete"})

    assert (answer.status_code, answer.json()) == (200, {"updated": 2})
    assert titles(alice, "?status=complete") == ["c", "b", "a"]
    assert alice.get(alice.path(before[0])).json() == before[0]
    assert bob.get(bob.path(his)).json() == his

    back = alice.patch(f"{alice.tasks}?status=complete", json={"status": "incomplete"})
    assert back.json() == {"updated": 3}
    assert alice.patch(f"{alice.tasks}?status=complete", json={"status": "incomplete"}).json() == {
        "updated": 0
    }


def test_all_tasks_of_a_status_are_deleted_at_once(alice: User, bob: User) -> None:
    create(alice, [{"title": "a"}, {"title": "b", "status": "complete"}])
    his = bob.create(status="complete")

    answer = alice.delete(f"{alice.tasks}?status=complete")

    assert (answer.status_code, answer.json()) == (200, {"deleted": 1})
    assert titles(alice) == ["a"]
    assert bob.get(bob.tasks).json() == [his]
    assert alice.delete(f"{alice.tasks}?status=complete").json() == {"deleted": 0}


def test_deleting_many_forgets_as_many_old_deletions_and_a_hundred_more(
    alice: User, bob: User, connection: psycopg.Connection
) -> None:
    create(alice, [{"title": "x", "status": "complete"}] * 5)
    bob.create()
    # The same ones of both: the key tells them apart by their owner alone.
    connection.execute(
        "INSERT INTO deleted_tasks SELECT owner, n, now() - interval '91 days'"
        " FROM generate_series(1, 150) AS n, unnest(%s::text[]) AS owner",
        ([alice.id, bob.id],),
    )

    assert alice.delete(f"{alice.tasks}?status=complete").json() == {"deleted": 5}

    count = "SELECT count(*) FROM deleted_tasks WHERE user_id = %s"
    assert connection.execute(count, (alice.id,)).fetchone() == (150 - 105 + 5,)
    assert connection.execute(count, (bob.id,)).fetchone() == (150,)


def test_a_user_who_never_had_a_task_has_none_to_change(alice: User) -> None:
    path = f"{alice.tasks}?status=incomplete"

    assert alice.patch(path, json={"status": "complete"}).json() == {"updated": 0}
    assert alice.delete(path).json() == {"deleted": 0}


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "Status is required"),
        ("?", "Status is required"),
        ("?stauts=complete", "Status is required; Unknown parameter: stauts"),
        ("?status=complete&limit=1", "Unknown parameter: limit"),
        ("?status=done", "Invalid status value. Must be 'incomplete' or 'complete'"),
        ("?status=", "Invalid status value. Must be 'incomplete' or 'complete'"),
    ],
)
def test_no_slip_in_the_query_changes_everything(
    alice: User, method: str, query: str, message: str
) -> None:
    create(alice, [{"title": "a"}, {"title": "b", "status": "complete"}])
    before = alice.get(alice.tasks).json()

    body = {"status": "incomplete"} if method == "PATCH" else None
    answer = alice.request(method, alice.tasks + query, json=body)

    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert alice.get(alice.tasks).json() == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Status is required"),
        ({"status": None}, "Invalid status value. Must be 'incomplete' or 'complete'"),
        ({"title": "x", "status": "complete"}, "Unknown field: title"),
    ],
)
def test_many_tasks_can_only_change_their_status(alice: User, body: dict, message: str) -> None:
    task = alice.create()

    answer = alice.patch(f"{alice.tasks}?status=incomplete", json=body)

    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert alice.get(alice.tasks).json() == [task]


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_condition_that_no_list_can_meet_changes_nothing(alice: User, method: str) -> None:
    task = alice.create()
    tag = alice.get(alice.tasks).headers["ETag"]
    json = {"status": "complete"} if method == "PATCH" else None

    for header in ({"If-Match": tag}, {"If-Match": '"1"'}):
        path = f"{alice.tasks}?status=incomplete"
        answer = alice.request(method, path, json=json, headers=header)
        assert answer.status_code == 412
        assert answer.json() == {"error": "A list has no strong ETag that If-Match could name"}
        assert alice.get(alice.path(task)).json() == task

    answer = alice.request(method, path, json=json, headers={"If-Match": "*"})
    assert 1 in answer.json().values()


def test_what_many_at_once_do_shows_up_in_changes(alice: User) -> None:
    def changes(cursor: str | None) -> dict:
        query = {} if cursor is None else {"cursor": cursor}
        return alice.get(f"{alice.tasks}/changes", params=query).json()

    made = create(alice, [{"title": "a"}, {"title": "b"}, {"title": "c"}]).json()
    first = changes(None)
    assert first["tasks"] == made

    alice.patch(f"{alice.tasks}?status=incomplete", json={"status": "complete"})
    second = changes(first["cursor"])
    assert second["tasks"] == alice.get(alice.tasks).json()[::-1]

    alice.delete(f"{alice.tasks}?status=complete")
    third = changes(second["cursor"])
    assert (third["tasks"], third["deleted"]) == ([], [task["id"] for task in made])
    assert third["more"] is False
