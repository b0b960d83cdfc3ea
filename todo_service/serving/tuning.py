"""What patches gunicorn for speed, and nothing else: without the line in gunicorn.conf.py that
names it, everything works the same, a little slower."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import cache, lru_cache
from typing import Any

import gunicorn.http.wsgi
import gunicorn.util


def apply(_: Any, worker: Any) -> None:
    """gunicorn's post_fork hook: in a worker, before it begins."""
    # A worker asks for over twenty settings a request, and gunicorn finds each by two calls. They
    # do not change any more. Needless once Config keeps them as attributes.
    settings = worker.cfg.settings.items()
    vars(worker.cfg).update({name: setting.get() for name, setting in settings})
    # The Date header, formatted once a second. Needless once gunicorn does so.
    gunicorn.util.http_date = http_date
    # wsgi.errors, once a worker. Needless once gunicorn does not make one a request.
    wsgi: Any = gunicorn.http.wsgi
    wsgi.WSGIErrorsWrapper = cache(wsgi.WSGIErrorsWrapper)


def http_date(timestamp: float | None = None) -> str:
    """The time as the Date header has it (RFC 9110 section 5.6.7)."""
    return _format_date(int(time.time() if timestamp is None else timestamp))


@lru_cache(maxsize=1)
def _format_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
