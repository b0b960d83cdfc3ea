"""Kill requests that wait for a connection, by the thousand, and say what the pool still gives.

Not a test by itself: test_database.py runs it in a process of its own, which gevent has patched.
"""

from __future__ import annotations

import gc
import json
import random
import sys

import gevent
import psycopg
from gevent.event import Event

from todo_service import create_app
from todo_service.settings import Settings

SIZE = 4
NAME = "killed-waiters"


def main(url: str, secret: str) -> dict[str, int]:
    settings = Settings(
        database_url=f"{url}{'&' if '?' in url else '?'}application_name={NAME}",
        jwt_secret=secret,
        db_pool_size=SIZE,
        db_pool_timeout=20,
    )
    app = create_app(settings)
    database = app.extensions["database"]
    database.open()
    killed = answered = 0

    def ask(statement: bytes = b"SELECT pg_sleep(0.001)", patience: float | None = None) -> None:
        nonlocal killed, answered
        try:
            with app.app_context(), gevent.Timeout(patience):
                database.run(statement, ())
            answered += 1
        except (gevent.Timeout, gevent.GreenletExit):
            killed += 1

    for _ in range(30):
        hasty = [gevent.spawn(ask, patience=random.uniform(0.0001, 0.02)) for _ in range(40)]
        doomed = [gevent.spawn(ask) for _ in range(40)]
        others = [gevent.spawn(ask) for _ in range(10)]
        random.shuffle(doomed)
        for request in doomed:
            gevent.sleep(random.choice([0, 0.0002]))
            request.kill(block=False)
        gevent.joinall([*hasty, *doomed, *others], raise_error=True)

    # As many requests at once as there are connections, each of which waits for the last one.
    got = 0
    all_have_one = Event()

    def take() -> None:
        nonlocal got
        with database.pool.connection(timeout=10) as connection:
            got += 1
            if got == SIZE:
                all_have_one.set()
            all_have_one.wait(10)
            connection.execute("SELECT 1")

    gevent.joinall([gevent.spawn(take) for _ in range(SIZE)])
    # A burst has the pool make as many as it may.
    gevent.joinall([gevent.spawn(ask, b"SELECT pg_sleep(0.1)") for _ in range(SIZE * 4)])
    # Connections that went to the dead are closed with whatever else nobody refers to any more.
    gc.collect()
    with psycopg.connect(url) as administrator:
        (connections,) = administrator.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (NAME,)
        ).fetchone()
    database.close()
    return {"killed": killed, "answered": answered, "at_once": got, "connections": connections}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))  # noqa: T201
