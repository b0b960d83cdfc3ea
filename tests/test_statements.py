"""Every statement file: scoped to its owner, and served by an index."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from todo_service import create_app, store
from todo_service.database import statement
from todo_service.ops.migrate import SQL
from todo_service.schemas import MAX_LIMIT
from todo_service.settings import Settings

STATEMENTS = sorted((SQL / "queries").glob("*.sql"))
TASK_COLUMNS = ["id", "user_id", "title", "description", "status", "created_at", "updated_at"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# The column that says whose rows these are.
OWNER = {"users": "id"} | dict.fromkeys(("tasks", "deleted_tasks", "idempotency_keys"), "user_id")

# One row more than the largest page below has.
PAGE = 501

# A time in the middle of the tasks below, and one after all of them.
HALF_WAY, LATER = datetime.now(UTC) - timedelta(seconds=100_000), "2100-01-01"

# One set of parameters for each statement that reads or changes the tasks of one user.
PARAMETERS = {
    "create_task": ("{user}", "{user}", "x", None, "complete"),
    "get_tasks": ("{user}", [150_000 + n for n in range(100)]),
    "push_changes": (
        *("{user}", True, "{user}"),
        json.dumps(
            [
                {"number": n, "key": f"k{n}", "digest": "00", "title": "x", "status": "complete"}
                for n in range(20)
            ]
        ),
        "{user}",
        *(json.dumps([{"id": 150_000 + n, "title": "x"} for n in range(40)]), "{user}"),
        [150_000 + n for n in range(40)],
        *(json.dumps([{"id": 160_000 + n} for n in range(40)]), "{user}"),
        [160_000 + n for n in range(40)],
        *("{user}", "{user}", "{user}", "{user}", "{user}", "{user}", ["k1", "k2"]),
    ),
    # Somebody without tasks, here too.
    "delete_tasks": (
        *("nobody", "nobody", "complete", "nobody", "complete"),
        *("nobody", "nobody", "nobody"),
    ),
    "update_tasks": ("nobody", "nobody", "incomplete", "complete", "nobody", "incomplete"),
    "delete_task": ("{user}", "{user}", 150_000, None, None, None, "{user}", "{user}", "{user}"),
    # Somebody without tasks: what there is to delete is not what the look-up costs.
    "delete_user": ("nobody", "nobody"),
    "get_clock": ("{user}",),
    "get_task": ("{user}", 150_000),
    "list_changes": (
        *("{user}", HALF_WAY, 0, "{user}", HALF_WAY, 0, PAGE),
        *("{user}", "{user}", LATER, PAGE - 1, 1 << 20, "{user}"),
    ),
    "list_tasks": ("{user}", "{user}", NOW, 0, PAGE, 2**20),
    "list_tasks_by_status": ("{user}", "{user}", "complete", NOW, 0, PAGE, 2**20),
    "update_task": ("{user}", "x", True, None, "complete", "{user}", 150_000, [NOW], [NOW], [NOW]),
}


def code(path: Path) -> str:
    """A statement without its comments."""
    return re.sub(r"--[^\n]*", "", path.read_text())


def unscoped(statement: str) -> list[str]:
    """The parts of a statement that reach rows of other users than the one it is given."""
    faults = [
        f"INSERT INTO {table} ({column}"
        for table, column in re.findall(r"INSERT INTO (\w+)(?: AS \w+)? \(\s*(\w+)", statement)
        if column != OWNER[table]
    ]
    # What stands in parentheses is taken out, the innermost first: each query is read by itself.
    queries = []
    while inner := re.search(r"\(([^()]*)\)", statement):
        queries.append(inner[1])
        statement = f"{statement[: inner.start()]}...{statement[inner.end() :]}"
    for query in [*queries, *statement.split("UNION")]:
        mentions = re.findall(r"(?:FROM|(?<!DO )UPDATE|JOIN|USING|,)\s+(\w+)\b(?!\.)", query)
        tables = [table for table in mentions if table in OWNER]
        scopes = [rf"(?:{table}\.)?{OWNER[table]} = %s(?=[\s;]|$)" for table in tables]
        first = re.search(rf"WHERE\s+(?:{'|'.join(scopes)})", query)
        each = all(re.search(rf"(?:WHERE|AND|ON)\s+{scope}", query) for scope in scopes)
        if tables and (first is None or not each or " OR " in query):
            faults.append(query)
    return faults


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
def test_a_statement_is_scoped_to_its_owner(path: Path) -> None:
    text = code(path)
    assert unscoped(text) == []

    # If any one scope is taken out, the check above fails.
    scopes = list(re.finditer(r"\buser_id = %s|(?<=WHERE )(?:users\.)?id = %s", text))
    assert scopes or "INSERT INTO" in text
    for scope in scopes:
        assert unscoped(text[: scope.start()] + "true" + text[scope.end() :])


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
def test_a_statement_is_written_by_the_same_rules_as_all_others(path: Path) -> None:
    text = path.read_text()

    assert text.startswith("-- ")
    assert "Parameters: " in text
    assert text.endswith(";\n") and text.count(";\n") == 1
    assert "*" not in code(path)
    assert "%" not in "".join(re.findall(r"--[^\n]*", text))
    assert "clock_timestamp" not in text
    # No page is found by counting from the start; what is changed at once is read anyway.
    assert "OFFSET" not in text or path.stem in ("delete_tasks", "update_tasks")
    # Where the order of two rows is open, pages could show one twice, or not at all.
    for columns in re.findall(r"ORDER BY ((?:[\w.]+(?: DESC)?(?:, )?)+)", text):
        assert re.search(r"\b(id|key|number)(?: DESC)?$", columns), columns


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
def test_what_is_sent_is_the_name_and_the_sql_without_the_prose(path: Path) -> None:
    sent = statement(path.stem)

    assert sent.startswith(f"--{path.stem}\n")
    assert re.findall(r"--[^\n]*", sent) == [f"--{path.stem}"] * 2
    assert re.sub(r"--[^\n]*", "", sent).split() == code(path).split()
    assert sent.count("%s") == len(PARAMETERS[path.stem])


def test_whoever_looks_at_the_activity_sees_the_name_and_the_sql(
    settings: Settings, connection: psycopg.Connection
) -> None:
    app = create_app(replace(settings, db_pool_size=1))
    with app.app_context():
        store.list_changes("nobody", limit=1, after=None)
    with app.extensions["database"].pool.connection() as own:
        pid = own.info.backend_pid

    (shown,) = connection.execute(
        "SELECT query FROM pg_stat_activity WHERE pid = %s", (pid,)
    ).fetchone()
    assert shown.startswith("--list_changes\nWITH --list_changes\npage AS (\n    SELECT\n")
    assert "FROM deleted_tasks\n" in shown
    app.extensions["database"].close()


def test_statements_that_return_a_task_return_the_same_columns_in_the_same_order() -> None:
    lists = []
    for path in STATEMENTS:
        read = re.sub(r"INSERT INTO \w+ \([^)]*\)", "", code(path))
        for columns in re.findall(r"(?:[\w.]+(?: AS \w+)?,\s+)+[\w.]+(?: AS \w+)?", read):
            # What a column is called outside: "b" of "b", "a.b" and "a AS b".
            names = [re.split(r"\W", column)[-1] for column in re.split(r",\s+", columns)]
            if {"title", "created_at"} <= {*names}:
                lists.append((path.stem, names[names.index("id") :][: len(TASK_COLUMNS)]))

    assert len(lists) >= 10
    assert [found for found in lists if found[1] != TASK_COLUMNS] == []


def test_a_page_of_changes_may_be_as_long_as_the_longest_that_a_client_asks_for() -> None:
    limits = re.findall(r"LIMIT (\d+)", code(SQL / "queries" / "list_changes.sql"))

    # One more: it shows that there are more.
    assert limits == [str(MAX_LIMIT + 1)] * 2


@pytest.fixture(scope="module")
def crowded(database_url: str) -> Iterator[tuple[psycopg.Connection, str]]:
    """200,000 tasks of one user and 20,000 of others, gone again afterwards.

    Also as many deleted tasks, a thousand of them long ago. And thousands of users and keys: a few
    of them fit into one page of the table, and to read that costs less than any index.
    """
    user = f"crowd-{uuid4()}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO users (id) SELECT %s || n FROM generate_series(0, 5000) n", (user,)
        )
        connection.execute(
            "INSERT INTO tasks (user_id, title, status, created_at, updated_at)"
            " SELECT %s || CASE WHEN n <= 200000 THEN 0 ELSE 1 + n %% 20 END, 'x',"
            " CASE n %% 2 WHEN 0 THEN 'complete' ELSE 'incomplete' END,"
            " now() - n * interval '1 second', now() - n * interval '1 second'"
            " FROM generate_series(1, 220000) n",
            (user,),
        )
        connection.execute(
            "INSERT INTO deleted_tasks (user_id, id, deleted_at)"
            " SELECT %s || CASE WHEN n <= 200000 THEN 0 ELSE 1 + n %% 20 END, n,"
            " now() - CASE WHEN n <= 1000 THEN '91 days' ELSE n * interval '1 second' END"
            " FROM generate_series(1, 220000) n",
            (user,),
        )
        connection.execute(
            "INSERT INTO idempotency_keys (user_id, key, digest, task_id, created_at)"
            " SELECT %s || n %% 20, 'key ' || n, '', n, now() FROM generate_series(1, 20000) n",
            (user,),
        )
        connection.execute("ANALYZE users, tasks, deleted_tasks, idempotency_keys")
        yield connection, user + "0"
        connection.execute("DELETE FROM users WHERE starts_with(id, %s)", (user,))


@pytest.mark.slow
@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
def test_no_statement_scans_the_table(
    crowded: tuple[psycopg.Connection, str], path: Path, plan: str
) -> None:
    connection, user = crowded
    parameters = tuple(
        user if parameter == "{user}" else parameter for parameter in PARAMETERS[path.stem]
    )
    numbers = count(1)
    numbered = re.sub("%s", lambda _: f"${next(numbers)}", code(path))
    # EXPLAIN plans what it is given for its parameters; only a prepared statement has both plans.
    execute = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained ({})").format(
        sql.SQL(", ").join(map(sql.Literal, parameters))
    )
    with connection.transaction(force_rollback=True):
        connection.execute("SELECT set_config('plan_cache_mode', %s, true)", (plan,))
        connection.execute("DEALLOCATE ALL")
        connection.execute(f"PREPARE explained AS {numbered}")
        rows = connection.execute(execute).fetchone()
        nodes = list(walk(rows[0][0]["Plan"]))

    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"], nodes
    # If it sorts anything, that is one page.
    assert not [
        node for node in nodes if "Sort" in node["Node Type"] and node["Actual Rows"] > PAGE
    ]
    # It never reads more rows than it returns.
    tables = [node for node in nodes if "Relation Name" in node]
    assert sum(node.get("Rows Removed by Filter", 0) for node in tables) <= 1
    assert nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"] < 1200


def walk(plan: dict) -> Iterator[dict]:
    yield plan
    for child in plan.get("Plans", []):
        yield from walk(child)
