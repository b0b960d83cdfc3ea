"""Any sequence of requests: the service, a copy that follows it and a model in memory agree."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest
from flask import Flask
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import User
from todo_service import store

pytestmark = pytest.mark.slow

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
TITLES = TEXT.map(lambda text: f"{text}.")  # not only white space
DESCRIPTIONS = st.none() | TEXT
STATUSES = st.sampled_from(["incomplete", "complete"])
BODIES = st.fixed_dictionaries(
    {"title": TITLES}, optional={"description": DESCRIPTIONS, "status": STATUSES}
)
PARTS = st.fixed_dictionaries(
    {}, optional={"title": TITLES, "description": DESCRIPTIONS, "status": STATUSES}
).filter(bool)
# What a client may send with a change, as If-Match or (unless) as If-None-Match; see `condition`.
MATCHING = ["none", "fresh", "weak", "any", "one of several", "unless stale"]
CONDITIONS = st.sampled_from([*MATCHING, "stale", "another task's", "unless fresh", "unless any"])
NUMBERS = st.integers(0, 99)
KEYS = st.sampled_from(["a", "b", "c"])
VERSIONS = st.sampled_from(["none", "fresh", "stale"])
# What a push holds: creates, changes and deletions.
ENTRIES = st.one_of(
    st.tuples(st.just("create"), KEYS, BODIES),
    st.tuples(st.just("change"), st.tuples(NUMBERS, VERSIONS), PARTS),
    st.tuples(st.just("delete"), st.tuples(NUMBERS, VERSIONS), st.just({})),
)
DEFAULTS = {"description": None, "status": "incomplete"}
LISTS = ["", "?status=complete", "?status=incomplete", "?limit=2", "?limit=3&status=incomplete"]

ERRORS = {
    404: "Task not found",
    410: "Task was deleted",
    412: "Task was modified",
    422: "Idempotency-Key was used before with another request body",
}


def content(entry: dict[str, Any]) -> dict[str, Any]:
    """What a create is compared by, if its key comes again."""
    return DEFAULTS | {name: value for name, value in entry.items() if name != "key"}


@dataclass
class Known:
    """A task of the model: as it was last answered, with all the tags it has had."""

    task: dict[str, Any]
    tags: list[str]


class Copy:
    """A client that follows `changes`, and the tasks that it has by now."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.begin()

    def begin(self) -> None:
        self.tasks: dict[int, dict[str, Any]] = {}
        self.cursor: str | None = None
        # How often the user had been erased when the cursor was given. None: there was nothing yet,
        # and such a cursor is always good.
        self.life: int | None = None

    def read_page(self, limit: int, life: int) -> bool:
        """Take in a page; returns whether there is more."""
        query = {"limit": limit} | ({"cursor": self.cursor} if self.cursor else {})
        answer = self.user.get(f"{self.user.tasks}/changes", params=query)
        if self.life not in (None, life):
            assert (answer.status_code, answer.json()["error"]) == (410, "Cursor has expired")
            self.begin()
            return True
        assert answer.status_code == 200, answer.text
        page = answer.json()
        count = len(page["tasks"]) + len(page["deleted"])
        assert count == limit or (count < limit and not page["more"])
        assert page["cursor"] != self.cursor or not page["more"]
        self.tasks.update((task["id"], task) for task in page["tasks"])
        for task_id in page["deleted"]:
            self.tasks.pop(task_id, None)
        self.cursor = page["cursor"]
        self.life = life if count or self.life is not None else None
        return page["more"]


class Service(RuleBasedStateMachine):
    """Every write of the API, against a dictionary of tasks."""

    def __init__(self, server: str, app: Flask) -> None:
        super().__init__()
        self.user = User(server, f"model-{uuid4()}")
        self.app = app
        self.model: dict[int, Known] = {}
        # By key: what was sent with it first, and the task that it made, which may be gone.
        self.keys: dict[str, tuple[dict[str, Any], int]] = {}
        # Ids and tags of tasks that are gone, and some that never were.
        self.gone = [9_000_000_000_000_000_000]
        self.old_tags = ['"2019-01-01T00:00:00.000000Z"', '"2020-02-20T20:20:20.202020Z"']
        self.last_change = datetime.min.replace(tzinfo=UTC)
        # How often the user was erased.
        self.life = 0
        self.prompt, self.slow = Copy(self.user), Copy(self.user)
        # The tag of each list when it was last read, and whether a change came after it. None: a
        # write came that was refused or repeated, so that the tag may be the same or a new one.
        self.lists: dict[str, tuple[str, bool | None]] = {}
        self.touched: list[int] = []

    def teardown(self) -> None:
        self.user.close()

    def shown(self) -> dict[int, dict[str, Any]]:
        return {task_id: known.task for task_id, known in self.model.items()}

    def path(self, task_id: int) -> str:
        return f"{self.user.tasks}/{task_id}"

    def pick(self, number: int) -> int:
        """The id of a task; every tenth number is that of one that is gone."""
        there = list(self.model)
        return there[number % len(there)] if there and number % 10 else self.gone[-1]

    # What the model makes of an answer.

    def changed(self, is_change: bool = True) -> None:
        for query, (tag, changed) in self.lists.items():
            if not changed:
                self.lists[query] = (tag, True if is_change else None)

    def stamp(self, tasks: list[dict[str, Any]]) -> None:
        """Times of changes grow, whichever task it is; what is changed at once has one time."""
        (time,) = {task["updated_at"] for task in tasks}
        assert datetime.fromisoformat(time) > self.last_change
        self.last_change = datetime.fromisoformat(time)

    def condition(self, task_id: int, kind: str) -> tuple[dict[str, str], bool]:
        """Headers with a condition, and whether it holds."""
        known = self.model.get(task_id)
        fresh = known.tags[-1] if known else self.old_tags[-1]
        stale = known.tags[-2] if known and known.tags[1:] else self.old_tags[-1]
        others = [other.tags[-1] for i, other in self.model.items() if i != task_id]
        headers = {
            "none": {},
            "fresh": {"If-Match": fresh},
            "any": {"If-Match": "*"},
            "one of several": {"If-Match": f"{stale}, {fresh}"},
            "unless stale": {"If-None-Match": stale},
            "stale": {"If-Match": stale},
            "weak": {"If-Match": f"W/{fresh}"},
            "another task's": {"If-Match": [*self.old_tags, *others][-1]},
            "unless fresh": {"If-None-Match": f"{stale}, {fresh}"},
            "unless any": {"If-None-Match": "*"},
        }
        # What is changed at once has one tag, and so another task's may be this one's, too.
        holds = kind in MATCHING or headers[kind].get("If-Match") == fresh
        return headers[kind], holds

    def refused(self, answer: httpx.Response, task_id: int, matches: bool) -> bool:
        """Whether the answer to a write is the refusal that was due."""
        self.touched = [task_id]
        if task_id not in self.model:
            assert (answer.status_code, answer.json()["error"]) == (404, "Task not found")
        elif not matches:
            assert (answer.status_code, answer.json()["error"]) == (412, "Task was modified")
            assert answer.headers["ETag"] == self.model[task_id].tags[-1]
        else:
            return False
        self.changed(is_change=False)
        return True

    def write(
        self, method: str, task_id: int, condition: str, fields: dict[str, Any], suffix: str = ""
    ) -> None:
        headers, matches = self.condition(task_id, condition)
        body = None if suffix else fields
        path = self.path(task_id) + suffix
        answer = self.user.request(method, path, json=body, headers=headers)
        if self.refused(answer, task_id, matches):
            return
        assert answer.status_code == 200, answer.text
        known, task = self.model[task_id], answer.json()
        assert task == known.task | fields | {"updated_at": task["updated_at"]}
        assert answer.headers["ETag"] not in known.tags
        self.stamp([task])
        known.task = task
        known.tags.append(answer.headers["ETag"])
        self.changed()

    # What clients do.

    @initialize(
        sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
        bodies=st.lists(BODIES, max_size=6),
    )
    def begin(self, sizes: list[int], bodies: list[dict[str, Any]]) -> None:
        self.sizes = sizes
        for body in bodies:
            self.create(body, None)

    @rule(body=BODIES, key=st.none() | KEYS)
    def create(self, body: dict[str, Any], key: str | None) -> None:
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.user.post(self.user.tasks, json=body, headers=headers)
        body = content(body)
        status, task_id = self.expected_of(key, body)
        assert answer.status_code == status, answer.text
        replayed = task_id is not None and status == 201
        assert ("Idempotency-Replayed" in answer.headers) == replayed
        if task_id is not None:
            self.touched = [task_id]
            self.changed(is_change=False)
        if status == 410:
            assert answer.json() == {"error": "Task was deleted"}
        elif replayed:
            assert answer.json() == self.model[task_id].task
        elif status == 201:
            task = answer.json()
            self.stamp([task])
            self.learn(task, key, body)
            assert answer.headers["ETag"] == self.model[task["id"]].tags[-1]
            assert answer.headers["Location"] == self.path(task["id"])
            self.touched = [task["id"]]
            self.changed()

    def expected_of(self, key: str | None, body: dict[str, Any]) -> tuple[int, int | None]:
        """The status due to a create, and the task that the same key made before."""
        if key not in self.keys:
            return 201, None
        first, task_id = self.keys[key]
        if first != body:
            return 422, task_id
        return (201 if task_id in self.model else 410), task_id

    def learn(self, task: dict[str, Any], key: str | None, body: dict[str, Any]) -> None:
        assert task["id"] not in [*self.model, *self.gone]
        assert task["created_at"] == task["updated_at"]
        assert {name: task[name] for name in body} == body
        self.model[task["id"]] = Known(task, [])
        self.read_tag(task["id"])
        if key:
            self.keys[key] = body, task["id"]

    def read_tag(self, task_id: int) -> None:
        known = self.model[task_id]
        answer = self.user.get(self.path(task_id))
        assert answer.json() == known.task
        assert answer.headers["ETag"] not in known.tags
        known.tags.append(answer.headers["ETag"])

    @precondition(lambda self: self.keys)
    @rule(number=NUMBERS)
    def send_a_create_again(self, number: int) -> None:
        key = list(self.keys)[number % len(self.keys)]
        self.create(self.keys[key][0], key)

    @rule(entries=st.lists(ENTRIES, min_size=1, max_size=5), again=st.booleans())
    def push(self, entries: list[tuple[str, Any, dict[str, Any]]], again: bool) -> None:
        sent: dict[Any, tuple[str, dict[str, Any]]] = {}  # a key or an id may come once in a push
        for kind, name, fields in entries:
            if kind != "create":
                entry = self.versioned(*name) | fields
                sent.setdefault(entry["id"], (kind, entry))
            elif again and name in self.keys:
                sent.setdefault(name, (kind, self.keys[name][0] | {"key": name}))
            else:
                sent.setdefault(name, (kind, fields | {"key": name}))
        changes = sorted(sent.values(), key=lambda change: change[0] == "delete")
        due = [self.due(*change) for change in changes]
        tasks = [entry for kind, entry in changes if kind != "delete"]
        deleted = [entry for kind, entry in changes if kind == "delete"]
        body = {"tasks": tasks, "deleted": deleted}

        answer = self.user.post(f"{self.user.tasks}/changes", json=body)

        assert answer.status_code == 200, answer.text
        results = answer.json()["tasks"] + answer.json()["deleted"]
        # First what was done: a result shows its task as it is after the whole push.
        done = []
        for (kind, entry), (status, task_id), result in zip(changes, due, results, strict=True):
            if status == 204:
                self.forget(task_id)
            elif status == 200:
                known, task = self.model[task_id], result["task"]
                assert task == known.task | entry | {"updated_at": task["updated_at"]}
                known.task = task
                self.read_tag(task_id)
                done.append(task)
            elif kind == "create" and task_id is None:
                done.append(result["task"])
                self.learn(result["task"], entry["key"], content(entry))
        if done:
            self.stamp(done)
        for (kind, entry), (status, task_id), result in zip(changes, due, results, strict=True):
            replayed = kind == "create" and task_id is not None
            if kind == "create":
                task_id = self.keys[entry["key"]][1]
            task = self.shown().get(task_id)
            if replayed and status == 201 and task is None:
                status = 410  # it was deleted by this push
            expected = {"status": status, "error": ERRORS.get(status), "task": task}
            expected["replayed"] = (replayed and status == 201) or None
            assert result == {name: value for name, value in expected.items() if value is not None}
            self.touched.append(entry.get("id", task_id))
        self.changed(is_change=bool(done) or 204 in [status for status, _ in due])

    def versioned(self, number: int, version: str) -> dict[str, Any]:
        """The id of a task, perhaps with a version of it; some numbers are a guess of a new id."""
        task_id = self.pick(number)
        if number % 10 == 1:
            task_id = max([0, *self.model, *self.gone[1:]]) + 1
        known = self.model.get(task_id)
        tags = [*self.old_tags, *(known.tags if known else [])]
        if version == "none":
            return {"id": task_id}
        return {"id": task_id, "updated_at": tags[-1 if version == "fresh" else -2].strip('"')}

    def due(self, kind: str, entry: dict[str, Any]) -> tuple[int, int | None]:
        """The status due to an entry of a push, and the task that it is about."""
        if kind == "create":
            return self.expected_of(entry["key"], content(entry))
        known = self.model.get(entry["id"])
        if known is None:
            return 404, None
        if entry.get("updated_at", known.task["updated_at"]) != known.task["updated_at"]:
            return 412, entry["id"]
        return (204 if kind == "delete" else 200), entry["id"]

    @rule(number=NUMBERS, condition=CONDITIONS, fields=PARTS)
    def put(self, number: int, condition: str, fields: dict[str, Any]) -> None:
        self.write("PUT", self.pick(number), condition, fields)

    @rule(number=NUMBERS, condition=CONDITIONS, fields=PARTS)
    def patch(self, number: int, condition: str, fields: dict[str, Any]) -> None:
        self.write("PATCH", self.pick(number), condition, fields)

    @rule(number=NUMBERS, condition=CONDITIONS, status=STATUSES)
    def complete_or_reopen(self, number: int, condition: str, status: str) -> None:
        self.write("PATCH", self.pick(number), condition, {"status": status}, suffix=f"/{status}")

    @rule(number=NUMBERS, condition=CONDITIONS)
    def delete(self, number: int, condition: str) -> None:
        task_id = self.pick(number)
        headers, matches = self.condition(task_id, condition)
        answer = self.user.delete(self.path(task_id), headers=headers)
        if self.refused(answer, task_id, matches):
            return
        assert (answer.status_code, answer.content) == (204, b"")
        self.forget(task_id)
        self.changed()

    @rule(status=STATUSES, to=STATUSES)
    def update_all(self, status: str, to: str) -> None:
        query = f"{self.user.tasks}?status={status}"
        answer = self.user.patch(query, json={"status": to})
        chosen = [i for i, known in self.model.items() if known.task["status"] == status != to]
        assert (answer.status_code, answer.json()) == (200, {"updated": len(chosen), "more": False})
        self.changed(is_change=bool(chosen))
        if not chosen:
            return
        listed = {task["id"]: task for task in self.user.get(self.user.tasks).json()}
        self.stamp([listed[task_id] for task_id in chosen])
        for task_id in chosen:
            task = self.model[task_id].task
            changes = {"status": to, "updated_at": listed[task_id]["updated_at"]}
            self.model[task_id].task = task | changes
            self.read_tag(task_id)

    @precondition(lambda self: len(self.model) > 3)
    @rule(status=STATUSES)
    def delete_all(self, status: str) -> None:
        answer = self.user.delete(f"{self.user.tasks}?status={status}")
        chosen = [i for i, known in self.model.items() if known.task["status"] == status]
        assert (answer.status_code, answer.json()) == (200, {"deleted": len(chosen), "more": False})
        for task_id in chosen:
            self.forget(task_id)
        self.changed(is_change=bool(chosen))

    @precondition(lambda self: len(self.model) > 5)
    @rule()
    def erase(self) -> None:
        with self.app.app_context():
            assert store.delete_user(self.user.id) == len(self.model)
        for task_id in list(self.model):
            self.forget(task_id)
        self.keys.clear()
        self.life += 1
        self.changed()

    def forget(self, task_id: int) -> None:
        self.gone.append(task_id)
        self.old_tags += self.model.pop(task_id).tags

    @rule(limit=st.integers(1, 5), pages=st.sampled_from([1, 1, 2, 1000]))
    def follow_slowly(self, limit: int, pages: int) -> None:
        for _ in range(pages):
            if not self.slow.read_page(limit, self.life):
                assert self.slow.tasks == self.shown()
                return

    # What must be true afterwards.

    @invariant()
    def tasks_are_those_of_the_model(self) -> None:
        for task_id in self.touched:
            answer = self.user.get(self.path(task_id))
            known = self.model.get(task_id)
            if known is None:
                assert answer.status_code == 404
            else:
                assert (answer.json(), answer.headers["ETag"]) == (known.task, known.tags[-1])
        self.touched = []

    @invariant()
    def lists_are_those_of_the_model_and_304_where_nothing_has_changed(self) -> None:
        newest_first = sorted(self.shown().values(), key=lambda task: task["id"], reverse=True)
        for query in LISTS:
            tag, changed = self.lists.get(query, ("", True))
            known = {"If-None-Match": tag} if tag else {}
            answer = self.user.get(self.user.tasks + query, headers=known)
            if changed is not None:
                assert answer.status_code == (200 if changed else 304), query
            self.lists[query] = (answer.headers["ETag"], False)
            if answer.status_code == 304:
                assert answer.headers["ETag"] == tag
                continue
            parameters = httpx.QueryParams(query.removeprefix("?"))
            expected = [
                task for task in newest_first if parameters.get("status") in (None, task["status"])
            ]
            limit = int(parameters.get("limit", 1000))
            assert answer.json() == expected[:limit]
            assert ("Link" in answer.headers) == (len(expected) > limit)

    @invariant()
    def a_copy_is_the_model(self) -> None:
        number = 0
        while self.prompt.read_page(self.sizes[number % len(self.sizes)], self.life):
            number += 1
        assert self.prompt.tasks == self.shown()


def test_service_copy_and_model_agree_after_every_step(server: str, app: Flask) -> None:
    run_state_machine_as_test(
        lambda: Service(server, app),
        settings=settings(
            # The same sequences in every run.
            derandomize=True,
            phases=[Phase.generate, Phase.shrink],
            database=None,
            deadline=None,
            max_examples=25,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
