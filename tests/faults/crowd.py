"""A thousand clients in one thread, all of which stall."""

from __future__ import annotations

import resource
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Each client takes a file here. By itself, a shell may grant no more than 1,024.
_, FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


class Crowd:
    """Clients that all send the same, and then neither send nor read any more.

    With a `window`, the kernel takes in no more for them, so that a server is left with its answer.
    If they are `stubborn`, whoever is cut off comes again at once.
    """

    def __init__(
        self,
        port: int,
        count: int,
        sent: bytes,
        *,
        window: int | None = None,
        stubborn: bool = False,
    ) -> None:
        self.port = port
        self.count = count
        self.sent = sent
        self.window = window
        self.stubborn = stubborn
        self.finished = 0  # clients that have sent everything
        self.cut_off = 0
        self._events = select.epoll()
        self._clients: dict[int, tuple[socket.socket, memoryview]] = {}

    @contextmanager
    def running(self) -> Iterator[Crowd]:
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop,))
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()
            for client, _ in self._clients.values():
                client.close()
            self._events.close()

    def _run(self, stop: threading.Event) -> None:
        for _ in range(self.count):
            self._connect()
        while not stop.is_set():
            for number, event in self._events.poll(0.1):
                client, rest = self._clients[number]
                if event & (select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP):
                    self._leave(client)
                    continue
                with suppress(BlockingIOError, ConnectionError):
                    rest = rest[client.send(rest[: 64 * 1024]) :]
                    self._clients[number] = client, rest
                if not rest:
                    self.finished += 1
                    self._events.modify(client, select.EPOLLRDHUP)

    def _connect(self) -> None:
        client = socket.socket()
        client.setblocking(False)
        if self.window is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.window)
        with suppress(BlockingIOError):
            client.connect(("127.0.0.1", self.port))
        self._clients[client.fileno()] = client, memoryview(self.sent)
        self._events.register(client, select.EPOLLOUT | select.EPOLLRDHUP)

    def _leave(self, client: socket.socket) -> None:
        self.cut_off += 1
        self._events.unregister(client)
        del self._clients[client.fileno()]
        client.close()
        if self.stubborn:
            self._connect()
