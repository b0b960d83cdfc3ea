"""POST …/tasks/changes: a client's creates, changes and deletions, in one request."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import psycopg
import pytest

from tests.conftest import User

JSON = {"Content-Type": "application/json"}
KEY = "Key must be 1 to 255 visible ASCII characters"
VERSION = "updated_at must be a time as the service gave it"
NOT_AN_OBJECT = "Task must be a JSON object"
NOT_FOUND = {"status": 404, "error": "Task not found"}
KEY_USED = "Idempotency-Key was used before with another request body"


def push(user: User, tasks: object = None, deleted: object = None) -> httpx.Response:
    sent = {"tasks": tasks, "deleted": deleted}
    body = {name: value for name, value in sent.items() if value is not None}
    return user.post(f"{user.tasks}/changes", json=body)


def results(user: User, tasks: object = None, deleted: object = None) -> tuple[list, list]:
    answer = push(user, tasks, deleted)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"tasks", "deleted"}
    return body["tasks"], body["deleted"]


def content(task: dict[str, Any]) -> tuple[str, str | None, str]:
    return task["title"], task["description"], task["status"]


def test_new_tasks_are_created_in_the_order_sent(alice: User) -> None:
    tasks, deleted = results(
        alice,
        [
            {"key": "a", "title": "first", "description": "d"},
            {"key": "b", "title": "second", "status": "complete", "user_id": "x"},
            {"key": "c", "title": "third", "created_at": "x", "updated_at": 5},
        ],
    )

    assert [result["status"] for result in tasks] == [201] * 3
    assert deleted == []
    made = [result["task"] for result in tasks]
    assert [content(task) for task in made] == [
        ("first", "d", "incomplete"),
        ("second", None, "complete"),
        ("third", None, "incomplete"),
    ]
    assert {task["user_id"] for task in made} == {alice.id}
    assert len({task["created_at"] for task in made} | {task["updated_at"] for task in made}) == 1
    assert alice.get(alice.tasks).json() == made[::-1]


def test_a_repeated_push_gives_the_same_tasks_as_they_are_now(alice: User) -> None:
    sent = [{"key": key, "title": key} for key in "abc"]
    first = [result["task"] for result in results(alice, sent)[0]]
    changed = alice.patch(f"{alice.path(first[0])}/complete").json()
    alice.delete(alice.path(first[1]))

    again, _ = results(alice, sent)

    assert again == [
        {"status": 201, "replayed": True, "task": changed},
        {"status": 410, "error": "Task was deleted"},
        {"status": 201, "replayed": True, "task": first[2]},
    ]
    assert len(alice.get(alice.tasks).json()) == 2


def test_a_key_with_other_content_is_refused_and_holds_up_nothing(alice: User) -> None:
    ((kept, gone), _) = results(alice, [{"key": "a", "title": "a"}, {"key": "b", "title": "b"}])
    alice.delete(alice.path(gone["task"]))

    tasks, _ = results(
        alice,
        [
            {"key": "a", "title": "other"},
            {"key": "b", "title": "other"},
            {"key": "c", "title": "new"},
        ],
    )

    assert tasks[:2] == [
        {"status": 422, "error": KEY_USED, "task": kept["task"]},
        {"status": 422, "error": KEY_USED},
    ]
    assert tasks[2]["status"] == 201


def test_a_key_means_the_same_in_a_push_as_in_the_header(alice: User) -> None:
    body = {"title": "x", "description": "y"}
    made = alice.post(alice.tasks, json=body, headers={"Idempotency-Key": "header"}).json()
    ((pushed,), _) = results(alice, [{"key": '"push"', "title": "x"}])

    ((again,), _) = results(alice, [{"key": "header", **body}])
    assert again == {"status": 201, "replayed": True, "task": made}
    # In JSON, a quotation mark is a character of the key.
    answer = alice.post(alice.tasks, json={"title": "x"}, headers={"Idempotency-Key": '"push"'})
    assert "Idempotency-Replayed" not in answer.headers
    quoted = {"Idempotency-Key": r'"\"push\""'}
    answer = alice.post(alice.tasks, json={"title": "x"}, headers=quoted)
    assert answer.json() == pushed["task"]


def test_changes_and_deletions_are_done_if_the_task_has_the_version_that_was_sent(
    alice: User,
) -> None:
    tasks = [alice.create(str(number)) for number in range(8)]
    stale = [dict(task) for task in tasks]
    for number in (1, 5):
        tasks[number] = alice.patch(alice.path(tasks[number]), json={"title": "meanwhile"}).json()
    missing = 9_000_000_000_000_000_000

    changed, deleted = results(
        alice,
        [
            stale[0] | {"title": "changed"},
            stale[1] | {"title": "lost"},
            {"id": tasks[2]["id"], "status": "complete"},
            {"id": tasks[3]["id"], "description": None, "key": "ignored"},
            {"id": missing, "title": "x"},
        ],
        [stale[4], stale[5], {"id": tasks[6]["id"]}, {"id": missing + 1}, stale[7] | {"title": 5}],
    )

    assert [result["status"] for result in changed] == [200, 412, 200, 200, 404]
    assert deleted == [
        {"status": 204},
        {"status": 412, "error": "Task was modified", "task": tasks[5]},
        {"status": 204},
        NOT_FOUND,
        {"status": 204},
    ]
    assert changed[1] == {"status": 412, "error": "Task was modified", "task": tasks[1]}
    assert changed[4] == NOT_FOUND
    expected = [("changed", None, "incomplete"), ("2", None, "complete"), ("3", None, "incomplete")]
    done = [changed[number]["task"] for number in (0, 2, 3)]
    assert [content(task) for task in done] == expected
    (time,) = {task["updated_at"] for task in done}
    assert time > tasks[5]["updated_at"]
    for task, before in zip(done, (tasks[0], tasks[2], tasks[3]), strict=True):
        assert task["created_at"] == before["created_at"]
        assert alice.get(alice.path(task)).json() == task
    assert {task["id"] for task in alice.get(alice.tasks).json()} == {
        tasks[number]["id"] for number in (0, 1, 2, 3, 5)
    }


def test_the_task_of_a_result_is_the_one_after_the_whole_push(alice: User) -> None:
    ((kept, gone), _) = results(alice, [{"key": "a", "title": "a"}, {"key": "b", "title": "b"}])

    tasks, deleted = results(
        alice,
        [
            {"key": "a", "title": "a"},
            {"id": kept["task"]["id"], "title": "changed"},
            {"key": "b", "title": "b"},
        ],
        [gone["task"]],
    )

    assert [result["status"] for result in (*tasks, *deleted)] == [201, 200, 410, 204]
    assert tasks[0]["task"] == tasks[1]["task"] == alice.get(alice.path(kept["task"])).json()
    assert tasks[0]["task"]["title"] == "changed"


def test_an_id_that_the_push_itself_gives_is_not_that_of_a_task_to_change(alice: User) -> None:
    last = alice.create()["id"]
    guessed = [{"id": number} for number in range(last + 1, last + 40)]
    new, other = {"key": "new", "title": "new"}, {"key": "other", "title": "other"}

    (first, *changed), _ = results(alice, [new, *(entry | {"title": "no"} for entry in guessed)])
    (second,), deleted = results(alice, [other], guessed[1:])

    assert changed + deleted == [NOT_FOUND] * 77
    for result, title in (first, "new"), (second, "other"):
        assert (result["status"], result["task"]["title"]) == (201, title)
        assert alice.get(alice.path(result["task"])).json() == result["task"]


def test_a_user_without_tasks_gets_no_row_by_changing_some(
    alice: User, connection: psycopg.Connection
) -> None:
    tasks, deleted = results(alice, [{"id": 1, "title": "x"}], [{"id": 2}])

    assert (tasks, deleted) == ([NOT_FOUND], [NOT_FOUND])
    rows = connection.execute("SELECT id FROM users WHERE id = %s", (alice.id,)).fetchall()
    assert rows == []


def test_a_push_shows_up_in_changes_and_in_the_tag_of_lists(alice: User) -> None:
    old = [alice.create(str(number)) for number in range(3)]
    listed = alice.get(alice.tasks)
    cursor = alice.get(f"{alice.tasks}/changes").json()["cursor"]

    tasks, _ = results(
        alice, [{"key": "k", "title": "new"}, old[0] | {"title": "changed"}], [old[1]]
    )

    page = alice.get(f"{alice.tasks}/changes", params={"cursor": cursor}).json()
    assert {task["id"]: task for task in page["tasks"]} == {
        result["task"]["id"]: result["task"] for result in tasks
    }
    assert page["deleted"] == [old[1]["id"]]
    same = {"If-None-Match": listed.headers["ETag"]}
    assert alice.get(alice.tasks, headers=same).status_code == 200


@pytest.mark.parametrize("spelling", ["{}Z", "{}z", "{}+00:00", "{}-00:00", "{}000Z", "t"])
def test_a_version_may_be_any_spelling_of_the_same_time(alice: User, spelling: str) -> None:
    task = alice.create()
    time = task["updated_at"]
    sent = time.replace("T", "t") if spelling == "t" else spelling.format(time.removesuffix("Z"))

    ((result,), _) = results(alice, [{"id": task["id"], "updated_at": sent, "title": "x"}])

    assert result["status"] == 200


@pytest.mark.parametrize(
    "time",
    [
        *(None, 5, "", "now", "infinity", "2026-11-21", "2026-11-21T09:30:00", "20261121T093000Z"),
        *("2026-11-21T09:30:00+01:00", "2026-02-30T09:30:00Z", "2026-11-21T09:30:00.1234567Z"),
        '"2026-11-21T09:30:00Z"',
    ],
)
def test_what_is_no_time_of_the_service_is_refused(alice: User, time: object) -> None:
    task = alice.create()

    answer = push(alice, [task | {"updated_at": time}], [{"id": 1, "updated_at": time}])

    assert answer.status_code == 400
    assert answer.json() == {"error": f"Task 0: {VERSION}; Deleted 0: {VERSION}"}
    assert alice.get(alice.path(task)).json() == task


def test_a_version_cut_to_milliseconds_is_another_one(alice: User) -> None:
    task = alice.create()
    while task["updated_at"].endswith("000Z"):
        task = alice.patch(f"{alice.path(task)}/complete").json()
    cut = datetime.fromisoformat(task["updated_at"]).isoformat(timespec="milliseconds")

    ((result,), _) = results(alice, [task | {"updated_at": cut, "title": "x"}])

    assert result == {"status": 412, "error": "Task was modified", "task": task}


BAD = [
    ({}, "Send 1 to 100 changes"),
    ({"tasks": [], "deleted": []}, "Send 1 to 100 changes"),
    ({"tasks": [{}] * 101}, "Send 1 to 100 changes"),
    ({"tasks": [{}] * 50, "deleted": [{}] * 51}, "Send 1 to 100 changes"),
    ({"tasks": None}, "Tasks must be an array"),
    ({"tasks": {}, "deleted": "x"}, "Tasks must be an array; Deleted must be an array"),
    ({"tasks": [{}], "more": 1}, "Unknown field: more"),
    ({"tasks": [5, None]}, f"Task 0: {NOT_AN_OBJECT}; Task 1: {NOT_AN_OBJECT}"),
    ({"deleted": [[]]}, f"Deleted 0: {NOT_AN_OBJECT}"),
    ({"tasks": [{}]}, f"Task 0: {KEY}; Task 0: Title is required"),
    *(
        ({"tasks": [{"key": key, "title": "x"}]}, f"Task 0: {KEY}")
        for key in (None, "", 5, "a b", "é", "x" * 256)
    ),
    (
        {"tasks": [{"key": "k", "title": "x" * 256, "description": 5, "status": "x", "b": 1}]},
        "Task 0: Title must be 255 characters or less; Task 0: Description must be a string;"
        " Task 0: Invalid status value. Must be 'incomplete' or 'complete';"
        " Task 0: Unknown field: b",
    ),
    *(
        ({"tasks": [{"id": i, "title": "x"}], "deleted": [{"id": i}]},
         "Task 0: Invalid task ID; Deleted 0: Invalid task ID")
        for i in (None, "7", 7.0, True, 0, -1, 2**63)
    ),
    ({"deleted": [{}]}, "Deleted 0: Invalid task ID"),
    ({"deleted": [{"id": 1, "b": 1}]}, "Deleted 0: Unknown field: b"),
    (
        {"tasks": [{"id": 1}]},
        "Task 0: At least one field (title, description or status) must be provided",
    ),
    ({"tasks": [{"id": 1, "title": " "}]}, "Task 0: Title cannot be empty"),
    (
        {"tasks": [{"key": "k", "title": "x"}, {"id": 1, "title": "x"}, {"key": "k", "title": " "}],
         "deleted": [{"id": 2}, {"id": 1}]},
        "Task 2: Title is required; Task 2: Given twice; Deleted 1: Given twice",
    ),
    ({"tasks": [{"key": "k"}, {"key": "k", "title": "x"}]},
     "Task 0: Title is required; Task 1: Given twice"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), BAD)
def test_a_fault_of_form_refuses_the_whole_push(alice: User, body: Any, message: str) -> None:
    task = alice.create()
    answer = alice.post(f"{alice.tasks}/changes", json=body)

    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert alice.get(alice.tasks).json() == [task]


def test_a_good_entry_beside_a_bad_one_is_not_done(alice: User) -> None:
    task = alice.create()

    answer = push(alice, [{"key": "k", "title": "x"}, task | {"title": " "}], [{"id": task["id"]}])

    assert answer.status_code == 400
    assert alice.get(alice.tasks).json() == [task]


def test_the_first_twenty_entries_with_faults_are_named(alice: User) -> None:
    answer = push(alice, [{"key": "k", "title": "x"}], [{}] * 99)

    faults = answer.json()["error"].split("; ")
    assert faults == [f"Deleted {number}: Invalid task ID" for number in range(20)]


@pytest.mark.parametrize("name", ["Idempotency-Key", "If-Match"])
def test_the_headers_of_single_requests_are_refused(alice: User, name: str) -> None:
    body = {"tasks": [{"key": "k", "title": "x"}]}

    answer = alice.post(f"{alice.tasks}/changes", json=body, headers={name: "x"})

    assert answer.status_code == 400
    assert answer.json() == {"error": "Send key and updated_at with each change"}
    assert alice.get(alice.tasks).json() == []


def test_a_push_may_be_a_mebibyte(alice: User) -> None:
    sent = [{"key": str(n), "title": "x", "description": "y" * 5000} for n in range(100)]
    body = json.dumps({"tasks": sent}).encode()
    assert len(body) > 500_000
    largest = body.ljust(1024 * 1024)

    for make in (bytes, lambda body: iter([body])):

        def send(body: bytes, make: Any = make) -> httpx.Response:
            return alice.post(f"{alice.tasks}/changes", content=make(body), headers=JSON)

        assert send(largest).status_code == 200
        answer = send(largest + b" ")
        message = "Request body must be at most 1 MiB"
        assert (answer.status_code, answer.json()) == (413, {"error": message})
    assert len(alice.get(alice.tasks).json()) == 100


def test_of_eight_that_push_the_same_changes_one_makes_each(alice: User) -> None:
    tasks = [alice.create(str(number)) for number in range(10)]
    sent = [{"key": str(number), "title": "new"} for number in range(10)]
    changes = [task | {"title": "changed"} for task in tasks[:5]]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: results(alice, sent + changes, tasks[5:]), range(8)))

    for number in range(10):
        made = [of_tasks[number] for of_tasks, _ in answers]
        assert {result["status"] for result in made} == {201}
        assert len({result["task"]["id"] for result in made}) == 1
        assert sum("replayed" not in result for result in made) == 1
    for number in range(10, 15):
        statuses = [of_tasks[number]["status"] for of_tasks, _ in answers]
        assert sorted(statuses) == [200] + [412] * 7
    for number in range(5):
        statuses = [deleted[number]["status"] for _, deleted in answers]
        assert sorted(statuses) == [204] + [404] * 7
    assert len(alice.get(alice.tasks).json()) == 15


def test_keys_that_come_again_are_kept_however_old_and_take_no_place_of_others(
    alice: User, connection: psycopg.Connection
) -> None:
    alice.create()
    connection.execute(
        "INSERT INTO idempotency_keys (user_id, key, digest, created_at)"
        " SELECT %s, 'k' || n, '', now() - interval '91 days' + n * interval '1 second'"
        " FROM generate_series(1, 250) AS n",
        (alice.id,),
    )
    sent = [{"key": f"k{n}", "title": "x"} for n in range(1, 101)]

    tasks, _ = results(alice, sent)

    assert {result["status"] for result in tasks} == {422}
    kept = connection.execute("SELECT key FROM idempotency_keys WHERE user_id = %s", (alice.id,))
    assert {key for (key,) in kept} == {entry["key"] for entry in sent}
