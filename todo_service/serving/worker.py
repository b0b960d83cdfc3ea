"""gunicorn's gevent worker, for clients that stall, never pause, or are many.

SECURITY.md has the limits, each with the test that shows it. Without these methods, this fails
(tests/faults, tests/api/test_wire.py):

server_class    test_sigterm_under_load_drops_no_accepted_request
timeout_ctx     test_an_idle_connection_is_kept_for_the_time_that_is_set_and_a_head_has_its_own
handle          test_idle_clients_make_room_for_new_ones
handle_request  test_a_worker_that_has_served_its_number_does_not_wait_for_idle_clients
handle_error    test_what_is_not_http_gets_a_json_error
handle_exit     test_a_stop_does_not_wait_for_clients_that_do_nothing
drain           test_who_was_connected_when_the_stop_began_is_answered
hang_up         test_a_request_that_comes_while_the_worker_hangs_up_is_answered
expect_head     test_an_idle_connection_is_kept_for_the_time_that_is_set_and_a_head_has_its_own
expect_body     test_idle_clients_make_room_for_new_ones
expect_rest     test_who_does_not_come_to_an_end_is_cut_off_after_15_seconds
recv            test_a_head_has_32_kib_at_most
sendall         test_a_reader_that_takes_too_little_is_cut_off_and_a_slow_one_gets_everything
close           test_who_does_not_come_to_an_end_is_cut_off_after_15_seconds
let_others_run  test_a_client_that_never_pauses_does_not_hold_up_the_others
"""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from errno import EBADF
from functools import partial
from socket import IPPROTO_TCP, SHUT_RD, SHUT_WR, TCP_NOTSENT_LOWAT
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, NoMoreData, ParseException
from gunicorn.workers.ggevent import GeventWorker

from todo_service.serving.unparsed import answer_unparsed

MAX_HEAD = 32 * 1024  # bytes of a request's head: request line and header fields together
PIECE = 64 * 1024  # bytes of a body or an answer that may take PATIENCE
PATIENCE = 15.0  # seconds for a head, for each PIECE, and for a body that nobody reads
TURN = 0.010  # seconds that a connection may go on while others wait
LINGER = 2.0  # seconds, during a stop, in which a kept-alive client may still send a request


class Worker(GeventWorker):
    """One greenlet per connection: a stalled client costs a few kilobytes, not a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.servers: list[StreamServer] = []
        # Idle clients, longest wait first.
        self.waiting: dict[Client, None] = {}

    def server_class(self, listener: Any, *, spawn: Pool, **_: Any) -> StreamServer:
        """What gunicorn would make itself, kept in `servers` so that `drain` can close it."""
        with suppress(OSError):  # not TCP
            # Else the kernel buffers up to 4 MB per client, and hides how much of it was taken.
            listener.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, PIECE)
        server = StreamServer(listener, handle=partial(self.handle, spawn), spawn=spawn)
        server.max_accept = 1  # as gunicorn sets it: the rest of a burst is for the other workers
        self.servers.append(server)
        return server

    def timeout_ctx(self) -> nullcontext[None]:
        """Switch off gunicorn's one limit for waiting and the head: `Client` has one for each."""
        return nullcontext()

    def handle(self, pool: Pool, sock: Any, addr: Any) -> None:
        # When nine tenths of the places are taken, whoever has waited longest makes room.
        if self.waiting and pool.free_count() <= pool.size // 10:
            self.hang_up(next(iter(self.waiting)))
        # gunicorn asks the listener for its address only, and it may be closed by then.
        super().handle(sock, Client(sock, self), addr)

    def handle_request(self, listener_name: Any, req: Any, client: Client, addr: Any) -> None:
        if req.version >= (1, 1) and all(name != "HOST" for name, _ in req.headers):
            raise InvalidHeader("HOST", req=req)  # RFC 9112 section 3.2
        client.expect_body()
        try:
            super().handle_request(listener_name, req, client, addr)
        finally:
            if not self.alive and self.servers:  # --max-requests
                gevent.spawn(self.drain)
        client.expect_rest()
        with suppress(ParseException):  # it has been answered already
            while req.body.read(PIECE):
                pass
        if not req.body.failed:  # else gunicorn closes the connection now
            client.expect_head()

    def handle_error(self, _req: Any, client: Any, _addr: Any, exc: Exception) -> None:
        answer_unparsed(client, exc)

    def handle_exit(self, *_: Any) -> None:
        gevent.spawn(self.drain)

    def drain(self) -> None:
        while self.servers:
            server = self.servers.pop()
            with suppress(OSError):  # too many open files
                while not server.full() and (connected := server.do_read()):
                    server.do_handle(*connected)
            server.close()
        self.alive = False
        while True:  # for those, too, whose request comes to an end later
            gevent.sleep(LINGER)
            for client in list(self.waiting):
                self.hang_up(client)

    def hang_up(self, client: Client) -> None:
        del self.waiting[client]
        with suppress(OSError):  # the client was faster
            client.shutdown(SHUT_RD)


class Client:
    """A client socket with a deadline on every read and write.

    For a client that is late or gone it raises NoMoreData, at which gunicorn closes the connection.
    """

    def __init__(self, sock: Any, worker: Worker) -> None:
        self.sock = sock
        self.worker = worker
        self.polled = self.turn_began = 0.0
        self.expect_head()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def expect_head(self) -> None:
        """For as long as connections are kept; once it begins, for PATIENCE and MAX_HEAD bytes."""
        self.worker.waiting[self] = None
        self.room: int | None = MAX_HEAD
        self.deadline = time.monotonic() + (self.worker.cfg.keepalive or PATIENCE)

    def expect_body(self) -> None:
        """For PATIENCE, and as long again for each PIECE that comes."""
        self.worker.waiting.pop(self, None)
        self.room = None
        self.extension = PATIENCE / PIECE
        self.deadline = time.monotonic() + PATIENCE

    def expect_rest(self) -> None:
        """What the application left of a body: for PATIENCE, however much it is."""
        self.worker.waiting[self] = None
        self.room = None
        self.extension = 0.0
        self.deadline = min(self.deadline, time.monotonic() + PATIENCE)

    def recv(self, size: int) -> bytes:
        self.let_others_run()
        size = min(size, PIECE if self.room is None else self.room)
        if size == 0:
            raise LimitRequestHeaders("too large")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise NoMoreData
        self.sock.settimeout(left)
        try:
            data: bytes = self.sock.recv(size)
        except OSError as error:
            if error.errno != EBADF:
                raise NoMoreData from None
            data = self.sock.recv(size)  # hung up on, perhaps with a request come in meanwhile
        if self.room is None:
            if not data:
                raise NoMoreData
            self.deadline += self.extension * len(data)
        else:
            if self.room == MAX_HEAD:
                self.deadline = time.monotonic() + PATIENCE
            self.room -= len(data)
        return data

    def sendall(self, data: bytes) -> None:
        self.let_others_run()
        pieces = memoryview(data)
        try:
            for start in range(0, len(data), PIECE):
                self.sock.settimeout(PATIENCE)  # for the piece, however many parts it is sent in
                self.sock.sendall(pieces[start : start + PIECE])
        except OSError:
            raise NoMoreData from None

    send = sendall  # of "100 Continue"

    def close(self) -> None:
        """Reads on first: with anything unread, the kernel would throw the answer away."""
        with suppress(OSError):
            self.sock.shutdown(SHUT_WR)
            self.expect_rest()
            while True:
                self.recv(PIECE)
        self.worker.waiting.pop(self, None)
        self.sock.close()

    def let_others_run(self) -> None:
        # gevent switches only where a call would block, and a client can keep that from happening.
        polled = gevent.get_hub().loop.now()
        if self.polled != polled:
            self.polled, self.turn_began = polled, time.monotonic()
        elif time.monotonic() - self.turn_began > TURN:
            gevent.sleep(0.001)  # not 0, which does not look at the sockets of the others
