"""gunicorn's gevent worker, for clients that stall, never pause, or are many.

Each method names the test that fails without it. SECURITY.md has the limits in one table.
"""

from __future__ import annotations

import time
from contextlib import nullcontext, suppress
from errno import EBADF
from functools import partial
from socket import SHUT_RD
from typing import Any

import gevent
from gevent.server import StreamServer
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, ParseException
from gunicorn.workers.ggevent import GeventWorker

from todo_service.errors import answer_unparsed

MAX_HEAD = 32 * 1024  # bytes of a request's head: request line and header fields together
PIECE = 64 * 1024  # bytes of a body or an answer, each of which
PATIENCE = 15.0  # may take this many seconds; so may a head, and a body that nobody reads
TURN = 0.010  # seconds that a connection may go on while others wait
LINGER = 2.0  # seconds after SIGTERM in which a kept-alive client may still send a request
SPARE = 100  # places for connections that are kept free while idle clients hold the others


class Worker(GeventWorker):
    """One greenlet a connection: a stalled client costs a few kilobytes, not a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.servers: list[StreamServer] = []
        self.connections = 0
        # Those without a whole request, in the order in which they began to wait for one.
        self.waiting: dict[Client, None] = {}
        self.polls = 0  # how often the event loop has looked for what else is due

    def run(self) -> None:
        """test_a_client_that_never_pauses_does_not_hold_up_the_others"""
        watcher = gevent.get_hub().loop.check(ref=False)
        watcher.start(self.count_poll)
        super().run()

    def count_poll(self) -> None:
        self.polls += 1

    def server_class(self, listener: Any, *, spawn: Any, **_: Any) -> StreamServer:
        """gevent's own, as without this method, but known to `drain`, which needs it."""
        server = StreamServer(listener, handle=partial(self.handle, listener), spawn=spawn)
        server.max_accept = 1  # as gunicorn has it: the rest of a burst is for the other workers
        self.servers.append(server)
        return server

    def timeout_ctx(self) -> nullcontext[None]:
        """The time to wait for a request is `Client`'s: test_an_unfinished_head_…"""
        return nullcontext()

    def handle(self, _listener: Any, client: Any, addr: Any) -> None:
        """test_idle_clients_make_room_for_new_ones"""
        patient = Client(client, self)
        self.connections += 1
        try:
            if self.connections > self.worker_connections - SPARE:
                self.hang_up(list(self.waiting)[:1])
            patient.await_head()
            # The client's socket in the place of the listener, which is only asked for its name:
            # it still has one when the listener is closed.
            super().handle(client, patient, addr)
        finally:
            self.connections -= 1
            self.waiting.pop(patient, None)

    def handle_request(self, listener_name: Any, req: Any, sock: Client, addr: Any) -> None:
        """test_a_stalled_reader_is_cut_off, test_an_unread_body_has_15_seconds_in_all"""
        if req.version == (1, 1) and all(name != "HOST" for name, _ in req.headers):
            raise InvalidHeader("HOST", req=req)  # RFC 9112 section 3.2
        sock.await_body()
        try:
            super().handle_request(listener_name, req, sock, addr)
        except TimeoutError:
            raise StopIteration from None  # to gunicorn: close the connection, log no traceback
        sock.await_rest()
        with suppress(ParseException):  # it has been answered already
            while req.body.read(PIECE):
                pass
        if sock.gone:
            raise StopIteration
        sock.await_head()

    def handle_error(self, _req: Any, client: Any, _addr: Any, exc: BaseException) -> None:
        """test_what_is_not_http_gets_a_json_error_and_is_not_quoted_in_the_log"""
        if isinstance(exc, Exception):  # not a greenlet that is killed at the end of a stop
            answer_unparsed(client, exc)

    def handle_exit(self, *_: Any) -> None:
        gevent.spawn(self.drain)

    def drain(self) -> None:
        """test_who_is_sent_away_at_the_stop_finds_nobody_listening, test_a_stop_takes_…"""
        for server in self.servers:
            server.max_accept = self.cfg.backlog  # what is connected already is still served
        gevent.sleep(0.001)
        for server in self.servers:
            server.close()
        self.alive = False
        gevent.sleep(LINGER)
        self.hang_up(list(self.waiting))

    def hang_up(self, clients: list[Client]) -> None:
        for client in clients:
            del self.waiting[client]
            client.shutdown(SHUT_RD)


class Client:
    """A client's socket, on which nobody waits without end, and nobody else has to."""

    def __init__(self, sock: Any, worker: Worker) -> None:
        self.sock = sock
        self.worker = worker
        self.polls = -1
        self.turn_began = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def await_head(self) -> None:
        """For as long as connections are kept; once it begins, for PATIENCE and MAX_HEAD bytes."""
        self.room: int | None = MAX_HEAD
        self.deadline: float | None = None
        self.gone = False
        self.worker.waiting[self] = None
        self.sock.settimeout(self.worker.cfg.keepalive)

    def await_body(self) -> None:
        """For PATIENCE a PIECE."""
        self.worker.waiting.pop(self, None)
        self.room = None
        self.patience = PATIENCE
        self.deadline = time.monotonic() + PATIENCE
        self.sock.settimeout(PATIENCE)

    def await_rest(self) -> None:
        """What the application did not read of a body: for PATIENCE in all."""
        self.worker.waiting[self] = None
        self.patience = 0
        self.deadline = time.monotonic() + PATIENCE

    def recv(self, size: int) -> bytes:
        """Whoever takes too long counts as gone: the same as the end of what was sent."""
        if self.gone:
            return b""
        self.let_others_run()
        size = min(size, PIECE if self.room is None else self.room)
        if size == 0:
            raise LimitRequestHeaders("too large")
        if self.deadline is not None:
            self.sock.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            data: bytes = self.sock.recv(size)
        except TimeoutError:
            data = b""
        except OSError as error:
            if error.errno != EBADF:
                raise
            data = self.sock.recv(size)  # hung up on, perhaps with a request come in meanwhile
        self.gone = not data
        if self.room is None:
            assert self.deadline is not None
            self.deadline += self.patience * len(data) / PIECE
            self.sock.settimeout(PATIENCE)
        else:
            self.room -= len(data)
            self.deadline = self.deadline or time.monotonic() + PATIENCE
        return data

    def sendall(self, data: bytes) -> None:
        """Raises TimeoutError when the client does not take a PIECE within PATIENCE."""
        self.let_others_run()
        rest = memoryview(data)
        while rest:
            piece = rest[:PIECE]
            sent = self.sock.send(piece)
            if sent < len(piece):
                self.sock.sendall(piece[sent:])
            rest = rest[PIECE:]

    def let_others_run(self) -> None:
        """gevent switches only where a call would block, and a client can keep that from happening.

        By a timer, because gevent looks at the sockets of others only when it waits for one.
        """
        if self.polls != self.worker.polls:
            self.polls, self.turn_began = self.worker.polls, time.monotonic()
        elif time.monotonic() - self.turn_began > TURN:
            gevent.sleep(0.001)
