"""The contract and how to find it: the index, openapi.yaml, and a page to try it out."""

from __future__ import annotations

from pathlib import Path

import flask_swagger_ui  # type: ignore[import-untyped]
from flask import Blueprint, Response, current_app, send_file, send_from_directory
from werkzeug.exceptions import NotFound

from todo_service.web.body import respond
from todo_service.web.conditions import answer_304_if_known
from todo_service.web.routing import path_of

_PACKAGE = Path(__file__).parent.parent
_PAGE = _PACKAGE / "swagger"
_DIST = Path(flask_swagger_ui.__file__).parent / "dist"

# Only what the page loads. The package's own blueprint would serve a page with an inline script.
_ASSETS = {
    "favicon-32x32.png": _DIST,
    "init.js": _PAGE,
    "swagger-ui-bundle.js": _DIST,
    "swagger-ui.css": _DIST,
}

# Swagger UI draws its icons from data: URLs.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_ASSET_LIFETIME = 3600  # seconds

docs = Blueprint("docs", __name__)


# The absolute form of the index may have no path at all: GET http://example.com HTTP/1.1 (RFC 9112
# section 3.2.2).
@docs.get("/", strict_slashes=False)
def show_index() -> Response:
    return respond(
        {
            "name": "todo-service",
            "version": current_app.config["VERSION"],
            "docs": path_of(".show_page"),
            "openapi": path_of(".show_document"),
        }
    )


@docs.get("/openapi.yaml")
def show_document() -> Response:
    # RFC 9512 names the type. conditional=False, here and below: Flask would also evaluate dates
    # and ranges, and answer them with errors in a form of its own.
    path = _PACKAGE / "openapi.yaml"
    return answer_304_if_known(send_file(path, mimetype="application/yaml", conditional=False))


# /docs without the slash gives the same answer, and no redirect: Werkzeug's names a scheme and a
# host, and behind a proxy that ends TLS the scheme would be wrong.
@docs.get("/docs/", strict_slashes=False)
def show_page() -> Response:
    response = answer_304_if_known(send_file(_PAGE / "index.html", conditional=False))
    response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY
    return response


@docs.get("/docs/<path:path>")
def show_asset(path: str) -> Response:
    folder = _ASSETS.get(path)
    if folder is None:
        raise NotFound
    return answer_304_if_known(
        send_from_directory(folder, path, max_age=_ASSET_LIFETIME, conditional=False)
    )
