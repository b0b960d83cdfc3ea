"""docs/backup.md: its commands and statements, and what clients see of them."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import ROOT, SECRET, app_with_commands, sign
from todo_service import embedded, store
from todo_service.ops import restored
from todo_service.settings import Settings

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "backup.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def block(title: str, kind: str) -> str:
    """The one block of code of that kind in a section."""
    (found,) = re.findall(rf"^ *```{kind}\n(.*?)^ *```", SECTIONS[title], re.MULTILINE | re.DOTALL)
    return found


class User:
    """A client of the service on one of the databases."""

    def __init__(self, client: FlaskClient, name: str) -> None:
        self.client = client
        self.tasks = f"/api/{name}/tasks"
        self.token = {"Authorization": f"Bearer {sign(name)}"}

    def get(self, path: str = "", **headers: str) -> TestResponse:
        return self.client.get(self.tasks + path, headers=self.token | headers)

    def create(self, title: str, **headers: str) -> TestResponse:
        answer = self.client.post(self.tasks, json={"title": title}, headers=self.token | headers)
        assert answer.status_code == 201, answer.text
        return answer

    def changes(self, cursor: str) -> TestResponse:
        return self.get(f"/changes?cursor={cursor}")

    def cursor(self) -> str:
        """Of a copy that holds everything."""
        return self.get("/changes").get_json()["cursor"]


class Copies:
    """Databases, and the commands of the page."""

    def __init__(self, new_database: Callable[..., str], folder: Path) -> None:
        self.new_database = new_database
        self.folder = folder
        self.close: list[Callable[[], None]] = []

    def serve(self, url: str) -> FlaskClient:
        app = app_with_commands(Settings(database_url=url, jwt_secret=SECRET))
        self.close.append(app.extensions["database"].close)
        return app.test_client()

    def dump(self, url: str) -> None:
        self.run(block("Backing up", "sh"), DATABASE_URL=url)

    def restore(self) -> str:
        """The last dump, in a database of its own."""
        url = self.new_database(schema=False)
        self.run(block("Restoring", "sh"), RESTORED_URL=url)
        return url

    def after_restore(self, url: str) -> str:
        app = app_with_commands(Settings(database_url=url, jwt_secret=SECRET))
        result = app.test_cli_runner().invoke(args=["after-restore"])
        assert result.exit_code == 0, result.output
        return result.output

    def run(self, command: str, **environ: str) -> None:
        answer = subprocess.run(
            ["/bin/sh", "-euc", command],
            cwd=self.folder,
            env={"PATH": f"{embedded.binaries()}:{os.environ['PATH']}"} | environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (answer.returncode, answer.stderr) == (0, "")


@pytest.fixture
def copies(new_database: Callable[..., str], tmp_path: Path) -> Iterator[Copies]:
    copies = Copies(new_database, tmp_path)
    yield copies
    for close in reversed(copies.close):
        close()


@pytest.fixture
def source(new_database: Callable[..., str]) -> str:
    return new_database(schema=True)


def expired(answer: TestResponse) -> bool:
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.get_json()) == (410, {"error": "Cursor has expired"})
    return True


def test_copies_start_again_that_nothing_else_could_tell(
    copies: Copies, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restored, "_BATCH", 2)
    before = copies.serve(source)
    ahead, overtaken, idle = (User(before, name) for name in ("ahead", "overtaken", "idle"))
    for user in (ahead, overtaken, idle):
        user.create("kept")
    copies.dump(source)
    for user in (ahead, overtaken):
        user.create("lost")
    cursors = {user.tasks: user.cursor() for user in (ahead, overtaken, idle)}

    url = copies.restore()
    after = copies.serve(url)
    ahead, overtaken, idle = (User(after, name) for name in ("ahead", "overtaken", "idle"))
    overtaken.create("new")

    def refused() -> list[bool]:
        return [expired(user.changes(cursors[user.tasks])) for user in (ahead, overtaken, idle)]

    assert refused() == [True, False, False]
    copies.after_restore(url)
    assert refused() == [True, True, True]
    # Started again, a copy is the list and goes on from there.
    page = overtaken.get("/changes").get_json()
    assert copies.after_restore(url).endswith("The copies of 3 users start again.\n")
    assert expired(overtaken.changes(page["cursor"]))
    page = overtaken.get("/changes").get_json()
    assert page["tasks"][::-1] == overtaken.get().get_json()
    assert [task["title"] for task in page["tasks"]] == ["kept", "new"]
    assert not expired(overtaken.changes(page["cursor"]))


def test_the_same_dump_can_be_restored_twice(copies: Copies, source: str) -> None:
    User(copies.serve(source), "alice").create("kept")
    copies.dump(source)
    first = copies.restore()
    copies.after_restore(first)
    alice = User(copies.serve(first), "alice")
    alice.create("lost")
    cursor = alice.cursor()

    second = copies.restore()
    copies.after_restore(second)
    alice = User(copies.serve(second), "alice")
    alice.create("new")

    assert expired(alice.changes(cursor))


def test_no_list_is_taken_for_one_that_was_lost(copies: Copies, source: str) -> None:
    before = User(copies.serve(source), "alice")
    before.create("kept")
    with psycopg.connect(source) as connection:
        # Ahead of the server's clock: each write moves it by a microsecond.
        connection.execute("UPDATE users SET changed_at = '2100-01-01'")
    copies.dump(source)
    tags = []
    for _ in range(3):
        before.create("lost")
        tags.append(before.get().headers["ETag"])

    url = copies.restore()
    copies.after_restore(url)
    after = User(copies.serve(url), "alice")
    for _ in range(3):
        answer = after.get(**{"If-None-Match": ", ".join(tags)})
        assert answer.status_code == 200
        after.create("new")
    assert after.get(**{"If-None-Match": after.get().headers["ETag"]}).status_code == 304


def test_what_was_created_since_is_gone_and_can_be_made_again_under_another_id(
    copies: Copies, source: str
) -> None:
    before = User(copies.serve(source), "alice")
    before.create("kept")
    copies.dump(source)
    key = {"Idempotency-Key": "k"}
    lost = before.create("lost", **key).get_json()["id"]

    url = copies.restore()
    copies.after_restore(url)
    after = User(copies.serve(url), "alice")
    assert after.get(f"/{lost}").status_code == 404
    again = after.create("lost", **key)

    assert "Idempotency-Replayed" not in again.headers
    assert again.get_json()["id"] == lost - 1 + 1_000_000 + 1
    assert after.get(f"/{lost}").status_code == 404


def test_no_id_of_a_task_that_is_known_in_any_way_is_given_again(
    copies: Copies, source: str
) -> None:
    alice, bob = (User(copies.serve(source), name) for name in ("alice", "bob"))
    alice.create("kept")

    def next_id() -> int:
        task = alice.create("next").get_json()
        with psycopg.connect(source) as connection:
            connection.execute("DELETE FROM tasks WHERE id = %s", (task["id"],))
        return task["id"]

    def restart_at(number: int) -> None:
        with psycopg.connect(source) as connection:
            connection.execute("SELECT setval('tasks_id_seq', %s)", (number,))

    # In the table of deleted tasks alone: a logical replication leaves the sequence behind.
    with psycopg.connect(source) as connection:
        connection.execute("INSERT INTO deleted_tasks VALUES ('alice', 5000, now())")
    restart_at(3)
    copies.after_restore(source)
    assert next_id() == 1_005_001
    # In the sequence alone: the user of the task was erased.
    restart_at(3_000_000)
    copies.after_restore(source)
    assert next_id() == 4_000_001
    assert bob.create("first").get_json()["id"] == 4_000_002


def test_it_may_run_while_the_service_writes(copies: Copies, source: str) -> None:
    client = copies.serve(source)
    users = [User(client, f"user-{number}") for number in range(4)]
    for user in users:
        user.create("kept")
    cursors = [user.cursor() for user in users]
    stop = threading.Event()

    def write(user: User) -> int:
        count = 0
        while not stop.is_set():
            user.create("x")
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        written = [pool.submit(write, user) for user in users]
        for _ in range(3):
            copies.after_restore(source)
        stop.set()
        counts = [future.result() for future in written]

    ids = [task["id"] for user in users for task in user.get().get_json()]
    assert len(set(ids)) == len(ids) == sum(counts) + 4
    for user, cursor in zip(users, cursors, strict=True):
        assert expired(user.changes(cursor))
        assert user.get("/changes?limit=1000").get_json()["tasks"] == user.get().get_json()[::-1]


def test_the_service_has_its_rights_again(copies: Copies, source: str) -> None:
    role = f"web_{uuid4().hex}"
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}")
    copies.dump(source)
    url = copies.restore()
    with psycopg.connect(url) as connection:
        connection.execute(block("Restoring", "sql").replace(" web;", f" {role};"))
        connection.execute(f"SET LOCAL ROLE {role}")
        assert connection.execute(store.MISSING_RIGHTS).fetchall() == []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")
