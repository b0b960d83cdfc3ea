"""What is measured: requests, and shares of them in a workload."""

from __future__ import annotations

import json
import random
from pathlib import Path

from bench import data

# Percent of the requests.
WORKLOADS = {
    "get one": {"get": 100},
    "list 100": {"list": 100},
    "create": {"create": 100},
    "update": {"update": 100},
    "complete": {"complete": 100},
    "mixed": {"get": 70, "list": 15, "create": 10, "update": 5},
}

# More than are sent in a measurement, so that none meets what an earlier one of it has changed.
_LENGTH = 20_000


def writes(workload: str) -> bool:
    return not WORKLOADS[workload].keys() <= {"get", "list"}


def request(kind: str, number: int) -> tuple[str, str, str]:
    """Method, path and body of a request that concerns the task with that number."""
    tasks = f"/api/{data.user_id(number % data.USERS)}/tasks"
    task = f"{tasks}/{data.FIRST_TASK + number}"
    match kind:
        case "get":
            return "GET", task, ""
        case "list":
            return "GET", f"{tasks}?limit={data.TASKS_EACH}", ""
        case "create":
            body = {"title": data.title(number), "description": data.DESCRIPTION}
            return "POST", tasks, json.dumps(body)
        case "update":
            return "PUT", task, json.dumps({"title": data.title(number)[::-1]})
        case "complete":
            return "PATCH", f"{task}/complete", ""
    raise ValueError(kind)


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
                stream.write(line(method, path, tokens[number % data.USERS], body))
    return files


def line(method: str, path: str, token: str, body: str = "") -> str:
    """A request as requests.lua reads it."""
    return f"{method}\t{path}\t{token}\t{body}\n"
