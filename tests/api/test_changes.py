"""What changed since: a copy that follows `changes` misses nothing and keeps nothing too long."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from flask.testing import FlaskCliRunner

from tests.api.test_lists import ids, next_link, seed
from tests.conftest import User
from todo_service.cursors import ChangesCursorField, encode_changes_cursor
from todo_service.task import ChangesCursor
from todo_service.web.body import encode

MIB = 1024 * 1024


def changes(user: User, **query: object) -> dict[str, Any]:
    answer = user.get(f"{user.tasks}/changes", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def walk(user: User, cursor: str | None = None, **query: object) -> Iterator[dict[str, Any]]:
    """Every page from the cursor on."""
    more = True
    while more:
        page = changes(user, **query, **({"cursor": cursor} if cursor else {}))
        assert page["cursor"] != cursor or not page["more"], "it goes round in circles"
        yield page
        cursor, more = page["cursor"], page["more"]


def follow(user: User, copy: dict[int, dict], cursor: str | None = None, **query: object) -> str:
    """Bring a copy up to date, as the contract tells a client to, and return its cursor."""
    for page in walk(user, cursor, **query):
        copy.update((task["id"], task) for task in page["tasks"])
        for task_id in page["deleted"]:
            copy.pop(task_id, None)
        cursor = page["cursor"]
    assert cursor is not None
    return cursor


def expect_expired(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()) == (410, {"error": "Cursor has expired"})
    assert answer.headers["Cache-Control"] == "no-store"


def mark_of(cursor: str) -> ChangesCursor:
    mark = ChangesCursorField().deserialize(cursor)
    assert mark is not None
    return mark


def test_each_task_comes_once_as_it_is_now_where_its_last_change_stands(alice: User) -> None:
    first, second, third = (alice.create(title) for title in ("1", "2", "3"))
    alice.patch(alice.path(second), json={"title": "2, changed"})
    second = alice.patch(f"{alice.path(second)}/complete").json()
    alice.delete(alice.path(first))
    fourth = alice.create("4")

    page = changes(alice)

    assert page["tasks"] == [third, second, fourth]
    assert page["deleted"] == [first["id"]]
    assert page["more"] is False
    assert list(page) == ["tasks", "deleted", "cursor", "more"]
    # On pages of one, the deletion comes between the changes that were made before and after it.
    assert [(ids(page["tasks"]), page["deleted"]) for page in walk(alice, limit=1)] == [
        ([third["id"]], []),
        ([second["id"]], []),
        ([], [first["id"]]),
        ([fourth["id"]], []),
    ]


def test_a_poll_that_finds_nothing_gives_the_same_cursor_back(alice: User) -> None:
    alice.create()
    cursor = changes(alice)["cursor"]

    assert changes(alice, cursor=cursor) == {
        "tasks": [], "deleted": [], "cursor": cursor, "more": False
    }  # fmt: skip


def test_what_changed_nothing_does_not_show_up(alice: User) -> None:
    retry = {"Idempotency-Key": "k"}
    task = alice.post(alice.tasks, json={"title": "x"}, headers=retry).json()
    cursor = changes(alice)["cursor"]

    again = alice.post(alice.tasks, json={"title": "x"}, headers=retry)
    assert again.headers["Idempotency-Replayed"] == "true"
    stale = {"If-Match": '"2020-02-20T20:20:20.202020Z"'}
    assert alice.delete(alice.path(task), headers=stale).status_code == 412
    assert alice.patch(f"{alice.path(task)}/complete", headers=stale).status_code == 412
    assert alice.delete(f"{alice.tasks}/1").status_code == 404
    assert alice.post(alice.tasks, json={"title": "y"}, headers=retry).status_code == 422

    page = changes(alice, cursor=cursor)
    assert (page["tasks"], page["deleted"]) == ([], [])


def test_a_user_who_never_had_a_task_is_followed_from_the_first_on(alice: User) -> None:
    page = changes(alice)
    assert (page["tasks"], page["deleted"], page["more"]) == ([], [], False)
    cursor = page["cursor"]
    assert changes(alice, cursor=cursor) == page

    task = alice.create()

    assert changes(alice, cursor=cursor)["tasks"] == [task]


@pytest.mark.parametrize("deleted", [0, 1, 3])
def test_more_is_true_only_if_there_is_more(alice: User, deleted: int) -> None:
    tasks = [alice.create() for _ in range(3)]
    for task in tasks[:deleted]:
        alice.delete(alice.path(task))

    assert [changes(alice, limit=limit)["more"] for limit in (1, 2, 3, 4)] == [
        True, True, False, False
    ]  # fmt: skip


def test_a_page_holds_500_changes_unless_another_limit_is_given(
    alice: User, connection: psycopg.Connection
) -> None:
    seed(connection, alice.id, 1001)

    assert [len(page["tasks"]) for page in walk(alice)] == [500, 500, 1]
    assert [len(page["tasks"]) for page in walk(alice, limit=1000)] == [1000, 1]


def change_at_one_instant(
    connection: psycopg.Connection, user_id: str
) -> tuple[set[int], set[int]]:
    """240 tasks changed and 120 deleted in one statement; returns the ids of both."""
    row = connection.execute(
        "WITH owner AS (UPDATE users SET changed_at = now()"
        "  WHERE id = %s RETURNING id, changed_at),"
        " changed AS (UPDATE tasks SET updated_at = changed_at FROM owner"
        "  WHERE user_id = owner.id AND title ~ '[1-6]$' RETURNING tasks.id),"
        " gone AS (DELETE FROM tasks USING owner"
        "  WHERE user_id = owner.id AND title ~ '[7-9]$' RETURNING tasks.id, changed_at),"
        " noted AS (INSERT INTO deleted_tasks SELECT %s, id, changed_at FROM gone RETURNING id)"
        " SELECT (SELECT array_agg(id) FROM changed), (SELECT array_agg(id) FROM noted)",
        (user_id, user_id),
    ).fetchone()
    return set(row[0]), set(row[1])


@pytest.mark.slow
def test_hundreds_of_changes_of_one_instant_are_walked_through_in_pages_of_any_size(
    alice: User, connection: psycopg.Connection
) -> None:
    seed(connection, alice.id, 400)
    before: dict[int, dict] = {}
    cursor = follow(alice, before)
    changed, deleted = change_at_one_instant(connection, alice.id)
    assert (len(changed), len(deleted)) == (240, 120)
    now = {task["id"]: task for task in alice.get(alice.tasks).json()}
    assert len({task["updated_at"] for task in now.values() if task["id"] in changed}) == 1
    here = mark_of(changes(alice, limit=1000)["cursor"])[:3]

    for size in (1, 2, 7, 119, 120, 121, 239, 240, 241, 359, 360, 361, 1000):
        pages = list(walk(alice, cursor, limit=size))
        counts = [len(page["tasks"]) + len(page["deleted"]) for page in pages]
        assert counts == [size] * (360 // size) + [360 % size] * (360 % size > 0)
        assert sorted(i for page in pages for i in ids(page["tasks"])) == sorted(changed)
        assert sorted(i for page in pages for i in page["deleted"]) == sorted(deleted)
        copy = dict(before)
        assert mark_of(follow(alice, copy, cursor, limit=size))[:3] == here
        assert copy == now


def test_changes_between_two_pages_are_found_behind_them(
    alice: User, connection: psycopg.Connection
) -> None:
    seed(connection, alice.id, 30)
    copy: dict[int, dict] = {}

    for number, page in enumerate(walk(alice, limit=5)):
        copy.update((task["id"], task) for task in page["tasks"])
        for task_id in page["deleted"]:
            copy.pop(task_id, None)
        if number < 4:
            # A task that it has seen, one that it has not, and the one that the cursor points at.
            seen, last = page["tasks"][0], page["tasks"][-1]
            unseen = alice.get(alice.tasks).json()[number]
            assert unseen["id"] not in copy
            for task in (seen, unseen):
                alice.patch(alice.path(task), json={"title": f"changed after page {number}"})
            assert alice.delete(alice.path(last)).status_code == 204

    assert copy == {task["id"]: task for task in alice.get(alice.tasks).json()}


@pytest.mark.parametrize(
    ("character", "bytes_each"), [("y", 1), ("\U0001f95b", 4), ('"', 2), ("\x01", 6)]
)
def test_a_page_of_long_tasks_ends_at_about_1_mib_of_json(
    alice: User, connection: psycopg.Connection, character: str, bytes_each: int
) -> None:
    seed(connection, alice.id, 500)
    connection.execute(
        "UPDATE tasks SET description = repeat(%s, 5000) WHERE user_id = %s", (character, alice.id)
    )
    copy: dict[int, dict] = {}
    sizes = []

    for page in walk(alice, limit=1000):
        copy.update((task["id"], task) for task in page["tasks"])
        sizes.append(len(encode(page)))

    assert len(copy) == 500
    assert sum(sizes) > 500 * 5000 * bytes_each
    assert max(sizes) < 1.25 * MIB
    assert all(size > 0.75 * MIB for size in sizes[:-1])
    assert copy == {task["id"]: task for task in alice.get(alice.tasks).json()}


def test_pages_of_short_tasks_are_not_cut(alice: User, connection: psycopg.Connection) -> None:
    seed(connection, alice.id, 1001)
    connection.execute(
        "UPDATE tasks SET title = repeat('x', 255), description = repeat('y', 500)"
        " WHERE user_id = %s",
        (alice.id,),
    )

    assert [len(page["tasks"]) for page in walk(alice, limit=1000)] == [1000, 1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "Limit must be an integer from 1 to 1000"),
        ("limit=1001", "Limit must be an integer from 1 to 1000"),
        ("limit=-1", "Limit must be an integer from 1 to 1000"),
        ("limit=ten", "Limit must be an integer from 1 to 1000"),
        ("limit=", "Limit must be an integer from 1 to 1000"),
        ("cursor=", "Invalid cursor"),
        ("cursor=rubbish", "Invalid cursor"),
        ("cursor=%C3%A9", "Invalid cursor"),
        ("limit=0&cursor=x", "Limit must be an integer from 1 to 1000; Invalid cursor"),
    ],
)
def test_a_bad_query_is_refused(alice: User, query: str, message: str) -> None:
    answer = alice.get(f"{alice.tasks}/changes?{query}")

    assert (answer.status_code, answer.json()) == (400, {"error": message})


def test_a_cursor_of_a_list_and_one_of_changes_do_not_pass_for_each_other(alice: User) -> None:
    alice.create()
    alice.create()
    link = next_link(alice.get(f"{alice.tasks}?limit=1"))
    of_list, of_changes = httpx.URL(link).params["cursor"], changes(alice, limit=1)["cursor"]
    assert alice.get(link).status_code == 200
    assert changes(alice, cursor=of_changes)["tasks"]

    for path, cursor in (("/changes", of_list), ("", of_changes)):
        answer = alice.get(alice.tasks + path, params={"cursor": cursor})
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid cursor"})


def test_a_damaged_cursor_is_refused(alice: User) -> None:
    empty = changes(alice)["cursor"]
    alice.create()
    for cursor in (empty, changes(alice)["cursor"]):
        body = cursor.rstrip("=")
        damaged = [body[:n] + ("B" if body[n] == "A" else "A") + body[n + 1 :] for n in range(20)]
        for bad in (*damaged, body[:-2], cursor[4:], cursor + cursor):
            answer = alice.get(f"{alice.tasks}/changes", params={"cursor": bad})
            assert (answer.status_code, answer.json()) == (400, {"error": "Invalid cursor"}), bad


def test_a_cursor_of_more_than_90_days_ago_has_expired(alice: User) -> None:
    alice.create()
    mark = mark_of(changes(alice)["cursor"])

    def ask(days: int) -> httpx.Response:
        now = datetime.now(UTC).replace(tzinfo=None)
        past = mark._replace(in_sync_at=now - timedelta(days=days))
        cursor = encode_changes_cursor(past)
        return alice.get(f"{alice.tasks}/changes", params={"cursor": cursor})

    expect_expired(ask(91))
    assert ask(89).status_code == 200
    # The new cursor lasts as long as any that was given today.
    assert mark_of(ask(89).json()["cursor"]).in_sync_at >= mark.in_sync_at


def test_a_cursor_ahead_of_a_restored_backup_has_expired(
    alice: User, connection: psycopg.Connection
) -> None:
    kept, lost = alice.create("kept"), alice.create("lost")
    copy: dict[int, dict] = {}
    cursor = follow(alice, copy)
    then = {"id": alice.id, "task": lost["id"], "clock": kept["updated_at"]}
    connection.execute("DELETE FROM tasks WHERE user_id = %(id)s AND id = %(task)s", then)
    connection.execute("UPDATE users SET changed_at = %(clock)s WHERE id = %(id)s", then)

    expect_expired(alice.get(f"{alice.tasks}/changes", params={"cursor": cursor}))

    assert changes(alice)["tasks"] == [kept]


def test_a_cursor_from_before_an_erasure_has_expired(alice: User, runner: FlaskCliRunner) -> None:
    alice.create("erased")
    cursor = changes(alice)["cursor"]
    assert runner.invoke(args=["erase", alice.id, "--yes"]).exit_code == 0

    query = {"cursor": cursor}
    expect_expired(alice.get(f"{alice.tasks}/changes", params=query))
    assert alice.get(f"{alice.tasks}/changes").json()["tasks"] == []
    task = alice.create("from now on")
    expect_expired(alice.get(f"{alice.tasks}/changes", params=query))

    page = changes(alice)
    assert (page["tasks"], page["deleted"]) == ([task], [])
    assert changes(alice, cursor=page["cursor"])["tasks"] == []


def test_a_cursor_of_another_user_shows_nobody_elses_tasks(
    alice: User, bob: User, connection: psycopg.Connection
) -> None:
    hers, his = alice.create("hers"), bob.create("his")
    cursor = changes(alice)["cursor"]
    nothing_yet = encode_changes_cursor(None)

    expect_expired(bob.get(f"{bob.tasks}/changes", params={"cursor": cursor}))
    assert changes(bob, cursor=nothing_yet)["tasks"] == [his]
    # Users who were made in one statement have the same created_at.
    connection.execute(
        "UPDATE users SET created_at = 'epoch' WHERE id = ANY (%s)", ([alice.id, bob.id],)
    )
    his = bob.patch(f"{bob.path(his)}/complete").json()
    assert changes(bob, cursor=changes(alice)["cursor"])["tasks"] == [his]
    assert changes(alice)["tasks"] == [hers]


def test_tasks_that_somebody_dated_past_the_clock_come_once(
    alice: User, connection: psycopg.Connection
) -> None:
    tasks = [alice.create() for _ in range(3)]
    connection.execute(
        "UPDATE tasks SET updated_at = '2100-01-01' WHERE user_id = %s AND id <> %s",
        (alice.id, tasks[0]["id"]),
    )
    cursor = None
    for expected in ids(tasks):
        page = changes(alice, limit=1, **({"cursor": cursor} if cursor else {}))
        cursor = page["cursor"]
        assert (ids(page["tasks"]), page["more"]) == ([expected], expected != tasks[-1]["id"])

    assert changes(alice, cursor=cursor)["tasks"] == []
    # And what the service changes about them afterwards comes, too.
    alice.delete(alice.path(tasks[1]))
    changed = alice.patch(f"{alice.path(tasks[2])}/complete").json()
    page = changes(alice, cursor=cursor)
    assert (page["tasks"], page["deleted"]) == ([changed], [tasks[1]["id"]])


def test_a_deleted_task_that_somebody_puts_back_is_there_again(
    alice: User, connection: psycopg.Connection
) -> None:
    task, other = alice.create("back"), alice.create("stays")
    copy: dict[int, dict] = {}
    cursor = follow(alice, copy)
    alice.delete(alice.path(task))
    connection.execute(
        "WITH owner AS (UPDATE users SET changed_at = now() WHERE id = %s RETURNING changed_at)"
        " INSERT INTO tasks (user_id, id, title, updated_at) OVERRIDING SYSTEM VALUE"
        " SELECT %s, %s, 'back', changed_at FROM owner",
        (alice.id, alice.id, task["id"]),
    )

    for limit in (1, 1000):
        again: dict[int, dict] = {}
        follow(alice, again, limit=limit)
        follow(alice, copy, cursor, limit=limit)
        assert sorted(again) == sorted(copy) == sorted(ids([task, other]))


def test_the_path_pulls_and_pushes_and_does_nothing_else(alice: User) -> None:
    alice.create()
    path = f"{alice.tasks}/changes"

    head, options = alice.head(path), alice.options(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == alice.get(path).headers["Content-Length"]
    assert head.headers["Cache-Control"] == "private, no-cache"
    allowed = {"GET", "HEAD", "OPTIONS", "POST"}
    assert (options.status_code, set(options.headers["Allow"].split(", "))) == (200, allowed)
    for method in ("PUT", "PATCH", "DELETE"):
        answer = alice.request(method, path, json={"title": "x"})
        assert (answer.status_code, answer.json()) == (405, {"error": "Method not allowed"})
        assert set(answer.headers["Allow"].split(", ")) == allowed
