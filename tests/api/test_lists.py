"""Lists: newest first, filtered, in pages, or whole and streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import psycopg
import pytest

from tests.conftest import User


def seed(connection: psycopg.Connection, user_id: str, count: int, spread: str = "1 ms") -> None:
    """Tasks straight into the table, `spread` apart; every third one is complete."""
    connection.execute("INSERT INTO users (id) VALUES (%s) ON CONFLICT (id) DO NOTHING", (user_id,))
    connection.execute(
        "INSERT INTO tasks (user_id, title, status, created_at, updated_at)"
        " SELECT %s, 'Task ' || n, CASE n %% 3 WHEN 0 THEN 'complete' ELSE 'incomplete' END, at, at"
        " FROM generate_series(1, %s) n, LATERAL (SELECT now() - n * %s::interval AS at) t",
        (user_id, count, spread),
    )


def next_link(answer) -> str | None:
    link = answer.headers.get("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<(/[^>]*)>; rel="next"', link)
    assert match, link
    return match[1]


def pages(user: User, query: str) -> Iterator[list[dict]]:
    path: str | None = f"{user.tasks}?{query}"
    while path:
        answer = user.get(path)
        assert answer.status_code == 200, answer.text
        yield answer.json()
        path = next_link(answer)


def ids(tasks: list[dict]) -> list[int]:
    return [task["id"] for task in tasks]


def test_a_list_is_newest_first(alice: User) -> None:
    made = [alice.create(f"Task {n}") for n in range(3)]

    assert alice.get(alice.tasks).json() == made[::-1]


def test_an_empty_list_is_an_empty_array(alice: User) -> None:
    assert alice.get(alice.tasks).text == "[]"
    assert alice.get(f"{alice.tasks}?limit=5").text == "[]"


def test_a_status_filters(alice: User) -> None:
    done, todo = alice.create(status="complete"), alice.create()

    assert alice.get(f"{alice.tasks}?status=complete").json() == [done]
    assert alice.get(f"{alice.tasks}?status=incomplete").json() == [todo]
    assert alice.get(f"{alice.tasks}?status=complete&limit=1").json() == [done]


@pytest.mark.parametrize("spread", ["1 ms", "0"])
@pytest.mark.parametrize(("query", "expected"), [("", 100), ("&status=complete", 33)])
def test_pages_together_are_the_whole_list(
    alice: User, connection: psycopg.Connection, spread: str, query: str, expected: int
) -> None:
    seed(connection, alice.id, 100, spread)
    whole = alice.get(f"{alice.tasks}?{query}").json()
    assert len(whole) == expected

    for size in (1, 7, expected - 1, expected, expected + 1):
        paged = list(pages(alice, f"limit={size}{query}"))
        assert [task for page in paged for task in page] == whole
        assert all(len(page) == size for page in paged[:-1])
        assert len(paged) == -(-expected // size)


def test_inserts_and_deletes_between_pages_repeat_and_skip_nothing(
    alice: User, connection: psycopg.Connection
) -> None:
    seed(connection, alice.id, 60)
    before = alice.get(alice.tasks).json()
    doomed = {before[9]["id"], before[10]["id"], before[45]["id"], before[59]["id"]}
    seen: list[int] = []

    for number, page in enumerate(pages(alice, "limit=10")):
        seen += ids(page)
        alice.create("a newer one")
        if number == 0:
            # Among them the task that the cursor of the first page points at.
            for task_id in doomed:
                assert alice.delete(f"{alice.tasks}/{task_id}").status_code == 204

    expected = [task["id"] for task in before if task["id"] not in doomed - {before[9]["id"]}]
    assert seen == expected


def test_a_damaged_cursor_is_refused(alice: User, connection: psycopg.Connection) -> None:
    seed(connection, alice.id, 3)
    link = next_link(alice.get(f"{alice.tasks}?limit=1"))
    assert link is not None
    cursor = re.search(r"cursor=([^&]+)", link)[1]

    for position in range(len(cursor)):
        other = "A" if cursor[position] != "A" else "B"
        damaged = cursor[:position] + other + cursor[position + 1 :]
        answer = alice.get(f"{alice.tasks}?limit=1&cursor={damaged}")
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid cursor"})
    for damaged in (cursor[:-1], cursor + "A", cursor[4:], cursor + cursor):
        assert alice.get(f"{alice.tasks}?limit=1&cursor={damaged}").status_code == 400


def test_a_cursor_of_another_user_shows_ones_own_tasks_only(
    alice: User, bob: User, connection: psycopg.Connection
) -> None:
    seed(connection, alice.id, 5)
    seed(connection, bob.id, 5, "1 hour")
    link = next_link(alice.get(f"{alice.tasks}?limit=1"))
    assert link is not None

    answer = bob.get(link.replace(alice.tasks, bob.tasks))

    assert {task["user_id"] for task in answer.json()} == {bob.id}
    assert bob.get(link).status_code == 403


def test_the_next_link_encodes_the_user_id(
    new_user: Callable[..., User], connection: psycopg.Connection
) -> None:
    user = new_user("auth0|a/b?c>d e")
    seed(connection, user.id, 3)

    assert len(list(pages(user, "limit=1"))) >= 3


def test_a_long_list_is_streamed_whole_and_in_order(
    alice: User, connection: psycopg.Connection
) -> None:
    seed(connection, alice.id, 1700, "0")

    answer = alice.get(alice.tasks)

    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert "Content-Length" not in answer.headers
    tasks = json.loads(answer.content)
    assert len(tasks) == 1700
    assert ids(tasks) == sorted(ids(tasks), reverse=True)
    complete = alice.get(f"{alice.tasks}?status=complete").json()
    assert ids(complete) == [task["id"] for task in tasks if task["status"] == "complete"]


@pytest.mark.parametrize("count", [499, 500, 501, 1000, 1001])
def test_lists_around_the_size_of_a_page_are_exact(
    alice: User, connection: psycopg.Connection, count: int
) -> None:
    seed(connection, alice.id, count)

    answer = alice.get(alice.tasks)

    assert len(answer.json()) == count
    assert ("Content-Length" in answer.headers) == (count <= 500)


def test_head_of_a_long_list_has_no_body(alice: User, connection: psycopg.Connection) -> None:
    seed(connection, alice.id, 1100)

    answer = alice.head(alice.tasks)

    assert (answer.status_code, answer.content) == (200, b"")


def test_a_list_of_one_page_has_a_weak_etag_and_answers_304(
    alice: User, connection: psycopg.Connection
) -> None:
    seed(connection, alice.id, 5)
    for query in ("", "?limit=2", "?status=complete", "?limit=2&status=incomplete"):
        first = alice.get(alice.tasks + query)
        tag = first.headers["ETag"]
        assert tag.startswith('W/"')
        for method in ("GET", "HEAD"):
            again = alice.request(method, alice.tasks + query, headers={"If-None-Match": tag})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["ETag"] == tag
            assert again.headers["Cache-Control"] == "private, no-cache"

    tag = alice.get(alice.tasks).headers["ETag"]
    alice.patch(f"{alice.tasks}/{alice.get(alice.tasks).json()[0]['id']}/complete")
    assert alice.get(alice.tasks, headers={"If-None-Match": tag}).status_code == 200


def test_the_tag_of_a_page_changes_when_a_next_page_comes_or_goes(alice: User) -> None:
    old = alice.create("old")
    alice.create("new")
    tag = alice.get(f"{alice.tasks}?limit=1").headers["ETag"]

    alice.delete(alice.path(old))

    answer = alice.get(f"{alice.tasks}?limit=1", headers={"If-None-Match": tag})
    assert answer.status_code == 200
    assert "Link" not in answer.headers
