"""openapi.yaml says what the code, the schemas and the database say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from flask import Flask
from marshmallow import Schema, validate
from openapi_spec_validator import validate as validate_document
from psycopg import sql

import todo_service
from tests.conftest import User
from tests.contract.conftest import DOCUMENT
from todo_service import schemas
from todo_service.auth import guard
from todo_service.schemas import NEW_TASK, TASK_CHANGES

METHODS = {"get", "put", "post", "delete", "patch"}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            yield method.upper(), path, item[method]


def resolve(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """The node itself, or what its $ref points at."""
    while "$ref" in node:
        target: Any = document
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        node = target
    return node


def check(connection: psycopg.Connection, name: str) -> str:
    """The definition of a CHECK constraint, as PostgreSQL understood it."""
    (definition,) = connection.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", (name,)
    ).fetchone()
    return definition


def bounds(definition: str) -> list[int]:
    return [int(number) for number in re.findall(r"[<>]= (\d+)", definition)]


def longest(schema: Schema, field: str) -> list[int]:
    validators = schema.fields[field].validators
    return [v.max for v in validators if isinstance(v, validate.Length)]


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    validate_document(document)
    assert document["openapi"].startswith("3.1.")


def test_the_document_is_served_as_it_is(server: str) -> None:
    answer = httpx.get(f"{server}/openapi.yaml")

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/yaml"
    assert answer.content == DOCUMENT.read_bytes()


def test_the_version_of_the_document_is_the_projects(document: dict[str, Any], server: str) -> None:
    assert document["info"]["version"] == todo_service.__version__
    assert httpx.get(f"{server}/").json() == {
        "name": "todo-service",
        "version": todo_service.__version__,
        "docs": "/docs/",
        "openapi": "/openapi.yaml",
    }


def test_every_route_is_documented_and_every_documented_operation_has_a_route(
    app: Flask, document: dict[str, Any]
) -> None:
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        # The document says once where they work.
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }

    assert {(method, path) for method, path, _ in operations(document)} == routes


def test_every_parameter_of_a_path_is_documented(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        shared = document["paths"][path].get("parameters", [])
        parameters = [resolve(document, p) for p in shared + operation.get("parameters", [])]
        in_path = {p["name"] for p in parameters if p["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))


def test_operations_under_api_need_a_token_and_document_its_errors(
    document: dict[str, Any],
) -> None:
    assert document["security"] == [{"bearerAuth": []}]
    for _, path, operation in operations(document):
        if path.startswith("/api/"):
            assert "security" not in operation
            assert {"400", "401", "403", "500", "503"} <= operation["responses"].keys()
        else:
            assert operation["security"] == []


def test_every_error_has_an_example_and_an_x_request_id(document: dict[str, Any]) -> None:
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            response = resolve(document, answer)
            assert "X-Request-ID" in response["headers"]
            if status < "400":
                continue
            body = response["content"]["application/json"]
            assert body["schema"] == {"$ref": "#/components/schemas/ErrorMessage"}
            examples = [e["value"] for e in body.get("examples", {}).values()]
            for example in examples or [body["example"]]:
                assert list(example) == ["error"]


@pytest.mark.parametrize("body", ["NewTask", "TaskChanges"])
def test_text_limits_are_those_of_the_schemas_and_of_the_database(
    document: dict[str, Any], connection: psycopg.Connection, body: str
) -> None:
    schema = {"NewTask": NEW_TASK, "TaskChanges": TASK_CHANGES}[body]
    properties = document["components"]["schemas"][body]["properties"]
    title = resolve(document, properties["title"])
    description = resolve(document, properties["description"])

    assert longest(schema, "title") == [title["maxLength"]]
    assert bounds(check(connection, "tasks_title_length_check")) == [
        title["minLength"],
        title["maxLength"],
    ]
    assert longest(schema, "description") == [description["maxLength"]]
    assert bounds(check(connection, "tasks_description_length_check")) == [description["maxLength"]]


def test_statuses_are_those_of_the_schemas_and_of_the_database(
    document: dict[str, Any], connection: psycopg.Connection
) -> None:
    documented = document["components"]["schemas"]["Status"]["enum"]

    assert re.findall(r"'(\w+)'", check(connection, "tasks_status_check")) == documented
    for schema in (
        *(NEW_TASK, TASK_CHANGES, schemas.STATUS_CHANGE),
        *(schemas.LIST_QUERY, schemas.STATUS_QUERY),
    ):
        (one_of,) = schema.fields["status"].validators
        assert list(one_of.choices) == documented


def test_other_limits_are_those_of_the_code_and_of_the_database(
    document: dict[str, Any], connection: psycopg.Connection
) -> None:
    components = document["components"]
    task_id, limit, user_id, key = (
        resolve(document, node["schema"])
        for node in (
            components["parameters"][name]
            for name in ("TaskIdInPath", "Limit", "UserIdInPath", "IdempotencyKey")
        )
    )

    assert (task_id["minimum"], task_id["maximum"]) == (1, schemas.MAX_ID)
    assert (limit["minimum"], limit["maximum"]) == (1, schemas.MAX_LIMIT)
    of_changes = components["parameters"]["ChangesLimit"]["schema"]
    assert of_changes == limit | {"default": schemas.CHANGES_QUERY.fields["limit"].load_default}
    assert user_id["maxLength"] == guard.USER_ID_BYTES
    assert bounds(check(connection, "users_id_length_check")) == [1, user_id["maxLength"]]
    low, high = bounds(check(connection, "idempotency_keys_key_length_check"))
    for form in ("{}", '"{}"'):
        for length in (low, high):
            assert re.search(key["pattern"], form.format("x" * length))
        for length in (low - 1, high + 1):
            assert not re.search(key["pattern"], form.format("x" * length))
    small = f"{schemas.MAX_BODY // 1024} KiB"
    for name in ("TaskPatch", "StatusPatch"):
        assert small in components["requestBodies"][name]["description"]
    create = document["paths"]["/api/{user_id}/tasks"]["post"]
    assert small in create["requestBody"]["description"]


def test_bodies_have_the_fields_of_the_schemas(document: dict[str, Any]) -> None:
    bodies = {
        "NewTask": NEW_TASK, "TaskChanges": TASK_CHANGES, "StatusChange": schemas.STATUS_CHANGE,
    }  # fmt: skip
    for body, schema in bodies.items():
        described = document["components"]["schemas"][body]
        ignored = {
            name for name, value in described["properties"].items() if value == {"readOnly": True}
        }
        assert described["additionalProperties"] is False
        assert described["properties"].keys() - ignored == schema.fields.keys()
        assert set(described.get("required", [])) == {
            name for name, field in schema.fields.items() if field.required
        }
        task = document["components"]["schemas"]["Task"]["properties"]
        assert ignored == (task.keys() - schema.fields.keys() if schema.ignored else set())


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a part of the document."""
    if isinstance(node, dict):
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(part)


def test_every_operation_begins_by_saying_what_it_does(document: dict[str, Any]) -> None:
    summaries, sentences = [], []
    for _, _, operation in operations(document):
        summaries.append(operation["summary"])
        sentences.append(re.split(r"[.;] ", operation["description"])[0])

    # What a tool shows of an operation may be the one or the other alone.
    assert len(set(summaries)) == len(set(sentences)) == len(summaries)
    for sentence in sentences:
        assert re.match(r"[A-Z][a-z]+s\b", sentence), sentence
    assert all(tag["description"] for tag in document["tags"])


def test_generators_find_nothing_that_they_take_for_something_else(
    document: dict[str, Any],
) -> None:
    for node in nodes(document):
        # Types that say nothing, and a model called after what is not meant.
        assert not node.keys() & {"oneOf", "anyOf", "allOf", "not"}
        assert "type" in node or not node.keys() & {"const", "enum"}
        if isinstance(pattern := node.get("pattern"), str):
            assert pattern.startswith("^")


def schemas_of(document: dict[str, Any], node: Any) -> Iterator[dict[str, Any]]:
    """Every object schema that a part of the document leads to."""
    if isinstance(node, list):
        for part in node:
            yield from schemas_of(document, part)
    elif isinstance(node, dict):
        node = resolve(document, node)
        if node.get("type") == "object" and "properties" in node:
            yield node
        for part in node.values():
            yield from schemas_of(document, part)


def test_what_is_accepted_names_all_its_fields_and_what_is_sent_may_get_more(
    document: dict[str, Any],
) -> None:
    accepted, sent = [], []
    for _, _, operation in operations(document):
        accepted += schemas_of(document, operation.get("requestBody", {}))
        sent += schemas_of(document, list(operation["responses"].values()))

    assert accepted and all(schema["additionalProperties"] is False for schema in accepted)
    assert sent and not any("additionalProperties" in schema for schema in sent)


def assert_exact(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """The value has the properties of the schema, all of them and no others."""
    schema = resolve(document, schema)
    if schema.get("type") == "array":
        assert value
        for item in value:
            assert_exact(document, schema["items"], item)
    elif schema.get("type") == "object":
        assert set(schema["required"]) <= value.keys() <= schema["properties"].keys()
        for name in value:
            assert_exact(document, schema["properties"][name], value[name])


def test_the_service_sends_what_is_documented_and_no_more(
    document: dict[str, Any], alice: User
) -> None:
    alice.delete(alice.path(alice.create()))
    task = alice.path(alice.create())
    answers = {
        "listTasks": alice.get(alice.tasks),
        "createTask": alice.post(alice.tasks, json={"title": "x"}),
        "updateTasks": alice.patch(f"{alice.tasks}?status=complete", json={"status": "complete"}),
        "deleteTasks": alice.delete(f"{alice.tasks}?status=complete"),
        "getTask": alice.get(task),
        "putTask": alice.put(task, json={"title": "x"}),
        "updateTask": alice.patch(task, json={"title": "x"}),
        "completeTask": alice.patch(f"{task}/complete"),
        "reopenTask": alice.patch(f"{task}/incomplete"),
        "listChanges": alice.get(f"{alice.tasks}/changes"),
        "pushChanges": alice.post(
            f"{alice.tasks}/changes",
            json={"tasks": [{"key": "k", "title": "x"}], "deleted": [{"id": schemas.MAX_ID}]},
        ),
        "getIndex": alice.get("/"),
        "getHealth": alice.get("/health"),
        "getReadiness": alice.get("/ready"),
    }
    errors = [
        alice.get(f"{alice.tasks}?x=1"),
        httpx.get(alice.server + alice.tasks),
        alice.get("/api/somebody-else/tasks"),
        alice.get(f"{alice.tasks}/{schemas.MAX_ID}"),
        alice.post(task),
        alice.put(task, json={"title": "x"}, headers={"If-Match": '"0"'}),
        alice.post(alice.tasks, content=b"x" * 70_000),
        alice.post(alice.tasks, content=b"x"),
    ]

    for _, _, operation in operations(document):
        for status, documented in operation["responses"].items():
            content = resolve(document, documented).get("content", {})
            if status < "300" and "application/json" in content:
                answer = answers.pop(operation["operationId"])
                assert answer.status_code == int(status)
                assert_exact(document, content["application/json"]["schema"], answer.json())
    assert not answers
    assert [e.status_code for e in errors] == [400, 401, 403, 404, 405, 412, 413, 415]
    for answer in errors:
        assert_exact(document, document["components"]["schemas"]["ErrorMessage"], answer.json())


def test_no_two_types_that_a_generator_of_clients_makes_have_the_same_name(
    document: dict[str, Any],
) -> None:
    components = document["components"]
    names = [
        name for kind in ("schemas", "parameters", "requestBodies") for name in components[kind]
    ]

    assert len(names) == len(set(names))
    # Of the global types of TypeScript, those that a name here could hide.
    assert not set(names) & {"Error", "Request", "Response", "Headers", "Date", "Event", "Object"}


@pytest.mark.slow
def test_what_a_blank_title_is_the_document_the_schemas_and_the_database_agree(
    document: dict[str, Any], connection: psycopg.Connection
) -> None:
    # Every character that PostgreSQL text can hold, but for the planes without white space.
    characters = [chr(n) for n in range(1, 0x10000) if not 0xD800 <= n <= 0xDFFF]
    pattern = re.compile(document["components"]["schemas"]["Title"]["pattern"])
    documented = {c for c in characters if not pattern.search(c)}
    validated = {c for c in characters if NEW_TASK.validate({"title": c})}
    expression = check(connection, "tasks_title_blank_check").removeprefix("CHECK ")
    query = sql.SQL("SELECT title FROM unnest(%s::text[]) AS title WHERE NOT {}")
    rows = connection.execute(query.format(sql.SQL(expression)), (characters,))

    assert documented == validated == {title for (title,) in rows}
    assert not pattern.search("a\0b")
    assert len(documented) > 20
