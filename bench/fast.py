"""The measured routes with less around them: Starlette, asyncpg and orjson on uvicorn with uvloop.

What Python can do where these four routes are all. Like the service it checks owner and fields,
remembers verified tokens, and sends one statement per request. It has no pages, entity tags,
idempotency keys or clock of changes, no limits for slow clients, and errors in plain text.
"""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import asyncpg
import jwt
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FIELDS = "id, user_id, title, description, status, created_at, updated_at"
GET = f"SELECT {FIELDS} FROM tasks WHERE user_id = $1 AND id = $2"
LIST = f"SELECT {FIELDS} FROM tasks WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2"
CREATE = f"""
WITH owner AS (INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING)
INSERT INTO tasks (user_id, title, description, status) VALUES ($1, $2, $3, $4)
RETURNING {FIELDS}
"""
UPDATE = f"""
UPDATE tasks
SET title = coalesce($3, title), description = CASE WHEN $4 THEN $5 ELSE description END,
    status = coalesce($6, status), updated_at = greatest(now(), updated_at + interval '1 us')
WHERE user_id = $1 AND id = $2
RETURNING {FIELDS}
"""


@lru_cache(10_000)
def verify(token: str) -> tuple[str, float]:
    """The user, and when the token ends."""
    options = {"require": ["exp", "sub"]}
    claims = jwt.decode(token, os.environ["JWT_SECRET"], ["HS256"], options=options, leeway=30)
    return claims["sub"], claims["exp"] + 30


def owner(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    try:
        user, end = verify(token)
    except jwt.PyJWTError:
        user, end = "", 0.0
    if scheme.lower() != "bearer" or end <= time.time():
        raise HTTPException(401, "Unauthorized", {"WWW-Authenticate": "Bearer"})
    if user != request.path_params["user_id"]:
        raise HTTPException(403, "Forbidden")
    return user


async def read(request: Request) -> dict[str, str | None]:
    """The fields of a task that were sent, checked."""
    try:
        sent = orjson.loads(await request.body())
    except orjson.JSONDecodeError:
        sent = None
    if not isinstance(sent, dict) or not sent or sent.keys() - {"title", "description", "status"}:
        raise HTTPException(400, "Request body must be a JSON object with fields of a task")
    title, description = sent.get("title", "-"), sent.get("description") or ""
    if not isinstance(title, str) or not title.strip() or len(title) > 255:
        raise HTTPException(400, "Title must be 1 to 255 characters")
    if not isinstance(description, str) or len(description) > 5000:
        raise HTTPException(400, "Description must be 5000 characters or less")
    if sent.get("status", "complete") not in ("complete", "incomplete"):
        raise HTTPException(400, "Invalid status value")
    return sent


def answer(found: Any, status: int = 200) -> Response:
    if found is None:
        raise HTTPException(404, "Task not found")
    # `default` turns asyncpg's rows into objects.
    body = orjson.dumps(found, default=dict, option=orjson.OPT_UTC_Z)
    return Response(body, status, media_type="application/json")


async def list_tasks(request: Request) -> Response:
    user, limit = owner(request), request.query_params.get("limit", "1000")
    if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
        raise HTTPException(400, "Limit must be an integer from 1 to 1000")
    return answer(await request.app.state.pool.fetch(LIST, user, int(limit)))


async def get_task(request: Request) -> Response:
    key = owner(request), request.path_params["task_id"]
    return answer(await request.app.state.pool.fetchrow(GET, *key))


async def create_task(request: Request) -> Response:
    user, sent = owner(request), await read(request)
    if "title" not in sent:
        raise HTTPException(400, "Title is required")
    values = sent["title"], sent.get("description"), sent.get("status", "incomplete")
    return answer(await request.app.state.pool.fetchrow(CREATE, user, *values), 201)


async def update_task(request: Request) -> Response:
    key, sent = (owner(request), request.path_params["task_id"]), await read(request)
    values = sent.get("title"), "description" in sent, sent.get("description"), sent.get("status")
    return answer(await request.app.state.pool.fetchrow(UPDATE, *key, *values))


async def keep(connection: Any) -> None:
    """asyncpg would reset the session after each request, which costs a round trip."""


@asynccontextmanager
async def connect(app: Starlette) -> AsyncIterator[None]:
    url = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(url, min_size=16, max_size=16, reset=keep) as app.state.pool:
        yield


routes = [
    Route("/health", lambda _: Response()),
    Route("/api/{user_id}/tasks", list_tasks),
    Route("/api/{user_id}/tasks", create_task, methods=["POST"]),
    Route("/api/{user_id}/tasks/{task_id:int}", get_task),
    Route("/api/{user_id}/tasks/{task_id:int}", update_task, methods=["PUT"]),
]
app = Starlette(routes=routes, lifespan=connect)
