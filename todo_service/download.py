"""A GET that ends in time, whatever the server does."""

from __future__ import annotations

import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from socket import SHUT_RDWR, socket
from threading import Timer
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

CONNECT = 3.0  # seconds that an address of the host has to accept a connection


class DownloadError(Exception):
    """An answer came, but not what was asked for; the message says what it was."""


def download(url: str, seconds: float, max_bytes: int) -> bytes:
    """The body at this address, in so many seconds for all of it. Redirects are not followed.

    Two waits are not in that time: the look-up of the host's name, which has the system's limit,
    and that for further addresses of a host whose first one does not answer.
    """
    deadline = time.monotonic() + seconds
    parts = urlsplit(url)
    host = parts.hostname or ""
    headers = {
        "Host": parts.netloc.rpartition("@")[2],
        "User-Agent": "todo-service",
        "Accept": "application/json",
        "Connection": "close",
    }
    with closing(_connection(parts.scheme, host, parts.port)) as connection:
        connection.connect()
        connection.sock.settimeout(seconds)
        with cut_off_at(deadline, connection.sock):
            if parts.scheme == "https":
                context = ssl.create_default_context()
                connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
            target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise DownloadError(f"status {response.status}")
                body = response.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise DownloadError(f"more than {max_bytes} bytes")
    return body


def _connection(scheme: str, host: str, port: int | None) -> HTTPConnection:
    """To the host, or through the proxy of HTTPS_PROXY unless NO_PROXY exempts the host."""
    if scheme == "http":
        return HTTPConnection(host, port or 80, timeout=CONNECT)
    url = getproxies().get("https")
    if url is None or proxy_bypass(host):
        return HTTPConnection(host, port or 443, timeout=CONNECT)
    proxy = urlsplit(url if "://" in url else f"http://{url}")
    headers = {}
    if proxy.username is not None:
        user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
    connection = HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=CONNECT)
    connection.set_tunnel(host, port or 443, headers)
    return connection


@contextmanager
def cut_off_at(deadline: float, connection: socket) -> Iterator[None]:
    """End the connection at this time (monotonic), whatever is being done with it then.

    A socket's own time limit begins anew with each piece that comes.
    """
    handle = connection.dup()  # TLS takes the socket itself over.

    def hang_up() -> None:
        with suppress(OSError):  # The other side was faster.
            handle.shutdown(SHUT_RDWR)

    timer = Timer(deadline - time.monotonic(), hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        handle.close()
        if time.monotonic() >= deadline:
            raise TimeoutError  # Instead of what the reader made of the sudden end.
