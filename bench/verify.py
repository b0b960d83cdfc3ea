"""Before anything is measured: the competitors answer the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx

from bench import data
from bench.competitors import Server
from bench.load import Invalid
from bench.workloads import KINDS, request

_SOME_TASK = 4321
# What a server answers to a request for which it has no route, no method or no schema.
_UNKNOWN = (400, 404, 405, 415, 422)


class Answer(NamedTuple):
    status: int
    body: Any
    size: int


def ask(server: Server, *, knows_all: bool) -> dict[str, Answer]:
    """The answers to one request of each kind that it knows; expects the tables as seeded.

    Each concerns a task of another user, so that none meets what another has changed.
    """
    answers: dict[str, Answer] = {}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for number, kind in enumerate(KINDS, _SOME_TASK):
            method, path, body = request(kind, number)
            headers = {"Authorization": f"Bearer {data.sign(data.user_id(number % data.USERS))}"}
            headers |= {"Content-Type": "application/json"} if body else {}
            one = KINDS[kind]
            headers |= dict([one.header.split(": ")]) if one.header else {}
            answer = client.request(method, path, content=body, headers=headers)
            known = answer.status_code not in _UNKNOWN
            if one.status is not None:
                known = answer.status_code == one.status
            if not known and not knows_all:
                continue
            if answer.status_code not in (one.status, 200, 201, 204):
                raise Invalid(f"{server.name}, {kind}: {answer.status_code} {answer.text}")
            read = answer.json() if answer.content else None
            answers[kind] = Answer(answer.status_code, read, len(answer.content))
        _, path, _ = request("get one", _SOME_TASK)
        stranger = client.get(path, headers={"Authorization": "Bearer x"})
        if stranger.status_code != 401:
            raise Invalid(f"{server.name} let a bad token in: {stranger.status_code}")
    return answers


def differing(found: dict[str, Answer], expected: dict[str, Answer]) -> list[str]:
    """The kinds of request that were answered with another status, other fields or values."""
    return [
        kind
        for kind, answer in found.items()
        if without_new(kind, answer) != without_new(kind, expected[kind])
    ]


def compare(server: Server, found: dict[str, Answer], expected: dict[str, Answer]) -> None:
    """The same status, fields and values. Raises Invalid."""
    for kind in differing(found, expected):
        raise Invalid(f"{server.name}, {kind}: {found[kind]} is not {expected[kind]}")


def compare_size(server: Server, found: dict[str, Answer], expected: dict[str, Answer]) -> None:
    """The same status and fields, and as many bytes to within a hundredth. Raises Invalid."""
    for kind, answer in found.items():
        wanted = expected[kind]
        same = answer.status == wanted.status and fields(answer.body) == fields(wanted.body)
        if not same or abs(answer.size - wanted.size) > wanted.size / 100:
            raise Invalid(f"{server.name}, {kind}: {answer} is not like {wanted}")


def without_new(kind: str, answer: Answer) -> tuple[int, Any]:
    return answer.status, without(KINDS[kind].new, answer.body)


def without(names: tuple[str, ...], body: Any) -> Any:
    if isinstance(body, list):
        return [without(names, item) for item in body]
    if isinstance(body, dict):
        return {name: without(names, body[name]) for name in body if name not in names}
    return body


def fields(body: Any) -> list[list[str]]:
    return [list(task) for task in body] if isinstance(body, list) else [list(body or ())]
