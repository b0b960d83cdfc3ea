"""Nobody sees or touches what is somebody else's: two users, every route, every method."""

from __future__ import annotations

import httpx
import psycopg
import pytest
from flask import Flask

from tests.conftest import User

PUBLIC = {"/", "/health", "/ready", "/openapi.yaml", "/docs/", "/docs/<path:path>"}
# By table, the column that says whose rows these are.
OWNERS = {
    "users": "id",
    "tasks": "user_id",
    "deleted_tasks": "user_id",
    "idempotency_keys": "user_id",
}
BODIES = {"POST": {"title": "x"}, "PUT": {"title": "x"}, "PATCH": {"title": "x"}}


def rows(connection: psycopg.Connection, user: User) -> list[list[tuple]]:
    """All that there is of a user, by table."""
    return [
        connection.execute(
            f"SELECT * FROM {table} WHERE {owner} = %s ORDER BY 1, 2, 3", (user.id,)
        ).fetchall()
        for table, owner in OWNERS.items()
    ]


def routes(app: Flask) -> list[tuple[str, str]]:
    """Every method and rule of the URL map, but for OPTIONS, which shows no data."""
    return [
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in sorted(rule.methods - {"OPTIONS"})
    ]


def fill(rule: str, user_id: str, task_id: object) -> str:
    return rule.replace("<user_id:user_id>", user_id).replace("<task_id:task_id>", str(task_id))


def task_routes(app: Flask) -> list[tuple[str, str]]:
    return [(method, rule) for method, rule in routes(app) if "<task_id:" in rule]


def test_every_route_needs_a_token_but_for_the_public_ones(app: Flask, server: str) -> None:
    guarded = [(method, rule) for method, rule in routes(app) if rule not in PUBLIC]
    assert len(guarded) >= 9

    for method, rule in guarded:
        answer = httpx.request(method, server + fill(rule, "alice", 1))
        assert answer.status_code == 401, (method, rule)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        if method != "HEAD":
            assert answer.json() == {"error": "Unauthorized"}


def test_paths_below_api_need_a_token_whether_or_not_they_exist(server: str) -> None:
    for path in ("/api/", "/api/nothing", "/api/alice/tasks/1/x"):
        assert httpx.get(server + path).status_code == 401
    assert httpx.delete(server + "/api/alice/tasks").status_code == 401


def test_a_stranger_at_the_owners_path_is_forbidden_on_every_route(
    app: Flask, alice: User, bob: User
) -> None:
    task = alice.create()

    for method, rule in routes(app):
        if rule in PUBLIC:
            continue
        answer = bob.request(method, fill(rule, alice.id, task["id"]), json=BODIES.get(method))
        assert answer.status_code == 403, (method, rule)
        if method != "HEAD":
            assert answer.json() == {"error": "Forbidden"}
    assert alice.get(alice.tasks).json() == [task]


def test_a_task_of_somebody_else_answers_like_a_missing_one_byte_for_byte(
    app: Flask, alice: User, bob: User
) -> None:
    task, his = alice.create("Only for Alice"), bob.create("Only for Bob")
    missing = 9_000_000_000_000_000_000

    for method, rule in task_routes(app):
        headers = {"X-Request-ID": "same"}
        body = BODIES.get(method) if rule.endswith("<task_id:task_id>") else None
        strange, absent = (
            bob.request(method, fill(rule, bob.id, task_id), json=body, headers=headers)
            for task_id in (task["id"], missing)
        )
        assert strange.status_code == absent.status_code == 404, (method, rule)
        assert strange.content == absent.content
        varying = {"date", "server-timing"}
        assert {k: v for k, v in strange.headers.items() if k not in varying} == {
            k: v for k, v in absent.headers.items() if k not in varying
        }
    assert alice.get(alice.path(task)).json() == task
    assert bob.get(bob.tasks).json() == [his]


def test_the_owner_succeeds_on_every_route(app: Flask, alice: User) -> None:
    for method, rule in task_routes(app):
        task = alice.create()
        body = BODIES.get(method) if rule.endswith("<task_id:task_id>") else None
        answer = alice.request(method, fill(rule, alice.id, task["id"]), json=body)
        assert answer.status_code == (204 if method == "DELETE" else 200), (method, rule)


@pytest.mark.parametrize("query", ["", "?limit=1000", "?status=incomplete", "?limit=1"])
def test_a_list_holds_the_askers_tasks_only(alice: User, bob: User, query: str) -> None:
    mine, _ = alice.create("mine"), bob.create("his")

    assert alice.get(alice.tasks + query).json() == [mine]


def test_many_at_once_touch_the_askers_rows_only(
    alice: User, bob: User, connection: psycopg.Connection
) -> None:
    for user in (alice, bob):
        user.post(user.tasks, json={"title": "x"}, headers={"Idempotency-Key": "key"})
        user.create()
    bob.create(status="complete")
    bob.delete(bob.path(bob.create()))
    his = rows(connection, bob)

    incomplete, complete = (f"{alice.tasks}?status={s}" for s in ("incomplete", "complete"))
    assert alice.patch(incomplete, json={"status": "complete"}).json() == {
        "updated": 2,
        "more": False,
    }
    assert alice.delete(complete).json() == {"deleted": 2, "more": False}

    assert alice.get(alice.tasks).json() == []
    assert rows(connection, bob) == his


def test_a_push_touches_the_askers_rows_only(
    alice: User, bob: User, connection: psycopg.Connection
) -> None:
    sent = [{"key": f"k{n}", "title": "x"} for n in range(3)]
    push = {user: user.post(f"{user.tasks}/changes", json={"tasks": sent}) for user in (alice, bob)}
    mine, his = ([result["task"] for result in push[user].json()["tasks"]] for user in (alice, bob))
    long_ago = "now() - interval '91 days'"
    connection.execute(
        f"UPDATE idempotency_keys SET created_at = {long_ago} WHERE user_id = ANY (%s)",
        ([alice.id, bob.id],),
    )
    connection.execute(
        f"INSERT INTO deleted_tasks SELECT owner, 1, {long_ago} FROM unnest(%s::text[]) AS owner",
        ([alice.id, bob.id],),
    )
    before = rows(connection, bob)

    changes = [{"key": "k0", "title": "x"}, {"id": mine[1]["id"], "title": "y"}]
    strange = [{"id": his[1]["id"], "title": "mine now"}, his[2] | {"title": "mine now"}]
    answer = alice.post(
        f"{alice.tasks}/changes",
        json={"tasks": [*changes, *strange], "deleted": [{"id": mine[2]["id"]}, his[0]]},
    ).json()

    absent = {"status": 404, "error": "Task not found"}
    assert [result["status"] for result in answer["tasks"]] == [201, 200, 404, 404]
    assert answer["tasks"][0]["task"] == mine[0]
    assert answer["tasks"][2:] == [absent, absent]
    assert answer["deleted"] == [{"status": 204}, absent]
    assert rows(connection, bob) == before
    # Of her own, what is old is gone, but for the key of this push.
    assert [len(table) for table in rows(connection, alice)] == [1, 2, 1, 1]


def test_a_stranger_cannot_change_through_a_conditional_request(alice: User, bob: User) -> None:
    task, _ = alice.create(), bob.create()
    tag = alice.get(alice.path(task)).headers["ETag"]

    for method, body in [("PUT", {"title": "x"}), ("DELETE", None)]:
        answer = bob.request(
            method, f"{bob.tasks}/{task['id']}", json=body, headers={"If-Match": tag}
        )
        assert (answer.status_code, answer.json()) == (404, {"error": "Task not found"})
    assert alice.get(alice.path(task)).json() == task
