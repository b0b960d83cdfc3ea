"""Flask, less what this service has no use for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from flask import Flask, Request
from werkzeug.routing import MapAdapter


class BoundedRequest(Request):
    @property
    def max_content_length(self) -> int | None:
        """MAX_CONTENT_LENGTH, but none for a body whose announced length is within it.

        Such a body ends by itself; for a limit, Werkzeug would put a stream of its own around it.
        """
        limit = super().max_content_length
        if limit is None or self.content_length is None or self.content_length > limit:
            return limit
        return None

    @max_content_length.setter
    def max_content_length(self, value: int | None) -> None:
        self._max_content_length = value


class App(Flask):
    request_class = BoundedRequest

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Take every view and hook as it is: none may be a coroutine (`async def`).

        Flask would look at each of them anew on each request.
        """
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Route by method and path alone: no route here is for one host or for WebSockets.

        Flask would encode the host by IDNA too, and find no route where that fails. Whoever embeds
        the app and sets SERVER_NAME or TRUSTED_HOSTS gets what they do in Flask.
        """
        if request is None or self.config["SERVER_NAME"] or self.config["TRUSTED_HOSTS"]:
            return super().create_url_adapter(request)
        return MapAdapter(
            self.url_map,
            server_name=request.host,
            script_name=quote(request.root_path),
            subdomain="",
            url_scheme=request.scheme,
            path_info=request.path,
            default_method=request.method,
            query_args=request.query_string.decode(errors="replace"),
        )
