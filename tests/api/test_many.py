"""Many at once: PATCH and DELETE of all tasks of a status."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import User


def titles(user: User, query: str = "") -> list[str]:
    return [task["title"] for task in user.get(user.tasks + query).json()]


def create(user: User, *tasks: dict[str, str]) -> list[dict]:
    return [user.create(**task) for task in tasks]


def test_all_tasks_of_a_status_are_changed_at_once(alice: User, bob: User) -> None:
    create(alice, {"title": "a"}, {"title": "b"}, {"title": "c", "status": "complete"})
    his = bob.create()
    before = alice.get(f"{alice.tasks}?status=complete").json()

    answer = alice.patch(f"{alice.tasks}?status=incomplete", json={"status": "complete"})

    assert (answer.status_code, answer.json()) == (200, {"updated": 2, "more": False})
    assert titles(alice, "?status=complete") == ["c", "b", "a"]
    assert alice.get(alice.path(before[0])).json() == before[0]
    assert bob.get(bob.path(his)).json() == his

    back = alice.patch(f"{alice.tasks}?status=complete", json={"status": "incomplete"})
    assert back.json() == {"updated": 3, "more": False}
    assert alice.patch(f"{alice.tasks}?status=complete", json={"status": "incomplete"}).json() == {
        "updated": 0,
        "more": False,
    }


def test_all_tasks_of_a_status_are_deleted_at_once(alice: User, bob: User) -> None:
    create(alice, {"title": "a"}, {"title": "b", "status": "complete"})
    his = bob.create(status="complete")

    answer = alice.delete(f"{alice.tasks}?status=complete")

    assert (answer.status_code, answer.json()) == (200, {"deleted": 1, "more": False})
    assert titles(alice) == ["a"]
    assert bob.get(bob.tasks).json() == [his]
    assert alice.delete(f"{alice.tasks}?status=complete").json() == {"deleted": 0, "more": False}


@pytest.fixture
def crowded(alice: User, connection: psycopg.Connection) -> list[int]:
    """The ids of alice's 20,001 tasks, the oldest first; the ids do not follow the age."""
    connection.execute("INSERT INTO users (id) VALUES (%s)", (alice.id,))
    rows = connection.execute(
        "INSERT INTO tasks (user_id, title, created_at)"
        " SELECT %s, 'x', now() - n * interval '1 second' FROM generate_series(1, 20001) AS n"
        " RETURNING id",
        (alice.id,),
    )
    return [task_id for (task_id,) in rows][::-1]


def ids(alice: User, query: str) -> list[int]:
    return [task["id"] for task in alice.get(alice.tasks + query).json()][::-1]


@pytest.mark.slow
def test_ten_thousand_are_changed_in_a_request_the_oldest_first(
    alice: User, crowded: list[int]
) -> None:
    def patch() -> dict[str, object]:
        return alice.patch(f"{alice.tasks}?status=incomplete", json={"status": "complete"}).json()

    assert patch() == {"updated": 10_000, "more": True}
    assert ids(alice, "?status=complete") == crowded[:10_000]
    assert patch() == {"updated": 10_000, "more": True}
    assert patch() == {"updated": 1, "more": False}
    assert ids(alice, "?status=complete") == crowded
    assert patch() == {"updated": 0, "more": False}


@pytest.mark.slow
def test_ten_thousand_are_deleted_in_a_request_the_oldest_first(
    alice: User, crowded: list[int]
) -> None:
    path = f"{alice.tasks}?status=incomplete"

    assert alice.delete(path).json() == {"deleted": 10_000, "more": True}
    assert ids(alice, "") == crowded[10_000:]
    alice.delete(alice.path({"id": crowded[-1]}))
    # Exactly ten thousand are left.
    assert alice.delete(path).json() == {"deleted": 10_000, "more": False}
    assert ids(alice, "") == []


def test_tasks_that_have_the_new_status_already_are_left_alone(alice: User) -> None:
    task, tag = alice.create(), alice.get(alice.tasks).headers["ETag"]

    answer = alice.patch(f"{alice.tasks}?status=incomplete", json={"status": "incomplete"})

    assert answer.json() == {"updated": 0, "more": False}
    assert alice.get(alice.path(task)).json() == task
    assert alice.get(alice.tasks).headers["ETag"] == tag


def test_deleting_many_forgets_as_many_old_deletions_and_a_hundred_more(
    alice: User, bob: User, connection: psycopg.Connection
) -> None:
    create(alice, *[{"title": "x", "status": "complete"}] * 5)
    bob.create()
    # The same ones of both: the key tells them apart by their owner alone.
    connection.execute(
        "INSERT INTO deleted_tasks SELECT owner, n, now() - interval '91 days'"
        " FROM generate_series(1, 150) AS n, unnest(%s::text[]) AS owner",
        ([alice.id, bob.id],),
    )

    assert alice.delete(f"{alice.tasks}?status=complete").json() == {"deleted": 5, "more": False}

    count = "SELECT count(*) FROM deleted_tasks WHERE user_id = %s"
    assert connection.execute(count, (alice.id,)).fetchone() == (150 - 105 + 5,)
    assert connection.execute(count, (bob.id,)).fetchone() == (150,)


def test_a_user_who_never_had_a_task_has_none_to_change(alice: User) -> None:
    path = f"{alice.tasks}?status=incomplete"

    assert alice.patch(path, json={"status": "complete"}).json() == {"updated": 0, "more": False}
    assert alice.delete(path).json() == {"deleted": 0, "more": False}


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
    create(alice, {"title": "a"}, {"title": "b", "status": "complete"})
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

    made = create(alice, {"title": "a"}, {"title": "b"}, {"title": "c"})
    first = changes(None)
    assert first["tasks"] == made

    alice.patch(f"{alice.tasks}?status=incomplete", json={"status": "complete"})
    second = changes(first["cursor"])
    assert second["tasks"] == alice.get(alice.tasks).json()[::-1]

    alice.delete(f"{alice.tasks}?status=complete")
    third = changes(second["cursor"])
    assert (third["tasks"], third["deleted"]) == ([], [task["id"] for task in made])
    assert third["more"] is False
