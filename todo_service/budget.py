"""How many connections the service may open, against how many PostgreSQL grants it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import scalar_row

from todo_service.settings import Settings

log = logging.getLogger(__name__)

_LIMIT = (Path(__file__).parent.parent / "sql" / "connection_limit.sql").read_bytes()


def report(connection: psycopg.Connection[Any], settings: Settings) -> None:
    """Log the connections of all workers together; a WARNING if they are more than are granted.

    It counts one group of workers. Others (a second dyno, the next deploy while this one still
    runs) come on top. Behind a pooler there is nothing to compare: it is the pooler that connects.
    """
    wanted = settings.web_concurrency * settings.db_pool_size
    granted = None
    if settings.db_pooler is None:
        try:
            granted = connection.cursor(row_factory=scalar_row).execute(_LIMIT).fetchone()
        except psycopg.Error as error:
            # Not worth the connection: without it, the service would not start for a log line.
            log.warning("event=connection_budget_unknown reason=%s", type(error).__name__)
            return
    log.log(
        logging.WARNING if granted is not None and wanted > granted else logging.INFO,
        "event=connection_budget workers=%d pool_size=%d connections=%d granted=%s",
        settings.web_concurrency,
        settings.db_pool_size,
        wanted,
        "-" if granted is None else granted,
    )
