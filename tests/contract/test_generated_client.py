"""A client that is generated from the document, used against the running service."""

from __future__ import annotations

import importlib
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from tests.conftest import User, sign
from tests.contract.conftest import DOCUMENT

pytestmark = pytest.mark.slow

# The generator formats with whatever ruff it finds; there is no need. It has no type for YAML.
CONFIG = """
post_hooks: []
content_type_overrides:
  application/yaml: application/octet-stream
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the generated package."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    subprocess.run(
        [
            Path(sys.executable).parent / "openapi-python-client",
            "generate",
            f"--path={DOCUMENT}",
            f"--config={config}",
            f"--output-path={tmp_path / 'generated_client'}",
            "--meta=none",
            "--fail-on-warning",
        ],
        check=True,
        capture_output=True,
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "generated_client"


def test_a_generated_client_creates_lists_completes_deletes_and_follows_a_task(
    package: str, server: str, alice: User
) -> None:
    models = importlib.import_module(f"{package}.models")
    create, listing, complete, update, delete, get, changes = (
        importlib.import_module(f"{package}.api.tasks.{operation}")
        for operation in (
            "create_task", "list_tasks", "complete_task", "update_task", "delete_task", "get_task",
            "list_changes",
        )
    )  # fmt: skip

    with importlib.import_module(package).AuthenticatedClient(server, sign(alice.id)) as client:
        task = create.sync(alice.id, client=client, body=models.NewTask("Buy milk"))
        assert (task.title, task.description, task.status) == ("Buy milk", None, "incomplete")
        assert task.created_at.utcoffset() == timedelta(0)
        assert listing.sync(alice.id, client=client, limit=10) == [task]

        completed = complete.sync_detailed(alice.id, task.id, client=client)
        assert completed.parsed.status == models.Status.COMPLETE
        assert listing.sync(alice.id, client=client, status=models.Status.INCOMPLETE) == []

        first = changes.sync(alice.id, client=client)
        assert (first.tasks, first.deleted, first.more) == ([completed.parsed], [], False)

        change = {
            "body": models.TaskChanges(description="Two litres"),
            "if_match": completed.headers["ETag"],
        }
        updated = update.sync_detailed(alice.id, task.id, client=client, **change)
        assert (updated.status_code, updated.parsed.description) == (200, "Two litres")
        again = update.sync_detailed(alice.id, task.id, client=client, **change)
        assert (again.status_code, again.parsed.error) == (412, "Task was modified")

        deleted = delete.sync_detailed(alice.id, task.id, client=client)
        assert deleted.status_code == 204
        assert get.sync(alice.id, task.id, client=client).error == "Task not found"

        later = changes.sync(alice.id, client=client, limit=10, cursor=first.cursor)
        assert (later.tasks, later.deleted, later.more) == ([], [task.id], False)


def test_a_generated_client_turns_pages_and_pushes_what_it_holds(
    package: str, server: str, alice: User
) -> None:
    models = importlib.import_module(f"{package}.models")
    listing, push, changes = (
        importlib.import_module(f"{package}.api.tasks.{operation}")
        for operation in ("list_tasks", "push_changes", "list_changes")
    )

    with importlib.import_module(package).AuthenticatedClient(server, sign(alice.id)) as client:
        new = [models.PushedTask(key=f"key-{title}", title=title) for title in ("a", "b", "c")]
        pushed = push.sync(alice.id, client=client, body=models.Push(tasks=new))
        assert [result.status for result in pushed.tasks] == [201, 201, 201]

        page = listing.sync_detailed(alice.id, client=client, limit=2)
        link = httpx.URL(page.headers["Link"].split(">")[0].removeprefix("<"))
        rest = listing.sync(alice.id, client=client, limit=2, cursor=link.params["cursor"])
        assert [task.title for task in page.parsed + rest] == ["c", "b", "a"]

        # The tasks as they were pulled, one of them edited.
        a, b, _ = (task.to_dict() for task in changes.sync(alice.id, client=client).tasks)
        edits = models.Push(
            tasks=[models.PushedTask.from_dict(a | {"title": "A"})],
            deleted=[models.PushedDeletion.from_dict(b)],
        )
        done = push.sync(alice.id, client=client, body=edits)
        assert (done.tasks[0].status, done.tasks[0].task.title) == (200, "A")
        assert done.deleted[0].status == 204
        again = push.sync(alice.id, client=client, body=edits)
        assert [again.tasks[0].status, again.deleted[0].status] == [412, 404]


def test_a_generated_client_completes_and_clears_many_tasks(
    package: str, server: str, alice: User
) -> None:
    models = importlib.import_module(f"{package}.models")
    create, update, delete = (
        importlib.import_module(f"{package}.api.tasks.{operation}")
        for operation in ("create_task", "update_tasks", "delete_tasks")
    )
    complete, incomplete = models.Status.COMPLETE, models.Status.INCOMPLETE

    with importlib.import_module(package).AuthenticatedClient(server, sign(alice.id)) as client:
        for body in (models.NewTask("Buy milk"), models.NewTask("Call", status=complete)):
            assert create.sync(alice.id, client=client, body=body).title == body.title

        change = models.StatusChange(complete)
        updated = update.sync(alice.id, client=client, body=change, status=incomplete)
        assert updated.updated == 1
        assert delete.sync(alice.id, client=client, status=complete).deleted == 2
