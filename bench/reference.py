"""The usual stack for such a service: FastAPI, SQLModel and psycopg2, in one file.

Written as the documentation of FastAPI and SQLModel teaches, with what experience adds to it: a
pool as large as the number of requests in flight, the token checked without a thread of its own.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Literal

import jwt
from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import BigInteger, Column, DateTime, Identity
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Field, Session, SQLModel, create_engine, desc, select

Status = Literal["incomplete", "complete"]
now = partial(datetime.now, UTC)


class User(SQLModel, table=True):
    __tablename__ = "users"
    id: str = Field(primary_key=True)


class Task(SQLModel, table=True):
    __tablename__ = "tasks"
    user_id: str = Field(primary_key=True, foreign_key="users.id")
    id: int = Field(None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    title: str
    description: str | None = None
    status: str = "incomplete"
    created_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(default_factory=now, sa_type=DateTime(timezone=True))


class NewTask(SQLModel):
    title: str = Field(min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=5000)
    status: Status = "incomplete"


class TaskChanges(SQLModel):
    title: str | None = Field(default=None, min_length=1, max_length=255)
    description: str | None = Field(default=None, max_length=5000)
    status: Status | None = None


class PublicTask(SQLModel):
    id: int
    user_id: str
    title: str
    description: str | None
    status: Status
    created_at: datetime
    updated_at: datetime


engine = create_engine(
    "postgresql+psycopg2://" + os.environ["DATABASE_URL"].partition("://")[2],
    pool_pre_ping=True,
    # Connections over pool_size would be opened and closed with each request.
    pool_size=16,
    max_overflow=0,
)
app = FastAPI()


def open_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


async def check_owner(
    user_id: str, credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]
) -> str:
    try:
        token, options = credentials.credentials, {"require": ["exp", "sub"]}
        claims = jwt.decode(token, os.environ["JWT_SECRET"], ["HS256"], options=options, leeway=30)
    except jwt.PyJWTError:
        raise HTTPException(401, "Unauthorized", {"WWW-Authenticate": "Bearer"}) from None
    if claims["sub"] != user_id:
        raise HTTPException(403, "Forbidden")
    return user_id


OpenSession = Annotated[Session, Depends(open_session)]
Owner = Annotated[str, Depends(check_owner)]


def save(session: Session, task: Task) -> Task:
    session.add(task)
    session.commit()
    session.refresh(task)
    return task


@app.get("/health")
async def is_alive() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/api/{user_id}/tasks", response_model=list[PublicTask])
def list_tasks(
    owner: Owner, session: OpenSession, limit: Annotated[int | None, Query(ge=1, le=1000)] = None
) -> list[Task]:
    newest_first = desc(Task.created_at), desc(Task.id)
    query = select(Task).where(Task.user_id == owner).order_by(*newest_first).limit(limit)
    return list(session.exec(query).all())


@app.post("/api/{user_id}/tasks", response_model=PublicTask, status_code=201)
def create_task(owner: Owner, session: OpenSession, task: NewTask) -> Task:
    session.exec(insert(User).values(id=owner).on_conflict_do_nothing())
    return save(session, Task.model_validate(task, update={"user_id": owner}))


@app.get("/api/{user_id}/tasks/{task_id}", response_model=PublicTask)
def get_task(owner: Owner, session: OpenSession, task_id: int) -> Task:
    task = session.exec(select(Task).where(Task.user_id == owner, Task.id == task_id)).first()
    if task is None:
        raise HTTPException(404, "Task not found")
    return task


@app.put("/api/{user_id}/tasks/{task_id}", response_model=PublicTask)
def update_task(owner: Owner, session: OpenSession, task_id: int, changes: TaskChanges) -> Task:
    task = get_task(owner, session, task_id)
    task.sqlmodel_update(changes.model_dump(exclude_unset=True) | {"updated_at": now()})
    return save(session, task)
