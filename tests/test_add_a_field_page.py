"""docs/add-a-field.diff applies to this tree, and then the service has the field."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.conftest import ENVIRON, ROOT, SECRET, Server, User

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "add-a-field.md").read_text()
(MOVE_CLOCKS,) = re.findall(r"^ *```sql\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
DIFF = ROOT / "docs" / "add-a-field.diff"
# What the copy needs to be run and tested.
TREE = ("gunicorn.conf.py", "pyproject.toml", "sql", "tests", "todo_service", "wsgi.py")


def run(folder: Path, *command: str | Path, **environ: str) -> str:
    answer = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRON | environ,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the diff applied."""
    folder = tmp_path_factory.mktemp("changed")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=lambda *_: ["__pycache__"])
        else:
            shutil.copy(ROOT / name, folder)
    # Outside of a repository, git apply works as patch does.
    run(folder, "git", "apply", DIFF, GIT_CEILING_DIRECTORIES=str(folder.parent))
    return folder


@pytest.fixture
def upgraded(changed: Path, new_database: Callable[..., str]) -> str:
    """A database with a task of before the field, and then the schema of the copy."""
    url = new_database(schema=True)
    with psycopg.connect(url) as before:
        before.execute("INSERT INTO users (id) VALUES ('alice')")
        before.execute("INSERT INTO tasks (user_id, title) VALUES ('alice', 'before')")
    flask = Path(sys.executable).parent / "flask"
    run(changed, flask, "--app", "wsgi", "init-db", DATABASE_URL=url, JWT_SECRET=SECRET)
    return url


def test_an_upgraded_service_has_the_field(changed: Path, upgraded: str, tmp_path: Path) -> None:
    server = Server(tmp_path / "log", folder=changed, DATABASE_URL=upgraded, JWT_SECRET=SECRET)
    server.wait("/ready")
    with User(server.url, "alice") as alice:
        (old,) = alice.get(alice.tasks).json()
        assert (old["title"], old["due_on"]) == ("before", None)
        cursor = alice.get(f"{alice.tasks}/changes").json()["cursor"]

        new = alice.create("new", due_on="2026-12-31")
        old = alice.patch(alice.path(old), json={"due_on": "2027-01-01"}).json()
        refused = alice.patch(alice.path(old), json={"due_on": "tomorrow"})

        assert (new["due_on"], old["due_on"]) == ("2026-12-31", "2027-01-01")
        assert alice.get(alice.tasks).json() == [new, old]
        assert alice.get(alice.tasks, params={"status": "incomplete", "limit": 2}).json() == [
            new,
            old,
        ]
        changes = alice.get(f"{alice.tasks}/changes", params={"cursor": cursor}).json()
        assert changes["tasks"] == [new, old]
        assert refused.status_code == 400
        message = "Due date must be a day like 2026-12-31, or null"
        assert refused.json() == {"error": message}
        assert alice.patch(alice.path(old), json={"due_on": None}).json()["due_on"] is None

        # What a client knows that asks again after a default that is not null.
        tag = alice.get(alice.path(old)).headers["ETag"]
        lists = alice.get(alice.tasks).headers["ETag"]
        cursor = alice.get(f"{alice.tasks}/changes").json()["cursor"]
        with psycopg.connect(upgraded) as connection:
            connection.execute(MOVE_CLOCKS)
        for path, known in ((alice.path(old), tag), (alice.tasks, lists)):
            assert alice.get(path, headers={"If-None-Match": known}).status_code == 200
        changes = alice.get(f"{alice.tasks}/changes", params={"cursor": cursor}).json()
        assert {task["id"] for task in changes["tasks"]} == {old["id"], new["id"]}
    assert server.stop() == 0, server.log.read_text()


def test_the_tests_pass_in_the_copy(changed: Path) -> None:
    run(
        changed,
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("-k", "not scans_the_table"),
        *("tests/api/test_tasks.py", "tests/test_statements.py", "tests/test_schema.py"),
        *("tests/contract/test_document.py", "tests/api/test_bad_input.py", "tests/test_clock.py"),
        "tests/api/test_push.py",
    )
