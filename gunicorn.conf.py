"""How the service is served. gunicorn reads this file from the working directory by itself."""

from gevent import monkey

# Before anything else is imported: psycopg and its pool decide on import whether their locks and
# waits let other requests run.
monkey.patch_all()

import ctypes
import os
import resource
import socket
import sys
from contextlib import suppress

from dotenv import load_dotenv
from gunicorn.http.errors import ParseException
from gunicorn.instrument.statsd import Statsd

from todo_service.log import TIME_FORMAT, Fields, JsonFormatter
from todo_service.ops.migrate import apply_schema
from todo_service.serving.unparsed import answer_malformed_body
from todo_service.serving.worker import Worker
from todo_service.settings import Settings, SettingsError

load_dotenv()
try:
    settings = Settings.from_env()
except SettingsError as error:
    sys.exit(f"todo-service cannot start: {error}")

M_MMAP_THRESHOLD = -3
with suppress(AttributeError):  # another C library than glibc
    # The memory of bodies and answers goes back to the system. By itself, glibc raises this limit
    # with the first large one, and keeps all that is below it.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 32 * 1024)


class ServiceLogger(Statsd):
    """The service logs each request itself; this silences gunicorn's access log for good.

    Leaving `accesslog` unset would not: platforms turn it on through GUNICORN_CMD_ARGS, which
    outranks this file. gunicorn's other lines look like the service's. The base class is the one
    that gunicorn takes for --statsd-host where no class is set; without that option it sends
    nothing.
    """

    error_fmt = "time=%(asctime)s level=%(levelname)s logger=%(name)s pid=%(process)d %(message)s"
    datefmt = TIME_FORMAT
    access_log_enabled = False

    def setup(self, cfg):
        super().setup(cfg)
        if settings.log_format == "json":
            for handler in self.error_log.handlers:
                handler.setFormatter(JsonFormatter())

    def access(self, *args, **kwargs):
        if self.sock is not None:
            super().access(*args, **kwargs)


logger_class = ServiceLogger
# IPv6 and IPv4, as the networks of some platforms are IPv6 alone.
host = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104
bind = f"{host}:{settings.port}"
workers = settings.web_concurrency
worker_class = Worker
# Load the app in the master: a bad setting stops the start with one line, workers share memory.
preload_app = True
# As many files as the system allows. A connection may take two, its socket and a file of /docs/
# that is sent on it, and some are for the database and the log: with all taken, nobody could be
# let in.
_, files = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
worker_connections = 1000 if files == resource.RLIM_INFINITY else min(1000, (files - 100) // 2)
# Longer than the idle timeout of the routers in front (Heroku 90 s): they, not we, close idle
# connections, so that none is closed while a request is on its way.
keepalive = 95
# Below the 30 s that platforms leave between SIGTERM and SIGKILL.
graceful_timeout = 20
# The whole head may have 32 KiB; serving/worker.py sees to that. These are limits within it.
# A user id of 1,024 bytes, percent-encoded, fits with a cursor; so does a token of nearly 8 KB.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# Each worker has a file here, by which the master sees that it is alive. In memory: a container may
# have nothing else to write to, and on a slow disk a worker would look dead.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
# A file goes out like any other answer, in pieces that a slow client has to take in time.
sendfile = False
# The service reads nothing of what proxies say about scheme and path but X-Forwarded-Prefix
# (web/routing.py). By default, gunicorn would refuse each request whose headers for the scheme
# disagree, and let a client behind a proxy on this machine set the path in a header.
secure_scheme_headers = {}
forwarder_headers = ""
# So it does not matter who sends them, and gunicorn need not parse each client's address to see.
forwarded_allow_ips = "*"
# gunicorn's socket for commands, which nothing here uses.
control_socket_disable = True


def on_starting(server):
    """In the master, first of all: refuse what serving/worker.py would serve without TLS."""
    if server.cfg.is_ssl:
        sys.exit("todo-service cannot start: TLS ends at the router; unset certfile and keyfile")


def when_ready(server):
    """In the master, before it forks: start the embedded PostgreSQL if there is no other."""
    for event in settings.warnings:
        server.log.warning(Fields(event=event))
    if settings.database_url is None:
        apply_schema(server.app.wsgi().extensions["database"].conninfo)


def post_worker_init(worker):
    """In each worker: connect now rather than during its first request."""
    worker.wsgi.register_error_handler(ParseException, answer_malformed_body)
    worker.wsgi.extensions["database"].pool.open()


def worker_exit(server, worker):
    """In each worker that stops: give its connections back."""
    worker.wsgi.extensions["database"].close()
