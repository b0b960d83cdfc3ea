"""Flask, less one thing that this service has no use for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask


class App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Take every view and hook as it is: none may be a coroutine (`async def`).

        Flask would look at each of them anew on each request.
        """
        return func
