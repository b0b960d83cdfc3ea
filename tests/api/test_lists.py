"""Lists: newest first, filtered, in pages, or whole and streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from urllib.parse import parse_qsl, urlsplit

import psycopg
import pytest
from flask.testing import FlaskCliRunner

from tests.conftest import User
from todo_service.schemas import LIST_QUERY


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


@pytest.mark.slow
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


def test_the_link_of_a_page_keeps_every_parameter_that_was_sent(alice: User) -> None:
    sent = {"status": "complete", "limit": "1"}
    assert {*sent, "cursor"} == {*LIST_QUERY.fields}, "send the new parameter here, too"
    for _ in range(3):
        alice.create(status="complete")

    first = next_link(alice.get(alice.tasks, params=sent))
    second = next_link(alice.get(first))

    for link in (first, second):
        kept = dict(parse_qsl(urlsplit(link).query))
        assert kept.pop("cursor")
        assert kept == sent


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


# Pages, filtered lists and whole ones; with more than 500 tasks the last are streamed.
QUERIES = ["", "?limit=2", "?status=complete", "?limit=2&status=incomplete"]
CHANGES = {
    "create": lambda user, _: user.post(user.tasks, json={"title": "x"}),
    "update": lambda user, task: user.patch(user.path(task), json={"title": "x"}),
    "complete": lambda user, task: user.patch(f"{user.path(task)}/complete"),
    "delete": lambda user, task: user.delete(user.path(task)),
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("count", [5, 1600])
def test_every_list_has_a_weak_etag_and_answers_304(
    alice: User, connection: psycopg.Connection, query: str, count: int
) -> None:
    seed(connection, alice.id, count)
    tag = alice.get(alice.tasks + query).headers["ETag"]
    assert re.fullmatch('W/"[!#-~]+"', tag)

    for method in ("GET", "HEAD"):
        for condition in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
            headers = {"If-None-Match": condition}
            again = alice.request(method, alice.tasks + query, headers=headers)
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["ETag"] == tag
            assert again.headers["Cache-Control"] == "private, no-cache"
            assert not again.headers.keys() & {"content-type", "content-length"}
    assert alice.get(alice.tasks + query, headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("count", [5, 1600])
def test_the_tag_of_every_list_changes_with_any_task_of_the_user(
    alice: User, bob: User, connection: psycopg.Connection, change: str, count: int
) -> None:
    seed(connection, alice.id, count)
    # The oldest, which is on no page above, and complete already.
    oldest = alice.get(alice.tasks).json()[-1]
    alice.patch(f"{alice.path(oldest)}/complete")
    tags = {query: alice.get(alice.tasks + query).headers["ETag"] for query in QUERIES}
    CHANGES[change](bob, bob.create())
    for query, tag in tags.items():
        known = {"If-None-Match": tag}
        assert alice.get(alice.tasks + query, headers=known).status_code == 304

    assert CHANGES[change](alice, oldest).is_success

    for query, tag in tags.items():
        answer = alice.get(alice.tasks + query, headers={"If-None-Match": tag})
        assert answer.status_code == 200
        assert answer.headers["ETag"] != tag
        assert answer.json() == alice.get(alice.tasks + query).json()


def test_lists_of_other_queries_have_other_tags(alice: User) -> None:
    alice.create()

    answers = [alice.get(alice.tasks + query) for query in [*QUERIES, "?limit=3"]]

    assert len({answer.headers["ETag"] for answer in answers}) == len(answers)


def test_the_tag_of_an_empty_list_is_another_one_than_before_and_after(
    alice: User, runner: FlaskCliRunner
) -> None:
    tags = [alice.get(alice.tasks).headers["ETag"]]
    assert alice.get(alice.tasks, headers={"If-None-Match": tags[0]}).status_code == 304
    task = alice.create()
    tags.append(alice.get(alice.tasks).headers["ETag"])
    alice.delete(alice.path(task))
    tags.append(alice.get(alice.tasks).headers["ETag"])
    assert len(set(tags)) == 3

    assert runner.invoke(args=["erase", alice.id, "--yes"]).exit_code == 0

    for tag in tags[1:]:
        assert alice.get(alice.tasks, headers={"If-None-Match": tag}).status_code == 200


def test_a_304_asks_the_clock_and_nothing_else(alice: User, database_url: str) -> None:
    alice.create()
    known = {"If-None-Match": alice.get(alice.tasks).headers["ETag"]}

    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        assert alice.get(alice.tasks, headers=known).status_code == 304


def test_a_bad_query_is_refused_whatever_the_client_knows(alice: User) -> None:
    answer = alice.get(f"{alice.tasks}?limit=0", headers={"If-None-Match": "*"})

    assert answer.status_code == 400


def test_the_tag_of_a_page_changes_when_a_next_page_comes_or_goes(alice: User) -> None:
    old = alice.create("old")
    alice.create("new")
    tag = alice.get(f"{alice.tasks}?limit=1").headers["ETag"]

    alice.delete(alice.path(old))

    answer = alice.get(f"{alice.tasks}?limit=1", headers={"If-None-Match": tag})
    assert answer.status_code == 200
    assert "Link" not in answer.headers
