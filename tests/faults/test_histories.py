"""Six writers and two copies of one user at once, in quiet and while things break.

In the end the copies are the list. On the way, whenever a copy has read all there is, it holds
whatever was acknowledged before it asked. And what the writers were answered is a history that a
register a task allows.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime

import httpx
import psutil
import pytest

from tests.conftest import Server, User
from tests.faults.conftest import Cluster
from tests.faults.history import GONE, History, Task, Write, version_of

pytestmark = pytest.mark.slow

Measure = Callable[..., None]
Serve = Callable[..., Server]

# So many tasks there are; of two writes, one is to one of the few oldest.
FEW, MANY, OLDEST = 15, 30, 4


def ask(user: User, method: str, path: str, **options: object) -> httpx.Response | None:
    """The answer, if there is one that says what has happened."""
    try:
        answer = user.request(method, path, **options)
    except httpx.TransportError:
        answer = None
    if answer is None or answer.status_code == 503:
        time.sleep(0.02)
        return None
    assert answer.status_code in (200, 201, 204, 304, 404, 412), answer.text
    return answer


# The tag is missing where it did not come with the answer.
Known = tuple[Task, str | None]


class Board:
    """What the writers know together: tasks, with their tags, as somebody was last answered."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tasks: dict[int, Known] = {}
        # The newest version of each task that was acknowledged, or GONE.
        self.acknowledged: dict[int, datetime] = {}

    def note(self, task_id: int, version: datetime, known: Known | None) -> None:
        with self.lock:
            if task_id in self.acknowledged and version <= self.acknowledged[task_id]:
                return
            self.acknowledged[task_id] = version
            if known is None:
                self.tasks.pop(task_id, None)
            else:
                self.tasks[task_id] = known

    def note_task(self, task: Task, tag: str | None) -> None:
        self.note(task["id"], version_of(task), (task, tag))

    def pick(self, dice: random.Random) -> tuple[int, Known | None]:
        """How many tasks there are, and one of them."""
        with self.lock:
            ids = sorted(self.tasks)
            if not ids:
                return 0, None
            chosen = dice.choice(ids[:OLDEST] if dice.random() < 0.5 else ids)
            return len(ids), self.tasks[chosen]

    def snapshot(self) -> dict[int, datetime]:
        with self.lock:
            return dict(self.acknowledged)


class Writer:
    """Sends one write after another, of every kind."""

    def __init__(self, number: int, user: User, board: Board, history: History) -> None:
        self.name = f"writer-{number}"
        self.user = user
        self.board = board
        self.history = history
        self.dice = random.Random(number)
        self.sent = self.pushes = self.repeated = 0
        # What was created with a key, and the ids.
        self.keyed: list[tuple[Task, int]] = []

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            count, known = self.board.pick(self.dice)
            chance = self.dice.random()
            if known is None or count < FEW or (chance < 0.2 and count < MANY):
                self.create()
            elif chance > 0.98:
                self.change_all()
            elif chance > 0.7:
                self.push()
            elif chance < 0.4 or count >= MANY:
                self.change("delete", *known, "DELETE")
            elif chance < 0.6:
                status = self.dice.choice(["complete", "incomplete"])
                self.change("update", *known, "PATCH", {"status": status}, suffix=f"/{status}")
            else:
                method = self.dice.choice(["PUT", "PATCH"])
                self.change("update", *known, method, self.some_fields())

    def some_fields(self) -> Task:
        text = self.new_text()
        fields = {"title": text, "description": text, "status": "incomplete"}
        count = self.dice.randint(1, len(fields))
        return {name: fields[name] for name in self.dice.sample(list(fields), count)}

    def new_text(self) -> str:
        self.sent += 1
        return f"{self.name}-{self.sent}"

    def create(self) -> None:
        fields = {"title": self.new_text()}
        headers = {"Idempotency-Key": fields["title"]} if self.dice.random() < 0.5 else {}
        write = Write("create", time.monotonic(), fields)
        self.history.writes.append(write)
        for _ in range(1000 if headers else 1):  # with a key, until there is an answer
            answer = ask(self.user, "POST", self.user.tasks, json=fields, headers=headers)
            if answer is not None:
                write.outcome, write.ended = "done", time.monotonic()
                write.result, write.task_id = answer.json(), answer.json()["id"]
                self.board.note_task(write.result, answer.headers["ETag"])
                if headers:
                    self.keyed.append((fields, write.task_id))
                return

    def change_all(self) -> None:
        kind, method, body = self.dice.choice(
            [("update all", "PATCH", {"status": "incomplete"}), ("delete all", "DELETE", None)]
        )
        write = Write(kind, time.monotonic())
        self.history.writes.append(write)
        answer = ask(self.user, method, f"{self.user.tasks}?status=complete", json=body)
        if answer is not None:
            write.outcome, write.ended = "done", time.monotonic()

    def push(self) -> None:
        """Creates, changes and deletions in one push, sent again as a whole until it is answered.

        One of the creates was answered before: its task is not made again, whatever became of it.
        """
        started = time.monotonic()
        sent: dict[str | int, tuple[Write, Task]] = {}  # by key or id: each once in a push
        for _ in range(self.dice.randint(0, 2)):
            fields = {"title": self.new_text()}
            key = fields["title"]
            sent[key] = Write("create", started, fields), fields | {"key": key}
        for fields, task_id in self.dice.sample(self.keyed, min(1, len(self.keyed))):
            key = fields["title"]
            sent[key] = Write("repeat", started, fields, task_id), fields | {"key": key}
        for _ in range(self.dice.randint(1, 4)):
            _, known = self.board.pick(self.dice)
            if known is None:
                continue
            task, kind = known[0], self.dice.choice(["update", "update", "delete"])
            fields = {"title": self.new_text()} if kind == "update" else {}
            entry = fields | {"id": task["id"], "updated_at": task["updated_at"]}
            write = Write(kind, started, fields, task["id"], task)
            if kind == "delete" and self.dice.random() < 0.4:
                del entry["updated_at"]
                write.base = None
            sent[task["id"]] = write, entry
        changes = [change for change in sent.values() if change[0].kind != "delete"]
        deletions = [change for change in sent.values() if change[0].kind == "delete"]
        self.history.writes += [write for write, _ in changes + deletions]
        body = {"tasks": [e for _, e in changes], "deleted": [e for _, e in deletions]}
        self.pushes += 1
        for attempt in range(1000 if sent else 0):
            answer = ask(self.user, "POST", f"{self.user.tasks}/changes", json=body)
            if answer is not None:
                self.repeated += attempt > 0
                results = answer.json()["tasks"] + answer.json()["deleted"]
                ended = time.monotonic()
                for (write, _), result in zip(changes + deletions, results, strict=True):
                    write.ended = ended
                    self.note_result(write, result, first=attempt == 0)
                return

    def note_result(self, write: Write, result: Task, *, first: bool) -> None:
        """What an entry of a push was answered, at the first attempt or at a later one.

        At a later one, what was done by an earlier one and then changed or deleted by others looks
        like a refusal, and what they deleted like the writer's own deletion: that stays unknown.
        """
        match write.kind, result["status"]:
            case "repeat", 201:
                assert result["replayed"] and result["task"]["id"] == write.task_id, result
                write.outcome = "there"
            case "repeat", 410:
                write.outcome = "absent"
            case "create", 201:
                write.outcome, write.result = "done", result["task"]
                write.task_id = write.result["id"]
                self.keyed.append((write.fields, write.task_id))
            case "update", 200:
                write.outcome, write.result = "done", result["task"]
            case "update", 412 if result["task"]["title"] == write.fields["title"]:
                assert not first, result
                write.outcome = "done"  # and perhaps another change after it
            case "update" | "delete", 412:
                write.outcome = "refused" if first or write.kind == "delete" else "unknown"
            case "update" | "delete", 404:
                write.outcome = "absent" if first else "unknown"
            case "delete", 204:
                write.outcome = "done"
            case _:
                raise AssertionError(f"{write} was answered {result}")
        task = result.get("task")
        if task is not None:
            self.board.note_task(task, f'"{task["updated_at"]}"')
        else:
            self.board.note(write.task_id, GONE, None)

    def change(
        self,
        kind: str,
        task: Task,
        tag: str | None,
        method: str,
        fields: Task | None = None,
        suffix: str = "",
    ) -> None:
        conditional = tag is not None and self.dice.random() < 0.6
        headers = {"If-Match": tag} if conditional else {}
        base = task if conditional else None
        write = Write(kind, time.monotonic(), fields or {}, task["id"], base)
        self.history.writes.append(write)
        path, body = self.user.path(task), None if suffix else fields
        answer = ask(self.user, method, path + suffix, json=body, headers=headers)
        if answer is None:
            return
        write.ended = time.monotonic()
        if answer.status_code == 412:
            write.outcome = "refused"
            answer = ask(self.user, "GET", path)  # somebody was faster: have a look
            if answer is not None and answer.status_code == 200:
                self.board.note_task(answer.json(), answer.headers["ETag"])
        elif answer.status_code == 404:
            write.outcome = "absent"
            self.board.note(task["id"], GONE, None)
        elif kind == "delete":
            write.outcome = "done"
            self.board.note(task["id"], GONE, None)
        else:
            write.outcome = "done"
            write.result = answer.json()
            self.board.note_task(write.result, answer.headers["ETag"])


def place_of(task: Task) -> tuple[datetime, int]:
    return version_of(task), task["id"]


class Copy:
    """A client that keeps a copy by reading `changes`, and watches what it is told."""

    def __init__(self, number: int, user: User, board: Board) -> None:
        self.user = user
        self.board = board
        self.dice = random.Random(number)
        self.tasks: dict[int, Task] = {}
        self.deleted: set[int] = set()
        self.seen: list[Task] = []
        self.cursor: str | None = None
        self.pages = self.completed = 0
        self.faults: list[str] = []

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.read_page()

    def read_page(self) -> bool:
        """Returns whether it was the last one."""
        acknowledged = self.board.snapshot()
        query = {"limit": self.dice.choice([1, 2, 3, 10, 1000])}
        query |= {"cursor": self.cursor} if self.cursor else {}
        answer = ask(self.user, "GET", f"{self.user.tasks}/changes", params=query)
        if answer is None:
            return False
        self.pages += 1
        page = answer.json()
        assert page["cursor"] != self.cursor or not page["more"]
        for task in page["tasks"]:
            if self.seen and place_of(task) <= place_of(self.seen[-1]):
                self.faults.append(f"{task} came after {self.seen[-1]}")
            if task["id"] in self.deleted:
                self.faults.append(f"{task} came back from the dead")
            self.seen.append(task)
            self.tasks[task["id"]] = task
        for task_id in page["deleted"]:
            self.deleted.add(task_id)
            self.tasks.pop(task_id, None)
        self.cursor = page["cursor"]
        if page["more"]:
            return False
        self.completed += 1
        for task_id, version in acknowledged.items():
            if task_id not in self.deleted and (
                task_id not in self.tasks or version_of(self.tasks[task_id]) < version
            ):
                self.faults.append(
                    f"{task_id} is {self.tasks.get(task_id)}, not the version of {version} or later"
                )
        return True


def nothing(_: Cluster, __: Server) -> None:
    time.sleep(1.5)


def restart(cluster: Cluster, _: Server) -> None:
    cluster.stop("fast")
    cluster.start()


def crash(cluster: Cluster, _: Server) -> None:
    cluster.stop("immediate")
    cluster.start()


def kill_a_worker(_: Cluster, server: Server) -> None:
    psutil.Process(server.process.pid).children()[0].send_signal(signal.SIGKILL)


@pytest.fixture
def new_client() -> Iterator[Callable[[Server], User]]:
    """Make clients of one user, each on a connection of its own."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(User(server.url, "somebody"))


@pytest.mark.parametrize("fault", [nothing, restart, crash, kill_a_worker])
def test_copies_are_the_list_and_answers_are_a_history_of_registers(
    cluster: Cluster,
    serve: Serve,
    new_client: Callable[[Server], User],
    measured: Measure,
    fault: Callable[[Cluster, Server], None],
) -> None:
    server = serve()
    server.wait("/ready")
    board, history = Board(), History()
    writers = [Writer(number, new_client(server), board, history) for number in range(6)]
    copies = [Copy(number, new_client(server), board) for number in range(2)]
    stop = threading.Event()

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(one.run, stop) for one in [*writers, *copies]]
        for _ in range(3):
            time.sleep(1)
            fault(cluster, server)
        time.sleep(1.5)
        stop.set()
    for one in running:
        one.result()  # raises what the thread has raised

    server.wait("/ready")
    copies.append(Copy(2, new_client(server), board))  # from nothing, in the end
    final = finish(copies, new_client(server))
    faults = history.faults(final, [task for copy in copies for task in copy.seen])
    faults += [fault for copy in copies for fault in copy.faults]
    faults += [
        f"{len(copy.tasks)} tasks are not the list" for copy in copies if copy.tasks != final
    ]
    measured(
        **history.counts(),
        pushes=sum(writer.pushes for writer in writers),
        repeated=sum(writer.repeated for writer in writers),
        pages=sum(copy.pages for copy in copies),
        up_to_date=sum(copy.completed for copy in copies),
        faults=len(faults),
    )
    assert faults[:5] == []


def finish(copies: list[Copy], user: User) -> dict[int, Task]:
    """Let the copies read to the end while nothing changes, and return the list."""
    answer = None
    while True:
        # What was asked by a request that got no answer may still be under way.
        headers = {"If-None-Match": answer.headers["ETag"]} if answer else {}
        again = ask(user, "GET", user.tasks, headers=headers)
        if again is None:
            continue
        if again.status_code == 304:
            return {task["id"]: task for task in answer.json()}
        answer = again
        for copy in copies:
            while not copy.read_page():
                pass
