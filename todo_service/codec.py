"""JSON in and out."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson
from flask import Response
from werkzeug.datastructures import Headers


def encode(value: object) -> bytes:
    """Compact JSON; times, naive ones in UTC, as RFC 3339 with Z."""
    return orjson.dumps(value, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def respond(value: object, status: int = 200) -> Response:
    """A JSON response. Rows go out as they come from the driver; nothing copies them first."""
    return JsonResponse(encode(value), status, content_type="application/json")


class JsonResponse(Response):
    """A response that has its whole body, and the length of it, from the start."""

    def get_wsgi_headers(self, environ: dict[str, Any]) -> Headers:
        """The headers as they are: Werkzeug would copy and check each of them once more.

        But for 304, which loses those of a body.
        """
        if self.status_code == 304:
            return super().get_wsgi_headers(environ)
        return self.headers


def decode(raw: bytes) -> Any:
    """Parse RFC 8259 JSON: UTF-8, no NaN or Infinity. Raises ValueError for anything else.

    Not by orjson, which stops at a lone surrogate: the standard library lets it through to the
    schema, and that can name the field.
    """
    try:
        return _DECODER.decode(raw.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_int(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # too long for int(), and for any field of ours
        return float(digits)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_parse_int)
