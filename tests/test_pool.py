"""The pool that the requests of a worker share: who gets a connection, and which."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import PoolClosed, PoolTimeout

from todo_service.connection import Connection
from todo_service.pool import Pool


@pytest.fixture
def make_pool(database_url: str) -> Iterator[Callable[..., Pool]]:
    with ExitStack() as opened:

        def make(size: int, *, url: str = database_url, **options: float) -> Pool:
            return opened.enter_context(
                Pool(
                    url,
                    connection_class=Connection,
                    kwargs={"autocommit": True},
                    min_size=1,
                    max_size=size,
                    timeout=5,
                    reconnect_timeout=0.5,
                    reconnect_failed=lambda pool: pool.check(),
                    **options,
                )
            )

        yield make


def asked_of_psycopg(pool: Pool) -> int:
    return pool.get_stats().get("requests_num", 0)


def at_psycopg(pool: Pool) -> int:
    return pool.get_stats()["pool_available"]


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def process(connection: Connection) -> int:
    return connection.info.backend_pid


def test_a_connection_passes_to_the_next_request_while_others_run(
    make_pool: Callable[..., Pool],
) -> None:
    pool = make_pool(2)
    with pool.connection():
        with pool.connection() as left:
            pass
        asked = asked_of_psycopg(pool)
        with pool.connection() as taken:
            assert taken is left
        assert asked_of_psycopg(pool) == asked


def test_when_no_request_is_left_psycopg_has_all_connections(
    make_pool: Callable[..., Pool],
) -> None:
    # There, those that were needed for a burst only are closed after a while.
    pool = make_pool(3)
    with pool.connection(), pool.connection(), pool.connection():
        pass
    assert at_psycopg(pool) == 3

    with pool.connection() as last:
        with pool.connection():
            pass
        last.close()
    until(lambda: at_psycopg(pool) == 3)  # with the one in place of the last


def test_a_pool_that_closes_closes_what_was_left_to_the_next(
    make_pool: Callable[..., Pool],
) -> None:
    pool = make_pool(2)
    with pool.connection() as busy:
        with pool.connection() as left:
            pass
        pool.close()
        assert left.closed
        with pytest.raises(PoolClosed), pool.connection():
            pass
    assert busy.closed


def close(connection: Connection) -> None:
    connection.close()


def leave_a_statement_running(connection: Connection) -> None:
    connection.pgconn.send_query(b"SELECT pg_sleep(60)")


@pytest.mark.parametrize("spoil", [close, leave_a_statement_running])
def test_a_connection_that_nobody_can_use_is_replaced(
    make_pool: Callable[..., Pool], spoil: Callable[[Connection], None]
) -> None:
    pool = make_pool(2)
    with pool.connection():
        with pool.connection() as spoilt:
            old = process(spoilt)
            spoil(spoilt)
        with pool.connection() as connection:
            assert process(connection) != old
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_connection_that_the_server_closed_on_the_shelf_is_not_handed_out(
    make_pool: Callable[..., Pool], database_url: str
) -> None:
    pool = make_pool(3)
    with pool.connection(), psycopg.connect(database_url, autocommit=True) as administrator:
        with pool.connection() as one, pool.connection() as other:
            gone = {process(one), process(other)}
        for number in gone:
            administrator.execute("SELECT pg_terminate_backend(%s, 5000)", (number,))
        with pool.connection() as one, pool.connection() as other:
            assert not gone & {process(one), process(other)}
            assert one.execute("SELECT 1").fetchone() == (1,)


def test_under_a_load_without_a_pause_old_connections_are_replaced(
    make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "VISIT", 0.1)
    pool = make_pool(2, max_lifetime=0.3)
    seen = set()
    with pool.connection():
        deadline = time.monotonic() + 10
        while len(seen) < 3:
            assert time.monotonic() < deadline
            with pool.connection() as connection:
                seen.add(process(connection))


@pytest.fixture
def small_role(database_url: str) -> Iterator[tuple[str, Callable[[int], None]]]:
    """A URL of the database for a role of its own, and how to grant that some connections."""
    role = f"small_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as administrator:
        administrator.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")
        yield (
            make_conninfo(database_url, user=role),
            lambda limit: administrator.execute(f"ALTER ROLE {role} CONNECTION LIMIT {limit}"),
        )
        administrator.execute(f"DROP ROLE {role}")


def test_a_server_that_grants_fewer_connections_serves_everybody_with_those(
    small_role: tuple[str, Callable[[int], None]], make_pool: Callable[..., Pool]
) -> None:
    url, grant = small_role
    grant(2)
    pool = make_pool(6, url=url)

    def use(_: int) -> None:
        with pool.connection() as connection:
            connection.execute("SELECT pg_sleep(0.002)")

    with ThreadPoolExecutor(24) as threads:
        list(threads.map(use, range(1000)))


def test_who_waited_in_vain_takes_no_connection_from_those_who_come_later(
    small_role: tuple[str, Callable[[int], None]], make_pool: Callable[..., Pool]
) -> None:
    url, grant = small_role
    pool = make_pool(2, url=url)
    for _ in range(3):
        with pytest.raises(PoolTimeout), pool.connection(timeout=0.1):
            pass
    grant(2)
    with pool.connection(), pool.connection():
        pass


def test_a_newcomer_does_not_overtake_those_in_line(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1)
    served: list[int] = []

    def use(number: int) -> None:
        with pool.connection():
            served.append(number)

    with ThreadPoolExecutor(5) as threads:
        with pool.connection():
            for number in range(5):
                threads.submit(use, number)
                until(lambda length=number + 1: len(pool._line) == length)
        use(5)

    assert served == [0, 1, 2, 3, 4, 5]


def test_a_turn_that_comes_as_patience_ends_goes_to_the_next(
    make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooLate(SimpleQueue[None]):
        def get(self, **_: object) -> None:
            super().get(timeout=5)
            raise Empty

    monkeypatch.setattr("todo_service.pool.SimpleQueue", TooLate)
    pool = make_pool(1)
    with ThreadPoolExecutor(1) as threads:
        with pool.connection():
            waiting = threads.submit(pool.getconn)
            until(lambda: len(pool._line) == 1)
        with pytest.raises(PoolTimeout):
            waiting.result()
    with pool.connection(timeout=1):
        pass


def test_nobody_has_a_connection_beyond_the_limit_and_none_is_lost(
    make_pool: Callable[..., Pool],
) -> None:
    pool = make_pool(3)
    in_use: set[int] = set()
    most = impatient = 0

    def use(number: int) -> None:
        nonlocal most, impatient
        try:
            with pool.connection(timeout=0.004 if number % 2 else None) as connection:
                assert id(connection) not in in_use
                in_use.add(id(connection))
                most = max(most, len(in_use))
                connection.execute("SELECT pg_sleep(0.001)")
                in_use.discard(id(connection))
                if number % 97 == 0:
                    connection.close()
        except PoolTimeout:
            impatient += 1

    with ThreadPoolExecutor(24) as threads:
        list(threads.map(use, range(3000)))

    assert most == 3
    assert impatient
    with ExitStack() as taken:
        for _ in range(3):
            taken.enter_context(pool.connection())
        with pytest.raises(PoolTimeout):
            taken.enter_context(pool.connection(timeout=0.1))
    assert at_psycopg(pool) == 3
