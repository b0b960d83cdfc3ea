"""What is measured: requests, whose answers are checked first, and the CPU that they cost."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import psycopg

from bench.competitors import TASKS_EACH, USERS, Server, seed, sign, task

# Percent of the requests.
WORKLOADS = {kind: {kind: 100} for kind in ("get one", "list 100", "create", "update")} | {
    "mixed": {"get one": 70, "list 100": 15, "create": 10, "update": 5}
}
# What nobody can know of the answer to a write.
_NEW = {"create": ("id", "created_at", "updated_at"), "update": ("updated_at",)}
_STORED = "SELECT title, description FROM tasks WHERE user_id = %s AND id = %s"
_SCRIPT = str(Path(__file__).parent / "requests.lua")
_WRK = ("wrk", "--threads", "1", "--connections", "16", "--timeout", "10s", "--script", _SCRIPT)


class Sample(NamedTuple):
    rate: float
    app: float  # microseconds of CPU per request
    database: float


def request(kind: str, number: int) -> tuple[str, str, str]:
    """Method, path and body of a request that concerns the task with that number."""
    tasks = f"/api/user-{number % USERS}/tasks"
    new = {name: task(number)[name] for name in ("title", "description")}
    return {
        "get one": ("GET", f"{tasks}/{number + 1}", ""),
        "list 100": ("GET", f"{tasks}?limit={TASKS_EACH}", ""),
        "create": ("POST", tasks, json.dumps(new)),
        "update": ("PUT", f"{tasks}/{number + 1}", json.dumps({"title": f"Done: {number}"})),
    }[kind]


def verify(server: Server) -> None:
    """Compare answers with what they should be, and writes with the database; try to intrude.

    Afterwards only the status of an answer is looked at, by wrk.
    """
    seed(server.database)
    with httpx.Client(base_url=server.url) as client, psycopg.connect(server.database) as database:

        def ask(method: str, path: str, body: str, token: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            return client.request(method, path, content=body, headers=headers)

        # The writes come last, because they change what the reads answer.
        for kind in WORKLOADS["mixed"]:
            for number in random.Random(kind).sample(range(USERS * TASKS_EACH), 25):
                method, path, body = request(kind, number)
                wanted = [task(number) | (json.loads(body) if body else {})]
                if kind == "list 100":
                    wanted = [task(number % USERS + USERS * nth) for nth in range(TASKS_EACH)][::-1]
                answer = ask(method, path, body, sign(f"user-{number % USERS}"))
                if right := answer.status_code == (201 if kind == "create" else 200):
                    found = answer.json() if kind == "list 100" else [answer.json()]
                    if new := _NEW.get(kind):
                        key = wanted[0]["user_id"], found[0]["id"]
                        stored = database.execute(_STORED, key).fetchone()
                        right = stored == (wanted[0]["title"], wanted[0]["description"])
                        wanted[0] |= {name: found[0][name] for name in new}
                    # Another version may know more fields.
                    pairs = zip(found, wanted, strict=False)
                    right &= len(found) == len(wanted) and all(
                        one | two == one for one, two in pairs
                    )
                if not right:
                    sys.exit(f"{server.name}, {kind}: {answer.status_code} {answer.text}")
        get, create, stranger = request("get one", 0), request("create", 1), sign("user-1")
        for refused, token, *statuses in (
            (get, "x", 401),
            (get, stranger, 403),
            (("GET", f"{create[1]}/1", ""), stranger, 404),
            (("POST", create[1], '{"description": "No title"}'), stranger, 400, 422),
            (("POST", create[1], '{"title": "%s"}' % ("x" * 256)), stranger, 400, 422),
        ):
            if (status := ask(*refused, token).status_code) not in statuses:
                sys.exit(f"{server.name}, {refused}: {status}, not {statuses}")


def write_requests(folder: Path) -> dict[str, Path]:
    """Write a file for each workload, the same ones in every run, and return their paths."""
    tokens = [sign(f"user-{number}") for number in range(USERS)]
    files: dict[str, Path] = {}
    for workload, shares in WORKLOADS.items():
        dice = random.Random(workload)
        numbers = dice.sample(range(USERS * TASKS_EACH), 20_000)
        kinds = dice.choices(list(shares), list(shares.values()), k=len(numbers))
        files[workload] = folder / f"{workload}.requests"
        with files[workload].open("w", newline="") as stream:
            for kind, number in zip(kinds, numbers, strict=True):
                method, path, body = request(kind, number)
                head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\n"
                head += f"Authorization: Bearer {tokens[number % USERS]}\r\n"
                if body:
                    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                stream.write(f"{head}\r\n{body}\0")
    return files


def cpu(pid: int) -> float:
    """Seconds of CPU of a process, of its children, and of those of them that have ended."""
    # By their CPU clocks (clock_getcpuclockid(3)), as /proc counts in hundredths of a second.
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ended = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
    clocks = (time.clock_gettime((~int(one) << 3) | 2) for one in (pid, *children))
    return sum(clocks) + sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")


def measure(server: Server, postmaster: int, workload: str, file: Path, seconds: int) -> Sample:
    """Send the requests of a file, again and again, for so many seconds."""
    app, database = cpu(server.pid), cpu(postmaster)
    command = [*_WRK, "--duration", f"{seconds}s", server.url, "--", str(file)]
    result = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    app, database = cpu(server.pid) - app, cpu(postmaster) - database
    count = result["requests"]
    if result["errors"] or not count:
        sys.exit(f"{server.name}, {workload}: {result}")
    if _NEW.keys() & WORKLOADS[workload].keys():
        seed(server.database)
    spent = app * 1e6 / count, database * 1e6 / count
    return Sample(count / result["seconds"], *spent)
