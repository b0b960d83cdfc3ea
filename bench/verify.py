"""Before anything is measured: the competitors answer the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx

from bench import data
from bench.competitors import Server
from bench.load import Invalid
from bench.workloads import request

_KINDS = ("get", "list", "create", "update", "complete")
# What differs from one answer to the next.
_NEW = {
    "create": ("id", "created_at", "updated_at"),
    "update": ("updated_at",),
    "complete": ("updated_at",),
}
_SOME_TASK = 4321


class Answer(NamedTuple):
    status: int
    body: Any
    size: int


def ask(server: Server) -> dict[str, Answer]:
    """One request of each kind; expects the tables as seeded."""
    token = data.sign(data.user_id(_SOME_TASK % data.USERS))
    headers = {"Authorization": f"Bearer {token}"}
    answers: dict[str, Answer] = {}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        for kind in _KINDS:
            method, path, body = request(kind, _SOME_TASK)
            sent = {"Content-Type": "application/json"} if body else {}
            answer = client.request(method, path, content=body, headers=sent)
            if answer.status_code not in (200, 201):
                raise Invalid(f"{server.name}, {kind}: {answer.status_code} {answer.text}")
            answers[kind] = Answer(answer.status_code, answer.json(), len(answer.content))
        stranger = client.get(path.partition("/complete")[0], headers={"Authorization": "Bearer x"})
        if stranger.status_code != 401:
            raise Invalid(f"{server.name} let a bad token in: {stranger.status_code}")
    return answers


def compare(server: Server, found: dict[str, Answer], expected: dict[str, Answer]) -> None:
    """The same status, fields and values. Raises Invalid."""
    for kind, answer in found.items():
        if without_new(kind, answer) != without_new(kind, expected[kind]):
            raise Invalid(f"{server.name}, {kind}: {answer} is not {expected[kind]}")


def compare_size(server: Server, found: dict[str, Answer], expected: dict[str, Answer]) -> None:
    """The same status and fields, and as many bytes to within a hundredth. Raises Invalid."""
    for kind, answer in found.items():
        wanted = expected[kind]
        same = answer.status == wanted.status and fields(answer.body) == fields(wanted.body)
        if not same or abs(answer.size - wanted.size) > wanted.size / 100:
            raise Invalid(f"{server.name}, {kind}: {answer} is not like {wanted}")


def without_new(kind: str, answer: Answer) -> tuple[int, Any]:
    if kind == "list":
        return answer.status, answer.body
    return answer.status, answer.body | dict.fromkeys(_NEW.get(kind, ()))


def fields(body: Any) -> list[list[str]]:
    return [list(task) for task in body] if isinstance(body, list) else [list(body)]
