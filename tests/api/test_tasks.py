"""The life of a task, over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from urllib.parse import quote, unquote

import psycopg
import pytest

from tests.conftest import User


def test_a_created_task_comes_back_as_it_was_stored(alice: User) -> None:
    answer = alice.post(alice.tasks, json={"title": "Buy milk"})
    task = answer.json()

    assert answer.status_code == 201
    assert list(task) == [
        "id", "user_id", "title", "description", "status", "created_at", "updated_at",
    ]  # fmt: skip
    assert task["id"] > 0
    assert task["user_id"] == alice.id
    assert (task["title"], task["description"], task["status"]) == ("Buy milk", None, "incomplete")
    assert task["created_at"] == task["updated_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", task["created_at"])
    assert answer.headers["Location"] == alice.path(task)
    assert alice.get(alice.path(task)).json() == task


def test_a_task_may_be_created_complete_and_with_a_description(alice: User) -> None:
    task = alice.create("Buy milk", description="two litres", status="complete")

    assert (task["description"], task["status"]) == ("two litres", "complete")


@pytest.mark.parametrize(
    "text",
    [
        "  kept  ",
        "é",
        "e\u0301",
        "\U0001f95b milk",
        "a\u200bb\u202ec",
        "line\nbreak\ttab",
        "'; DROP TABLE tasks; --",
        "%s %% {} \\",
        "\x01\x1f\x7f",
    ],
)
def test_text_is_stored_exactly_as_sent(alice: User, text: str) -> None:
    task = alice.create(text, description=text)

    stored = alice.get(alice.path(task)).json()
    assert (stored["title"], stored["description"]) == (text, text)


def test_the_largest_legal_task_fits_fully_escaped(alice: User) -> None:
    title, description = "\U0001f95b" * 255, "\U0001f95b" * 5000
    body = json.dumps({"title": title, "description": description})
    assert "\\ud83e\\udd5b" in body

    answer = alice.post(alice.tasks, content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 201
    assert (answer.json()["title"], answer.json()["description"]) == (title, description)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_an_update_changes_what_was_sent_and_leaves_the_rest(alice: User, method: str) -> None:
    task = alice.create("Buy milk", description="two litres")

    answer = alice.request(method, alice.path(task), json={"title": "Buy oat milk"})

    assert answer.status_code == 200
    changed = answer.json()
    assert changed["title"] == "Buy oat milk"
    assert changed["description"] == "two litres"
    assert changed["status"] == "incomplete"
    assert changed["created_at"] == task["created_at"]
    assert changed["updated_at"] > task["updated_at"]
    assert alice.get(alice.path(task)).json() == changed


def test_a_description_can_be_emptied_and_taken_away(alice: User) -> None:
    task = alice.create("Buy milk", description="two litres")

    assert alice.put(alice.path(task), json={"description": ""}).json()["description"] == ""
    assert alice.put(alice.path(task), json={"description": None}).json()["description"] is None


def test_what_get_returned_can_be_put(alice: User) -> None:
    task = alice.create("Buy milk")

    answer = alice.put(alice.path(task), json=task | {"id": 1, "user_id": "x", "created_at": 0})

    assert answer.status_code == 200
    changed = answer.json()
    assert (changed["id"], changed["user_id"]) == (task["id"], alice.id)
    assert changed["created_at"] == task["created_at"]


def test_completing_and_reopening_may_be_repeated(alice: User) -> None:
    task = alice.create()

    for verb, status in [("complete", "complete"), ("incomplete", "incomplete")]:
        for _ in range(2):
            answer = alice.patch(f"{alice.path(task)}/{verb}")
            assert answer.status_code == 200
            assert answer.json()["status"] == status


@pytest.mark.parametrize("verb", ["complete", "incomplete"])
@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"", "text/plain"),
        (b"{}", "application/json"),
        (b" { } ", "application/json; charset=utf-8"),
        (b"{}", "application/merge-patch+json"),
        (b"null", "application/json"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_completing_and_reopening_take_no_body_or_an_empty_object(
    alice: User, verb: str, content: bytes, content_type: str | None, chunked: bool
) -> None:
    task = alice.create()
    headers = {} if content_type is None else {"Content-Type": content_type}

    answer = alice.patch(
        f"{alice.path(task)}/{verb}",
        content=iter([content] if content else []) if chunked else content,
        headers=headers,
    )

    assert (answer.status_code, answer.json()["status"]) == (200, verb)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_merge_patch_changes_its_members_and_null_takes_the_description_away(
    alice: User, method: str
) -> None:
    task = alice.create("Buy milk", description="two litres")

    answer = alice.request(
        method,
        alice.path(task),
        content=b'{"description": null, "status": "complete", "id": null}',
        headers={"Content-Type": "application/merge-patch+json"},
    )

    assert answer.status_code == 200
    changed = {"description": None, "status": "complete"}
    assert answer.json() == task | changed | {"updated_at": answer.json()["updated_at"]}
    assert alice.get(alice.path(task)).json() == answer.json()


def test_a_deleted_task_is_gone_and_cannot_be_deleted_again(alice: User) -> None:
    task, other = alice.create(), alice.create()

    answer = alice.delete(alice.path(task))

    assert (answer.status_code, answer.content) == (204, b"")
    assert "Content-Type" not in answer.headers
    for method in ("GET", "DELETE"):
        again = alice.request(method, alice.path(task))
        assert (again.status_code, again.json()) == (404, {"error": "Task not found"})
    assert [t["id"] for t in alice.get(alice.tasks).json()] == [other["id"]]


def test_head_answers_like_get_without_a_body(alice: User) -> None:
    task = alice.create()
    for path in (alice.tasks, alice.path(task), "/health", "/ready"):
        get, head = alice.get(path), alice.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == get.headers["Content-Length"]
        assert head.headers.get("ETag") == get.headers.get("ETag")


def test_options_needs_no_token_and_lists_the_methods(alice: User) -> None:
    task = alice.create()
    del alice.headers["Authorization"]

    collection, item = alice.options(alice.tasks), alice.options(alice.path(task))

    assert {m.strip() for m in collection.headers["Allow"].split(",")} == {
        "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST",
    }  # fmt: skip
    assert {m.strip() for m in item.headers["Allow"].split(",")} == {
        "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "PUT",
    }  # fmt: skip


def test_options_names_the_types_of_a_patch_where_there_is_one(alice: User) -> None:
    task = alice.create()

    item = alice.path(task)
    for path in (alice.tasks, item, f"{item}/complete", f"{item}/incomplete"):
        answer = alice.options(path)
        assert answer.headers["Accept-Patch"] == "application/json, application/merge-patch+json"
    assert "Accept-Patch" not in alice.options(f"{alice.tasks}/changes").headers


def test_the_first_task_makes_the_users_row_appear(
    alice: User, connection: psycopg.Connection
) -> None:
    def rows() -> int:
        (count,) = connection.execute(
            "SELECT count(*) FROM users WHERE id = %s", (alice.id,)
        ).fetchone()
        return count

    assert alice.get(alice.tasks).json() == []
    assert rows() == 0
    alice.create()
    alice.create()
    assert rows() == 1


@pytest.mark.parametrize(
    "user_id",
    [
        "auth0|5f7c8ec7c33c6c004bbafe82",
        "someone+todo@example.com",
        "google-oauth2/1234",
        "https://issuer.example/users/7",
        "Ünï cödé \U0001f95b",
        " spaces kept ",
        "a%2Fb",
        "team/tasks",
        "team/tasks/5",
        "team/tasks/5/complete",
        "a?b#c&d=e",
        "..",
        "line\nbreak",
        "x" * 1024,
    ],
)
def test_any_user_id_works_as_it_is(new_user: Callable[..., User], user_id: str) -> None:
    user = new_user(user_id)
    # Encoded by hand: a client library would take ".." for the folder above.
    user.tasks = f"/api/{quote(user_id, safe='').replace('.', '%2E')}/tasks"

    answer = user.post(user.tasks, json={"title": "Buy milk"})

    assert answer.status_code == 201
    task = answer.json()
    assert task["user_id"] == user_id
    assert unquote(answer.headers["Location"]) == f"/api/{user_id}/tasks/{task['id']}"
    assert task in user.get(user.tasks).json()
    assert user.patch(f"{user.path(task)}/complete").status_code == 200
    assert user.delete(user.path(task)).status_code == 204
