"""gunicorn's gevent worker, for clients that stall, never pause, or are many.

One rule makes room: whoever has been kept waiting longest by its own client, for a head, a piece of
a body or an answer, or the next request, is hung up on. SECURITY.md has the limits, each with the
test that shows it. Each method is here for a test that fails without it:

server_class    test_sigterm_under_load_drops_no_accepted_request
timeout_ctx     test_an_idle_connection_is_kept_for_the_time_that_is_set_and_a_head_has_its_own
handle          test_who_has_waited_longest_makes_room
handle_request  test_a_worker_that_has_served_its_number_does_not_wait_for_idle_clients
handle_error    test_what_is_not_http_gets_a_json_error
handle_exit     test_a_stop_does_not_wait_for_clients_that_do_nothing
handle_quit     test_a_newcomer_has_a_task_in_postgresql_that_survives_a_restart
drain           test_who_was_connected_when_the_stop_began_is_answered
accept          test_slow_clients_are_served_beside_many_others
make_room       test_readers_who_take_nothing_shut_nobody_out
begin           test_who_does_not_come_to_an_end_is_cut_off_after_15_seconds
hang_up         test_a_request_that_comes_while_the_worker_hangs_up_is_answered
recv            test_a_head_has_32_kib_at_most
sendall         test_a_reader_that_takes_too_little_is_cut_off_and_a_slow_one_gets_everything
hold            test_bodies_that_do_not_come_to_an_end_take_little_memory
wait            test_a_client_that_never_pauses_does_not_hold_up_the_others
close           test_what_is_not_http_gets_a_json_error
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from enum import Enum, auto
from errno import EBADF
from functools import partial
from signal import SIGINT, SIGQUIT, signal
from socket import (
    IPPROTO_TCP,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_LINGER,
    SOL_SOCKET,
    TCP_NOTSENT_LOWAT,
)
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, NoMoreData, ParseException
from gunicorn.workers.ggevent import GeventWorker

from todo_service.serving.unparsed import answer_unparsed

MAX_HEAD = 32 * 1024  # bytes of a request's head, request line and fields; of its trailers, about
PIECE = 64 * 1024  # bytes of a body or an answer that may take PATIENCE
PATIENCE = 15.0  # seconds for a head, for each full PIECE, and for a body that nobody reads
MAX_HELD = 24 * 1024 * 1024  # bytes of unfinished bodies and answers in a worker
SMALL = 16 * 1024  # bytes of a body or an answer that nobody is hung up on for
TURN = 0.010  # seconds in which a connection may go on while others wait
LEAVE = 0.100  # seconds, times the share of places taken beyond half, for the other workers
LINGER = 2.0  # seconds, during a stop, in which a kept-alive client may still send a request


class Stage(Enum):
    """What a connection is at."""

    HEAD = auto()  # idle, or sending a head
    BODY = auto()  # sending a body, or waiting for the application
    ANSWER = auto()  # taking an answer
    REST = auto()  # answered, and sending what nobody reads


class Worker(GeventWorker):
    """One greenlet per connection: a stalled client costs a few kilobytes, not a thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.servers: list[StreamServer] = []
        # All clients, in the order in which each began what it is at.
        self.clients: dict[Client, None] = {}
        self.held = 0  # bytes of all their unfinished bodies and answers
        self.leaving = 0  # how many of these belong to clients that were hung up on

    def server_class(self, listener: Any, *, spawn: Pool, **_: Any) -> StreamServer:
        """What gunicorn would make itself, kept in `servers` so that `drain` can close it."""
        with suppress(OSError):  # not TCP
            # Else the kernel buffers up to 4 MB per client, and hides how much of it was taken.
            listener.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, PIECE)
        server = StreamServer(listener, handle=partial(self.handle, spawn), spawn=spawn)
        # How many are accepted in one turn of the loop. gunicorn sets 1: where many clients make a
        # turn long, a burst would wait for many of them. Each may hang up on another, and nobody
        # leaves before the turn is over: so few beside the tenth of the places that is kept free.
        server.max_accept = max(1, spawn.size // 60)
        self.servers.append(server)
        return server

    def timeout_ctx(self) -> nullcontext[None]:
        """Switch off gunicorn's one limit for waiting and the head: `Client` has one for each."""
        return nullcontext()

    def handle(self, pool: Pool, sock: Any, addr: Any) -> None:
        client = Client(sock, self, pool)
        free = pool.free_count() / pool.size
        if free <= 0.1:
            self.make_room()
        elif free < 0.5 and self.cfg.workers > 1:
            for server in self.servers:
                server.stop_accepting()
                gevent.spawn_later((0.5 - free) * LEAVE, self.accept, server)
        # gunicorn asks the listener for its address only, and it may be closed by then.
        super().handle(sock, client, addr)

    def accept(self, server: StreamServer) -> None:
        """Go on, after the workers with more room had the first try."""
        if server.started:
            server.start_accepting()

    def make_room(self, larger_than: int = -1) -> bool:
        """Hang up on whoever has kept the worker waiting longest, if there is anybody.

        Of those only whose body or answer is larger than so many bytes.
        """
        for client in self.clients:
            if client.blocked and client.held > larger_than:
                client.hang_up()
                return True
        return False

    def handle_request(self, listener_name: Any, req: Any, client: Client, addr: Any) -> None:
        if req.version >= (1, 1) and all(name != "HOST" for name, _ in req.headers):
            raise InvalidHeader("HOST", req=req)  # RFC 9112 section 3.2
        # gunicorn would gather 800 KiB of a chunked body's trailers, and count their lines again at
        # each read. The readers of other bodies do not look at this.
        req.body.reader.limit_trailer_section = MAX_HEAD
        client.begin(Stage.BODY)
        try:
            super().handle_request(listener_name, req, client, addr)
        finally:
            if not self.alive and self.servers:  # --max-requests
                gevent.spawn(self.drain)
        client.begin(Stage.REST)
        with suppress(ParseException):  # it has been answered already
            while req.body.read(PIECE):
                pass
        if not req.body.failed:  # else gunicorn closes the connection now
            client.begin(Stage.HEAD)

    def handle_error(self, req: Any, client: Any, _addr: Any, exc: Exception) -> None:
        is_head = req.method == "HEAD" if req else client.wants_no_body
        answer_unparsed(client, exc, with_body=not is_head)

    def handle_exit(self, *_: Any) -> None:
        gevent.spawn(self.drain)

    def handle_quit(self, sig: Any, frame: Any) -> None:
        for again in (SIGINT, SIGQUIT):  # Ctrl-C: from the terminal, and from the master
            signal(again, lambda *_: None)  # not SIG_IGN: it may have come already
        super().handle_quit(sig, frame)

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
            for client in list(self.clients):
                if client.stage in (Stage.HEAD, Stage.REST):
                    client.hang_up()


class Client:
    """A client socket with a deadline on every read and write.

    For a client that is late or gone it raises NoMoreData, at which gunicorn closes the connection.
    """

    def __init__(self, sock: Any, worker: Worker, pool: Pool) -> None:
        self.sock = sock
        self.worker = worker
        self.pool = pool
        self.turn = 0.0  # of the loop, in which it last sent or received
        self.blocked = False  # whether it is the client that we wait for
        self.late = False  # the client did not send in time
        self.cut = False  # nothing more is read or sent
        self.wants_no_body = False  # whether it has sent HEAD
        self.held = 0  # bytes of an unfinished body or answer
        self.begin(Stage.HEAD)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def begin(self, stage: Stage) -> None:
        """Begin a stage, or the next piece of it, behind all that others are at."""
        self.worker.clients.pop(self, None)
        self.worker.clients[self] = None
        self.stage = stage
        self.passed = 0  # bytes
        self.patience = PATIENCE
        if stage is Stage.HEAD:
            self.patience = self.worker.cfg.keepalive or PATIENCE
        elif stage is Stage.REST and self.late:
            self.patience = 0.0

    def recv(self, size: int) -> bytes:
        if self.stage is Stage.HEAD:
            size = min(size, MAX_HEAD - self.passed)
            if size == 0:
                raise LimitRequestHeaders("too large")
        elif self.stage is Stage.ANSWER:  # that was "100 Continue"
            self.begin(Stage.BODY)
        # In small parts: whoever is hung up on gives memory back later in the turn of the loop.
        data: bytes = self.wait(self.sock.recv, min(size, SMALL))
        if self.stage is Stage.HEAD:
            if self.passed == 0:
                self.wants_no_body = data.startswith(b"HEAD ")
                self.patience = PATIENCE
            self.passed += len(data)
            return data
        if not data:
            raise NoMoreData
        if self.stage is Stage.BODY:
            self.hold(self.held + len(data))
            self.passed += len(data)
            if self.passed >= PIECE:
                self.begin(Stage.BODY)
        return data

    def sendall(self, data: bytes) -> None:
        if self.stage is not Stage.ANSWER:
            self.begin(Stage.ANSWER)
            # Nobody is let in, so nobody is hung up on, while all places are taken.
            if self.pool.full():
                self.worker.make_room()
        self.hold(len(data))
        pieces = memoryview(data)
        try:
            while pieces:
                piece = pieces[: PIECE - self.passed]
                self.wait(self.sock.sendall, piece)
                pieces = pieces[len(piece) :]
                self.passed += len(piece)
                if self.passed >= PIECE:
                    self.begin(Stage.ANSWER)
        except NoMoreData:
            self.hang_up()
            raise
        finally:
            self.hold(0)

    send = sendall  # of "100 Continue"

    def hold(self, size: int) -> None:
        """Note how many bytes of a body or an answer are in memory.

        While all clients hold more than MAX_HELD, those who have waited longest are hung up on.
        """
        self.worker.held += size - self.held
        if self.cut:
            self.worker.leaving += size - self.held
        self.held = size
        if size <= SMALL:
            return
        self.blocked = True  # it may have to go itself
        while self.worker.held - self.worker.leaving > MAX_HELD and self.worker.make_room(SMALL):
            pass
        while self.worker.leaving and not self.cut:  # until they have given their memory back
            gevent.sleep(0.02)
        self.blocked = False

    def wait(self, call: Callable[[Any], Any], argument: Any) -> Any:
        """Send or receive, for as long as there is patience left."""
        self.blocked = True
        # gevent switches only where a call would block, and a client can keep that from happening.
        # Each may go on once in a turn of the loop, and more often only while the turn is short.
        turn = gevent.get_hub().loop.now()
        if self.turn != turn:
            self.turn = turn
        elif not self.cut and time.time() - turn > TURN:
            gevent.sleep(0.001)  # not 0, which does not look at the sockets of the others
        if self.cut or self.patience <= 0:
            self.late = True
            raise NoMoreData
        self.sock.settimeout(self.patience)
        began = time.monotonic()
        try:
            return call(argument)
        except TimeoutError:
            self.late = True
            raise NoMoreData from None
        except OSError as error:
            if self.stage is not Stage.HEAD or error.errno != EBADF:
                raise NoMoreData from None
            return call(argument)  # hung up on, perhaps with a request come in meanwhile
        finally:
            self.blocked = False
            self.patience -= time.monotonic() - began

    def hang_up(self) -> None:
        """A head that is still to come is answered; a request that has begun is given up."""
        self.blocked = False
        if self.stage is not Stage.HEAD and not self.cut:
            self.cut = True
            self.worker.leaving += self.held
        with suppress(OSError):  # the client was faster
            self.sock.shutdown(SHUT_RDWR if self.cut else SHUT_RD)

    def close(self) -> None:
        with suppress(OSError):
            if not self.cut:
                # Reads on: with anything unread, the kernel would throw the answer away.
                self.sock.shutdown(SHUT_WR)
                self.begin(Stage.REST)
                while True:
                    self.recv(PIECE)
        if self.cut:  # a reset, or the kernel would keep what was not taken
            with suppress(OSError):
                self.sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.hold(0)
        del self.worker.clients[self]
        self.sock.close()
