"""gunicorn's gevent worker, safe from clients that stall and when it shuts down."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import gevent
from gevent import Timeout
from gevent.server import StreamServer
from gunicorn.http.errors import ParseException
from gunicorn.workers.ggevent import GeventWorker


class Worker(GeventWorker):
    """One greenlet a connection: a stalled client costs a few kilobytes, not a thread."""

    # Seconds that a client may take to send the next piece of a body, or to read one.
    STALL = 15.0
    # What an unread body may cost before its connection is rather closed: bytes, and seconds of
    # waiting for the next piece.
    UNREAD = 16 * 1024 * 1024
    DISCARD = 2.0
    # Seconds after SIGTERM in which a client on a kept-alive connection may still send a request,
    # which is answered with "Connection: close".
    LINGER = 2.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: set[RequestWait] = set()
        self.servers: list[DrainingServer] = []

    def init_process(self) -> None:
        # Each request asks for over twenty settings, and gunicorn finds each by two calls.
        settings = self.cfg.settings.items()
        self.cfg.__dict__.update({name: setting.get() for name, setting in settings})
        super().init_process()

    def server_class(self, listener: Any, *, spawn: Any, **_: Any) -> StreamServer:
        """Called in place of a server class, which the base class allows for."""
        name = listener.getsockname()
        # What is taken in last is handled when the listening socket, asked for its name, is closed.
        named = SimpleNamespace(getsockname=lambda: name)
        server = DrainingServer(listener, handle=partial(self.handle, named), spawn=spawn)
        self.servers.append(server)
        return server

    def timeout_ctx(self) -> RequestWait:
        return RequestWait(self.cfg.keepalive, self.waiting)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        sock.settimeout(self.STALL)
        try:
            result = super().handle_request(listener_name, req, PatientSocket(sock), addr)
            sock.settimeout(self.DISCARD)
            self.discard_body(req)
        except (TimeoutError, ParseException):
            # The base class takes this for "close the connection" and logs no traceback.
            raise StopIteration from None
        finally:
            sock.settimeout(None)
        return result

    def discard_body(self, req: Any) -> None:
        """Read what the application left unread, so that the next request starts where it should.

        The base class would, but without a limit, and would answer a fault in it a second time.
        """
        unread = 0
        while data := req.body.read(65536):
            unread += len(data)
            if unread > self.UNREAD:
                raise StopIteration

    def handle_exit(self, *_: Any) -> None:
        gevent.spawn(self.drain)

    def drain(self) -> None:
        """Stop listening before the first client is sent away.

        The base class does so up to a second later. Until then, whoever was told "Connection:
        close" would come back here, and be reset where that met the closing.
        """
        for server in self.servers:
            server.close()
        self.alive = False
        gevent.sleep(self.LINGER)
        # Connections without a request: otherwise they would use up the whole grace time.
        for wait in list(self.waiting):
            gevent.get_hub().loop.run_callback(wait.give_up)


class PatientSocket:
    """A socket on which the time limit is for each piece of an answer, not for the whole.

    gevent's own sendall would cut off a slow client that reads all the time.
    """

    def __init__(self, sock: Any) -> None:
        self.sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self.sock.send(rest) :]


class RequestWait(Timeout):
    """The time until a request's head is in. Passing it, or raising it, closes the connection."""

    def __init__(self, seconds: float, waiting: set[RequestWait]) -> None:
        super().__init__(seconds, False)
        self.waiting = waiting
        self.greenlet = gevent.getcurrent()

    def __enter__(self) -> RequestWait:
        self.waiting.add(self)
        super().__enter__()
        return self

    def give_up(self) -> None:
        """Raise it, unless a request has come since. In the hub, where nothing comes between."""
        if self in self.waiting:
            self.greenlet.throw(self)

    def __exit__(self, *exc_info: Any) -> Any:
        self.waiting.discard(self)
        return super().__exit__(*exc_info)


class DrainingServer(StreamServer):
    """A server that takes in what is already connected before it closes its listening socket."""

    # Connections taken in at a time: the rest of a burst is for the other workers, or one of them
    # would serve all of it until the connections end.
    max_accept = 1

    def close(self) -> None:
        if not self.closed:
            self.max_accept = 2048  # gunicorn's backlog
            self._do_read()
        super().close()


def http_date(timestamp: float | None = None) -> str:
    """The time as the Date header has it (RFC 9110 section 5.6.7), formatted once a second."""
    return _format_date(int(time.time() if timestamp is None else timestamp))


@lru_cache(maxsize=1)
def _format_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
