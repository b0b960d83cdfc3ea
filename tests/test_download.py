"""The GET that reads an issuer's keys: it ends in time, and trusts only whom it should."""

from __future__ import annotations

import datetime
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.conftest import ENVIRON, ROOT
from tests.issuer import Issuer
from todo_service.download import DownloadError, download

# The same code runs on threads (commands, embedders) and, under gunicorn, on gevent.
ON_THREADS = ""
ON_GEVENT = "from gevent import monkey; monkey.patch_all()\n"


def run(start: str, code: str) -> str:
    """Run it in an interpreter of its own, which has to end while a server goes on and on."""
    command = [sys.executable, "-c", start + code]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRON, timeout=30, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


class Drip(socketserver.ThreadingTCPServer):
    """A server that sends what starts like a TLS handshake, a byte at a time, and never ends it."""

    def __init__(self) -> None:
        closing = self.closing = threading.Event()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    self.request.sendall(b"\x16\x03\x03\x3f\xff")
                    while not closing.wait(0.05):
                        self.request.sendall(b"\x02")

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def serve() -> Iterator[Callable[[socketserver.TCPServer], int]]:
    """Serves in a thread until the test ends; returns the port."""
    running: list[tuple[socketserver.TCPServer, threading.Thread]] = []

    def start(server: socketserver.TCPServer) -> int:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        running.append((server, thread))
        return server.server_address[1]

    yield start
    for server, thread in running:
        if isinstance(server, Drip):
            server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


GIVE_UP = """
from todo_service.download import download
try:
    download({url!r}, 0.5, 1_000_000)
except TimeoutError:
    print("gave up")
"""


@pytest.mark.parametrize("start", [ON_THREADS, ON_GEVENT], ids=["threads", "gevent"])
@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_never_ends_is_given_up(issuer: Issuer, part: str, start: str) -> None:
    issuer.drip = part

    assert run(start, GIVE_UP.format(url=issuer.url)) == "gave up"


@pytest.mark.parametrize("start", [ON_THREADS, ON_GEVENT], ids=["threads", "gevent"])
def test_a_tls_handshake_that_never_ends_is_given_up(
    serve: Callable[[socketserver.TCPServer], int], start: str
) -> None:
    url = f"https://127.0.0.1:{serve(Drip())}/jwks"

    assert run(start, GIVE_UP.format(url=url)) == "gave up"


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError):
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/", 0.2, 100)


@pytest.mark.parametrize("start", [ON_THREADS, ON_GEVENT], ids=["threads", "gevent"])
def test_a_process_that_ends_does_not_wait_for_its_fetch(issuer: Issuer, start: str) -> None:
    issuer.drip = "body"
    code = f"""
import threading
from todo_service.jwks import Jwks
Jwks.WAIT, Jwks.DEADLINE = 0.1, 600.0
try:
    Jwks({issuer.url!r}).find("unknown")
except Exception as error:
    print(type(error).__name__, [thread.name for thread in threading.enumerate()][1])
"""
    assert run(start, code) == "ServiceUnavailable jwks"


def test_a_body_over_the_limit_is_refused_before_its_end(issuer: Issuer) -> None:
    issuer.body = b" " * 1000
    assert download(issuer.url, 10, 1000) == issuer.body

    issuer.drip = "body"
    with pytest.raises(DownloadError, match="more than 2 bytes"):
        download(issuer.url, 10, 2)


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.path} of {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def https(
    serve: Callable[[socketserver.TCPServer], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """The port of an HTTPS server, whose certificate names localhost and is trusted."""
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "todo-service tests")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    return serve(server)


def test_a_server_with_a_trusted_certificate_is_read(https: int) -> None:
    body = download(f"https://localhost:{https}/jwks?v=2", 10, 1000)

    assert body == f"/jwks?v=2 of localhost:{https}".encode()


def test_a_certificate_of_another_host_is_refused(https: int) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        download(f"https://127.0.0.1:{https}/", 10, 1000)


def test_a_certificate_that_nobody_vouches_for_is_refused(
    https: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(ssl.SSLCertVerificationError):
        download(f"https://localhost:{https}/", 10, 1000)


class Proxy(socketserver.StreamRequestHandler):
    """Takes CONNECT (RFC 9110 section 9.3.6), remembers it, and passes bytes on."""

    seen: list[tuple[str, str]] = []

    def handle(self) -> None:
        lines = [line.decode().strip() for line in iter(self.rfile.readline, b"\r\n")]
        target = lines[0].split()[1]
        credentials = [line for line in lines if line.startswith("Proxy-Authorization")]
        self.seen.append((target, "".join(credentials)))
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as upstream:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            up = threading.Thread(target=pump, args=(self.connection, upstream))
            up.start()
            pump(upstream, self.connection)
            up.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://me:p%40ss@127.0.0.1:{}/"])
def test_the_proxy_of_the_environment_is_used(
    https: int,
    serve: Callable[[socketserver.TCPServer], int],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    monkeypatch.setattr(Proxy, "seen", [])
    port = serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy))
    monkeypatch.setenv("HTTPS_PROXY", form.format(port))

    body = download(f"https://localhost:{https}/jwks", 10, 1000)

    assert body == f"/jwks of localhost:{https}".encode()
    credentials = "Proxy-Authorization: Basic bWU6cEBzcw==" if "@" in form else ""
    assert Proxy.seen == [(f"localhost:{https}", credentials)]
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert download(f"https://localhost:{https}/jwks", 10, 1000) == body
    assert len(Proxy.seen) == 1
