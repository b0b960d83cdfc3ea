"""Every statement file: scoped to its owner, and served by an index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from todo_service.database import SQL

STATEMENTS = sorted((SQL / "queries").glob("*.sql"))
TASK_COLUMNS = "id, user_id, title, description, status, created_at, updated_at"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# One set of parameters for each statement that reads or changes the tasks of one user.
PARAMETERS = {
    "create_task": ("{user}", "{user}", "x", None, "complete", "{user}", b"digest"),
    "delete_task": ("{user}", 150_000, None, None, None),
    # Somebody without tasks: what there is to delete is not what the look-up costs.
    "delete_user": ("nobody", "nobody"),
    "get_task": ("{user}", 150_000),
    "list_tasks": ("{user}", NOW, 0, 501, 2**20),
    "list_tasks_by_status": ("{user}", "complete", NOW, 0, 501, 2**20),
    "update_task": ("x", True, None, "complete", "{user}", 150_000, [NOW], [NOW], [NOW]),
}


def code(path: Path) -> str:
    """A statement without its comments."""
    return re.sub(r"--[^\n]*", "", path.read_text())


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
def test_a_statement_is_scoped_to_its_owner(path: Path) -> None:
    text = code(path)

    inserts = re.findall(r"INSERT INTO (\w+) \(\s*(\w+)", text)
    assert all(column == {"users": "id", "tasks": "user_id"}[table] for table, column in inserts)
    # Every other mention of the table is followed by its own predicate, before any other condition.
    others = re.findall(r"(?:FROM|UPDATE|JOIN) tasks\b.*?WHERE\s+(\S+ = \S+)", text, re.DOTALL)
    mentions = re.findall(r"(?:FROM|(?<!DO )UPDATE|JOIN) tasks\b", text)
    assert len(others) == len(mentions)
    assert set(others) <= {"user_id = %s"}
    assert inserts or others


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
def test_a_statement_keeps_to_the_rules_of_the_house(path: Path) -> None:
    text = path.read_text()

    assert text.startswith("-- ")
    assert "Parameters: " in text
    assert text.endswith(";\n") and text.count(";\n") == 1
    assert "*" not in code(path)
    assert "%" not in "".join(re.findall(r"--[^\n]*", text))
    assert "clock_timestamp" not in text and "OFFSET" not in text
    if "ORDER BY" in text:
        assert re.search(r"ORDER BY [^;]*\bid DESC", text)


def test_statements_that_return_a_task_return_the_same_columns_in_the_same_order() -> None:
    lists = [
        " ".join(found.split())
        for path in STATEMENTS
        for found in re.findall(r"(?:SELECT|RETURNING)\s+(id, user_id.*?)(?:\nFROM|;)", code(path))
    ]

    assert len(lists) >= 4
    assert {found.removesuffix(", idempotency_replays") for found in lists} == {TASK_COLUMNS}


@pytest.fixture(scope="module")
def crowded(database_url: str) -> Iterator[tuple[psycopg.Connection, str]]:
    """200,000 tasks of one user and 20,000 of others, gone again afterwards.

    And thousands of users: a handful fits a page, and reading that is cheaper than any index.
    """
    user = f"crowd-{uuid4()}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO users (id) SELECT %s || n FROM generate_series(0, 5000) n", (user,)
        )
        connection.execute(
            "INSERT INTO tasks (user_id, title, status, created_at)"
            " SELECT %s || CASE WHEN n <= 200000 THEN 0 ELSE 1 + n %% 20 END, 'x',"
            " CASE n %% 2 WHEN 0 THEN 'complete' ELSE 'incomplete' END,"
            " now() - n * interval '1 second' FROM generate_series(1, 220000) n",
            (user,),
        )
        connection.execute("ANALYZE users, tasks")
        yield connection, user + "0"
        connection.execute("DELETE FROM users WHERE starts_with(id, %s)", (user,))


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
def test_no_statement_scans_the_table(
    crowded: tuple[psycopg.Connection, str], path: Path, plan: str
) -> None:
    connection, user = crowded
    parameters = tuple(
        user if parameter == "{user}" else parameter for parameter in PARAMETERS[path.stem]
    )
    explain = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + path.read_bytes()
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT set_config('plan_cache_mode', %s, true)", (plan,))
        rows = connection.execute(explain, parameters, prepare=True).fetchone()
        nodes = list(walk(rows[0][0]["Plan"]))

    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"], nodes
    assert not [node for node in nodes if node["Node Type"] == "Sort"], nodes
    # Whatever it is given to look for, it looks at no more than it returns.
    assert sum(node.get("Rows Removed by Filter", 0) for node in nodes) <= 1
    assert nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"] < 1200


def walk(plan: dict) -> Iterator[dict]:
    yield plan
    for child in plan.get("Plans", []):
        yield from walk(child)
