"""Which pages of other origins may call the service (Fetch standard, section 3.3)."""

from __future__ import annotations

import re

from flask import Flask, Response
from flask_cors import CORS

from todo_service.settings import Settings


def init_app(app: Flask, settings: Settings) -> None:
    """Allow the origins of the settings, and no other. Without any, no response changes."""
    if not settings.cors_origins:
        return
    CORS(
        app,
        # Compiled, because flask-cors would take a string with brackets (an IPv6 address) for a
        # pattern, and let other origins in.
        origins=[re.compile(re.escape(origin) + r"\Z") for origin in settings.cors_origins],
        methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        # Whatever a preflight asks for: what traces a page adds headers of its own to each request.
        allow_headers="*",
        expose_headers=[
            "ETag",
            "Idempotency-Replayed",
            "Link",
            "Location",
            "Retry-After",
            "X-Request-ID",
        ],
        # A page that sends cookies along must not fail. Only an embedder's authenticator may read
        # them. With this, flask-cors answers with the page's origin, never with "*".
        supports_credentials=True,
        max_age=3600,
        vary_header=False,
        intercept_exceptions=False,  # Flask runs after_request for errors too
    )

    @app.after_request
    def vary_by_origin(response: Response) -> Response:
        # On every response: a cache must not give an allowed page one without CORS headers.
        response.vary.add("Origin")
        return response
