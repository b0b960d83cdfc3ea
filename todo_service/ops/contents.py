"""What `doctor` finds in the database: the schema, the role's rights, the encoding, the ids."""

from __future__ import annotations

import psycopg

from todo_service import store
from todo_service.database_url import first_line
from todo_service.ops import migrate, restored
from todo_service.ops.session import Session, Wrong


def check_schema(session: Session) -> str:
    try:
        missing = migrate.differences(session.connection)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        how = f"it answers, but was not compared with sql/schema.sql: {first_line(error)}"
    else:
        if missing:
            raise Wrong("; ".join(missing))
        how = "as in sql/schema.sql"
    try:
        session.connection.execute(*store.SCHEMA_CHECK)  # as /ready does
    except psycopg.errors.InsufficientPrivilege:
        pass  # as the next check says
    except psycopg.errors.ProgrammingError as error:
        raise Wrong(f"{first_line(error)}. {migrate.INIT_DB}") from None
    return how


def check_rights(session: Session) -> str:
    try:
        missing = [row[0] for row in session.connection.execute(store.MISSING_RIGHTS)]
    except psycopg.errors.UndefinedTable:
        return "not checked, as a table is missing"
    if missing:
        role = session.ask(b"SELECT quote_ident(current_user)")
        grants = "; ".join(f"GRANT {right} TO {role}" for right in missing)
        raise Wrong(f"some are missing. Run in psql, as the owner of the tables: {grants}")
    return "to read and write all tables"


def check_encoding(session: Session) -> str:
    encoding = session.connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise Wrong(f"{encoding}, which cannot hold every text. {migrate.NEEDS_UTF8}")
    return encoding


def check_ids(session: Session) -> str:
    """Compare the sequence with the data: logical replication and some imports leave it behind."""
    try:
        last = restored.last_id(session.connection)
        highest = restored.highest_id(session.connection)
    except (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedTable,
        psycopg.errors.QueryCanceled,
    ) as error:
        return f"not checked: {first_line(error)}"
    if last is None:
        return "not checked: the role may not look at their sequence"
    if last < highest:
        raise Wrong(
            f"the next one is {last + 1}, and {highest} is taken."
            " Run `flask --app wsgi after-restore`"
        )
    return f"the last one was {last}"
