"""docs/psql.md: every query on the page is run, by psql, against rows whose answer is known."""

from __future__ import annotations

import csv
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from tests.conftest import ROOT, SECRET, app_with_commands
from todo_service import embedded, store
from todo_service.settings import Settings

PSQL = embedded.binaries() / "psql"
PAGE = (ROOT / "docs" / "psql.md").read_text()
QUERIES = dict(re.findall(r"^## ([^\n]+)\n.*?```sql\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
BY_HAND = ["Updating tasks by hand", "Deleting tasks by hand", "Inserting tasks by hand"]
RETENTION = "Deleting what is old"
DELETION = "Deleting a user with everything"
# The embedded PostgreSQL has no extensions.
EXTENSION = "What the statements cost"
VACUUM, REINDEX = "Vacuuming more often", "After an upgrade of glibc"

SEED = """
SET timezone = 'UTC';
INSERT INTO users (id) VALUES ('alice'), ('bob'), ('carol');
INSERT INTO tasks (user_id, title, status, created_at, updated_at)
VALUES
    ('alice', 'old', 'incomplete', now() - interval '100 days', now() - interval '100 days'),
    ('alice', 'new', 'incomplete', now(), now()),
    ('alice', 'this week', 'complete', now() - interval '99 days', date_trunc('week', now())),
    ('alice', 'last week', 'complete', now() - interval '99 days',
        date_trunc('week', now()) - interval '1 second'),
    ('bob', 'only', 'incomplete', now(), now()),
    ('carol', 'done', 'complete', now() - interval '98 days', now() - interval '98 days');
UPDATE users
SET changed_at = now() - interval '1 day'
WHERE id <> 'bob';
INSERT INTO deleted_tasks (user_id, id, deleted_at)
VALUES ('alice', 100, now() - interval '8 days'), ('alice', 101, now() - interval '6 days');
INSERT INTO idempotency_keys (user_id, key, digest, task_id, created_at, replays)
VALUES ('alice', 'key', 'digest', 2, now(), 2), ('alice', 'once', 'digest', 3, now(), 0);
"""


def today() -> date:
    return datetime.now(UTC).date()


def answers(day: date) -> dict[str, list[list[str]] | None]:
    """How each row of an answer begins. None: this depends on the server, and only has to run."""
    monday = day - timedelta(days=day.weekday())
    return {
        "Open tasks per user": [["alice", "2"], ["bob", "1"]],
        "Completed this week": [[str(monday), "1"]],
        "Largest users": [["alice", "4"], ["bob", "1"], ["carol", "1"]],
        "Stale tasks": [["alice", "1", "old", "100"]],
        "What one user sees": [["2", "incomplete"], ["4", "complete"], ["3", "complete"], ["1"]],
        "Tasks created per day": [
            *([str(day - timedelta(days=n)), "0", "0"] for n in range(13, 0, -1)),
            [str(day), "2", "2"],
        ],
        "Clients that repeat themselves": [["alice", "2", "2"]],
        "Last change of each user": [["bob"], ["alice"], ["carol"]],
        "Deleted lately": [["alice", "101"]],
        "Index usage": [
            ["deleted_tasks_pkey"], ["idempotency_keys_created_at_idx"], ["idempotency_keys_pkey"],
            ["tasks_changes_idx"], ["tasks_newest_idx"], ["tasks_pkey"], ["users_pkey"],
        ],
        "Bloat and vacuum": [["deleted_tasks"], ["idempotency_keys"], ["tasks"], ["users"]],
        "Connections, and who waits for whom": None,
    }  # fmt: skip


@pytest.fixture(scope="module")
def seeded(new_database: Callable[..., str]) -> str:
    """A database with six tasks of three users, of which the answers above follow."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now + timedelta(days=1), datetime.min.time(), UTC)
    if midnight - now < timedelta(minutes=1):
        time.sleep((midnight - now).total_seconds())  # today is to be the same day until the end
    url = new_database(schema=True)
    with psycopg.connect(url) as connection:
        connection.execute(SEED)
    return url


def psql(conninfo: str, query: str, user: str) -> list[list[str]]:
    """The rows of the answer, without the header; whatever psql complains about fails the test."""
    answer = subprocess.run(
        [PSQL, conninfo, "-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", "-v", f"user={user}"],
        input=f"SET timezone = 'UTC'; SET client_min_messages = 'warning';\n{query}",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    return list(csv.reader(answer.stdout.splitlines()))[1:]


def test_every_query_on_the_page_is_known_here() -> None:
    known = [*answers(today()), EXTENSION, VACUUM, REINDEX, *BY_HAND, RETENTION, DELETION]
    assert sorted(QUERIES) == sorted(known)
    assert PAGE.count("```sql") == len(QUERIES)


@pytest.mark.parametrize("title", answers(today()))
def test_a_query_gives_the_answer_that_its_title_promises(seeded: str, title: str) -> None:
    rows = psql(seeded, QUERIES[title], "alice")

    expected = answers(today())[title]
    if expected is None:
        assert rows
    else:
        assert [row[: len(start)] for row, start in zip(rows, expected, strict=True)] == expected


@pytest.fixture
def erin(seeded: str) -> Iterator[str]:
    """The id of a user without a row, in whose place the store is asked what changed."""
    app = app_with_commands(Settings(database_url=seeded, jwt_secret=SECRET))
    with app.app_context():
        yield "erin"
        store.delete_user("erin")
    app.extensions["database"].close()


def test_changes_by_hand_reach_clients_that_keep_a_copy(seeded: str, erin: str) -> None:
    update, delete, insert = (QUERIES[title].replace("'old'", "'Buy milk'") for title in BY_HAND)

    mark = None

    def changes() -> store.Changes:
        nonlocal mark
        page = store.list_changes(erin, limit=10, after=mark)
        mark = page.cursor
        return page

    psql(seeded, insert, erin)
    assert [task["title"] for task in changes().tasks] == ["Buy milk", "Buy bread"]
    with psycopg.connect(seeded) as connection:
        # Ahead of the server's own: from here on, now() does not move it.
        connection.execute("UPDATE users SET changed_at = '2100-06-01' WHERE id = %s", (erin,))
    for _ in range(2):
        psql(seeded, insert, erin)
        assert [task["title"] for task in changes().tasks] == ["Buy milk", "Buy bread"]
    psql(seeded, update, erin)
    milk = [task["id"] for task in changes().tasks if task["status"] == "complete"]
    assert len(milk) == 3
    psql(seeded, delete, erin)
    last = changes()

    assert (last.tasks, last.deleted) == ([], milk)
    assert last.cursor.changed_at == store.get_clock(erin)
    assert last.cursor.changed_at.year == 2100


def test_what_is_old_is_deleted_in_the_copies_too(seeded: str, erin: str) -> None:
    psql(seeded, QUERIES["Inserting tasks by hand"], erin)
    psql(seeded, QUERIES["Inserting tasks by hand"], erin)
    with psycopg.connect(seeded) as connection:
        rows = connection.execute(
            "SELECT id FROM tasks WHERE user_id = %s ORDER BY id", (erin,)
        ).fetchall()
        (old,), (older,), (recent,), (open_,) = rows
        for task, status, days in (
            (old, "complete", 367),
            (older, "complete", 800),
            (recent, "complete", 364),
            (open_, "incomplete", 800),
        ):
            connection.execute(
                "UPDATE tasks SET status = %s, updated_at = now() - %s * interval '1 day'"
                " WHERE user_id = %s AND id = %s",
                (status, days, erin, task),
            )
    copy = store.list_changes(erin, limit=10, after=None)
    assert len(copy.tasks) == 4
    others = psql(seeded, "SELECT * FROM tasks WHERE user_id <> :'user' ORDER BY id", erin)
    clocks = psql(seeded, "SELECT * FROM users WHERE id <> :'user' ORDER BY id", erin)

    assert psql(seeded, QUERIES[RETENTION], erin) == [["2"]]
    assert psql(seeded, QUERIES[RETENTION], erin) == [["0"]]

    changes = store.list_changes(erin, limit=10, after=copy.cursor)
    assert (changes.tasks, sorted(changes.deleted)) == ([], [old, older])
    assert store.get_clock(erin) == changes.cursor.changed_at > copy.cursor.changed_at
    _, kept = store.list_tasks(erin, limit=10, size=1 << 20)
    assert sorted(task["id"] for task in kept) == [recent, open_]
    assert psql(seeded, "SELECT * FROM tasks WHERE user_id <> :'user' ORDER BY id", erin) == others
    assert psql(seeded, "SELECT * FROM users WHERE id <> :'user' ORDER BY id", erin) == clocks


def test_the_settings_of_the_page_are_those_of_the_tables_then(seeded: str) -> None:
    psql(seeded, QUERIES[VACUUM], "alice")

    with psycopg.connect(seeded) as connection:
        rows = connection.execute(
            "SELECT relname, reloptions FROM pg_class"
            " WHERE relname IN ('users', 'tasks') ORDER BY relname"
        ).fetchall()
    sooner = ["autovacuum_vacuum_scale_factor=0.02"]
    assert rows == [
        ("tasks", [*sooner, "autovacuum_analyze_scale_factor=0.02"]),
        ("users", sooner),
    ]


def test_the_page_builds_every_index_again(seeded: str) -> None:
    indexes = (
        "SELECT indexrelid::regclass::text, pg_relation_filenode(indexrelid) FROM pg_index"
        " JOIN pg_class ON pg_class.oid = indrelid WHERE relnamespace = 'public'::regnamespace"
    )
    with psycopg.connect(seeded, autocommit=True) as connection:
        before = dict(connection.execute(indexes).fetchall())
        psql(seeded, QUERIES[REINDEX], "alice")
        after = dict(connection.execute(indexes).fetchall())

    assert len(before) == 7
    assert [name for name in before if after[name] == before[name]] == []


def test_the_deletion_takes_one_user_with_all_tasks_and_nobody_else(seeded: str) -> None:
    with psycopg.connect(seeded, autocommit=True) as connection:
        connection.execute("INSERT INTO users (id) VALUES ('dave')")
        connection.execute("INSERT INTO tasks (user_id, title) VALUES ('dave', 'x'), ('dave', 'y')")
        connection.execute("INSERT INTO deleted_tasks VALUES ('dave', 1, now())")

        assert psql(seeded, QUERIES[DELETION], "dave") == [["2"]]

        users = connection.execute("SELECT id FROM users ORDER BY id").fetchall()
        owners = connection.execute(
            "SELECT user_id FROM tasks UNION SELECT user_id FROM deleted_tasks ORDER BY user_id"
        ).fetchall()
    assert users == owners == [("alice",), ("bob",), ("carol",)]
