"""What is measured: requests, and shares of them in a workload.

A new kind of request is an entry in KINDS, and thereby a workload of its own. Competitors that
answer it with a 4xx, or not with its status, are left out of it, and so is pgbench without an entry
in ceiling.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from bench import data
from todo_service.schemas import ChangesCursor
from todo_service.task import Mark


@dataclass(frozen=True)
class Kind:
    """A kind of request, which concerns the task with a number."""

    method: str
    # What follows /api/{user}/tasks; {id} stands for the task's id, {cursor} for that of its owner.
    path: str
    # What is sent as JSON, by the task's number.
    body: Callable[[int], object] | None = None
    # Fields of the answer that differ from one time to the next.
    new: tuple[str, ...] = ()
    # A header besides the usual ones, and the status without which it has had no effect.
    header: str = ""
    status: int | None = None


def _new_task(number: int) -> object:
    return {"title": data.title(number), "description": data.DESCRIPTION}


KINDS = {
    "get one": Kind("GET", "/{id}"),
    "list 100": Kind("GET", f"?limit={data.TASKS_EACH}"),
    "create": Kind("POST", "", body=_new_task, new=("id", "created_at", "updated_at")),
    "update": Kind(
        "PUT",
        "/{id}",
        body=lambda number: {"title": data.title(number)[::-1]},
        new=("updated_at",),
    ),
    "complete": Kind("PATCH", "/{id}/complete", new=("updated_at",)),
    # Asks what has changed, and nothing has.
    "poll": Kind("GET", "/changes?cursor={cursor}"),
    # A list that the client has already. Any tag does, so that none has to be asked for before.
    "304": Kind("GET", f"?limit={data.TASKS_EACH}", header="If-None-Match: *", status=304),
}

# Percent of the requests.
WORKLOADS = {
    **{kind: {kind: 100} for kind in KINDS},
    "mixed": {"get one": 70, "list 100": 15, "create": 10, "update": 5},
}

# More than are sent in a measurement, so that none meets what an earlier one of it has changed.
_LENGTH = 20_000


def writes(workload: str) -> bool:
    return any(KINDS[kind].method != "GET" for kind in WORKLOADS[workload])


def request(kind: str, number: int) -> tuple[str, str, str]:
    """Method, path and body of a request that concerns the task with that number."""
    one = KINDS[kind]
    owner = number % data.USERS
    tasks = f"/api/{data.user_id(owner)}/tasks"
    path = tasks + one.path.format(id=data.FIRST_TASK + number, cursor=cursor(owner))
    return one.method, path, json.dumps(one.body(number)) if one.body else ""


def write_requests(folder: Path) -> dict[str, Path]:
    """Write a file for each workload, the same ones in every run, and return their paths."""
    tokens = [data.sign(data.user_id(number)) for number in range(data.USERS)]
    files: dict[str, Path] = {}
    for workload, shares in WORKLOADS.items():
        dice = random.Random(workload)
        numbers = dice.sample(range(data.USERS * data.TASKS_EACH), _LENGTH)
        kinds = dice.choices(list(shares), list(shares.values()), k=_LENGTH)
        files[workload] = folder / f"{workload}.requests"
        with files[workload].open("w") as stream:
            for kind, number in zip(kinds, numbers, strict=True):
                method, path, body = request(kind, number)
                token = tokens[number % data.USERS]
                stream.write(line(method, path, token, body, KINDS[kind].header))
    return files


@cache
def cursor(owner: int) -> str:
    """Where the changes of the user with that number end, as seeded: with the user's last task."""
    number = owner + data.USERS * (data.TASKS_EACH - 1)
    last_change = data.FIRST_TIME + timedelta(seconds=number)
    mark = Mark(last_change, data.FIRST_TASK + number, data.FIRST_TIME, datetime.now(UTC))
    return ChangesCursor.encode(mark)


def line(method: str, path: str, token: str, body: str = "", header: str = "") -> str:
    """A request as requests.lua reads it."""
    return f"{method}\t{path}\t{token}\t{header}\t{body}\n"
