"""Every row of the contract's error table, with its exact message; nothing is stored."""

from __future__ import annotations

import gzip
import json
import time

import httpx
import pytest
from flask import Flask
from marshmallow import ValidationError

from tests.conftest import User
from todo_service.schemas import MAX_PUSH, describe
from todo_service.web.body import read_body

JSON = {"Content-Type": "application/json"}
NOT_AN_OBJECT = "Request body must be a JSON object"
TITLE_LONG = "Title must be 255 characters or less"
DESCRIPTION_LONG = "Description must be 5000 characters or less"
STATUS = "Invalid status value. Must be 'incomplete' or 'complete'"
NO_FIELD = "At least one field (title, description or status) must be provided"

# For create and update alike.
EITHER = [
    ("", NOT_AN_OBJECT),
    ("   ", NOT_AN_OBJECT),
    ("null", NOT_AN_OBJECT),
    ('"title"', NOT_AN_OBJECT),
    ("1", NOT_AN_OBJECT),
    ('{"title": "x"', NOT_AN_OBJECT),
    ('{"title": "x"} {}', NOT_AN_OBJECT),
    ('{"title": NaN}', NOT_AN_OBJECT),
    ('{"title": Infinity}', NOT_AN_OBJECT),
    ("{'title': 'x'}", NOT_AN_OBJECT),
    ("[" * 60_000, NOT_AN_OBJECT),
    ('{"title":' * 7_000, NOT_AN_OBJECT),
    (b'{"title": "\xff"}', NOT_AN_OBJECT),
    ('{"title": "x"}'.encode("utf-16"), NOT_AN_OBJECT),
    ('\ufeff{"title": "x"}', NOT_AN_OBJECT),
    ('{"title": 5}', "Title must be a string"),
    ('{"title": ' + "9" * 10_000 + "}", "Title must be a string"),
    ('{"title": ["x"]}', "Title must be a string"),
    ('{"title": true}', "Title must be a string"),
    ('{"title": "%s"}' % ("x" * 256), TITLE_LONG),
    ('{"title": "%s"}' % ("\U0001f95b" * 256), TITLE_LONG),
    ('{"title": "x", "description": 5}', "Description must be a string"),
    ('{"title": "x", "description": {}}', "Description must be a string"),
    ('{"title": "x", "description": "%s"}' % ("x" * 5001), DESCRIPTION_LONG),
    ('{"title": "x", "status": "done"}', STATUS),
    ('{"title": "x", "status": "Complete"}', STATUS),
    ('{"title": "x", "status": ""}', STATUS),
    ('{"title": "x", "status": null}', STATUS),
    ('{"title": "x", "status": 1}', STATUS),
    ('{"title": "x", "status": ["complete"]}', STATUS),
    (r'{"title": "a\u0000b"}', "Title must not contain U+0000 or lone surrogates"),
    (r'{"title": "a\ud800b"}', "Title must not contain U+0000 or lone surrogates"),
    (r'{"title": "\udc00\ud800"}', "Title must not contain U+0000 or lone surrogates"),
    (
        r'{"title": "x", "description": "\u0000"}',
        "Description must not contain U+0000 or lone surrogates",
    ),
    (
        r'{"title": "x", "description": "\udfff"}',
        "Description must not contain U+0000 or lone surrogates",
    ),
    ('{"title": "x", "titel": 1}', "Unknown field: titel"),
    ('{"title": "x", "Title": "y"}', "Unknown field: Title"),
    (r'{"title": "x", "\ud800": 1}', r"Unknown field: \ud800"),
    ('{"title": "x", "_schema": 1}', "Unknown field: _schema"),
    (
        '{"zeta": 1, "status": "x", "description": 1, "title": 1, "alpha": 1}',
        f"Title must be a string; Description must be a string; {STATUS};"
        " Unknown field: alpha; Unknown field: zeta",
    ),
]
ON_CREATE = [
    ("[]", NOT_AN_OBJECT),
    ('[{"title": "x"}]', NOT_AN_OBJECT),
    ("{}", "Title is required"),
    ('{"title": null}', "Title is required"),
    ('{"title": ""}', "Title is required"),
    ('{"title": " \\t\\n\\u00a0\\u3000"}', "Title is required"),
    ('{"user_id": "mallory"}', "Title is required"),
    ('{"status": "x"}', f"Title is required; {STATUS}"),
]
ON_UPDATE = [
    ("[]", NOT_AN_OBJECT),
    ("{}", NO_FIELD),
    ('{"id": 1, "user_id": "mallory"}', NO_FIELD),
    ('{"title": null}', "Title cannot be empty"),
    ('{"title": ""}', "Title cannot be empty"),
    ('{"title": "   "}', "Title cannot be empty"),
    ('{"titel": 1}', "Unknown field: titel"),
]


def encode(body: str | bytes) -> bytes:
    return body if isinstance(body, bytes) else body.encode()


@pytest.mark.parametrize(("body", "message"), EITHER + ON_CREATE)
def test_a_bad_create_is_refused_and_stores_nothing(
    alice: User, body: str | bytes, message: str
) -> None:
    answer = alice.post(alice.tasks, content=encode(body), headers=JSON)

    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert alice.get(alice.tasks).json() == []


@pytest.mark.parametrize(
    ("method", "content_type"),
    [
        ("PUT", "application/json"),
        ("PATCH", "application/json"),
        ("PATCH", "application/merge-patch+json"),
    ],
)
@pytest.mark.parametrize(("body", "message"), EITHER + ON_UPDATE)
def test_a_bad_update_is_refused_and_changes_nothing(
    alice: User, method: str, content_type: str, body: str | bytes, message: str
) -> None:
    task = alice.create()

    answer = alice.request(
        method, alice.path(task), content=encode(body), headers={"Content-Type": content_type}
    )

    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert alice.get(alice.path(task)).json() == task


@pytest.mark.parametrize("verb", ["complete", "incomplete"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"completed": false}', "Unknown field: completed"),
        ('{"status": "incomplete"}', "Unknown field: status"),
        ('{"b": 1, "id": 1}', "Unknown field: b; Unknown field: id"),
        (r'{"\ud800": 1}', r"Unknown field: \ud800"),
        ("[]", NOT_AN_OBJECT),
        ("false", NOT_AN_OBJECT),
        (" ", NOT_AN_OBJECT),
        ("{", NOT_AN_OBJECT),
    ],
)
def test_a_body_that_asks_for_more_than_its_path_says_is_refused(
    alice: User, verb: str, body: str, message: str
) -> None:
    task = alice.create(status="incomplete" if verb == "complete" else "complete")

    answer = alice.patch(f"{alice.path(task)}/{verb}", content=body.encode(), headers=JSON)

    assert (answer.status_code, answer.json()) == (400, {"error": message})
    assert alice.get(alice.path(task)).json() == task


@pytest.mark.parametrize("verb", ["complete", "incomplete"])
@pytest.mark.parametrize("chunked", [False, True])
def test_size_and_type_of_a_body_are_checked_where_there_should_be_none(
    alice: User, verb: str, chunked: bool
) -> None:
    task = alice.create()

    def patch(content: bytes, content_type: str) -> httpx.Response:
        return alice.patch(
            f"{alice.path(task)}/{verb}",
            content=iter([content]) if chunked else content,
            headers={"Content-Type": content_type},
        )

    assert patch(b"{}".ljust(64 * 1024 + 1), "application/json").status_code == 413
    assert patch(b"{}", "text/plain").status_code == 415
    assert alice.get(alice.path(task)).json() == task
    assert patch(b"{}".ljust(64 * 1024), "application/json").status_code == 200


def test_a_user_id_in_the_body_is_ignored(alice: User, bob: User) -> None:
    task = alice.create("Buy milk", user_id=bob.id)

    assert task["user_id"] == alice.id
    assert bob.get(bob.tasks).json() == []


@pytest.mark.parametrize(
    "task_id",
    [
        "0", "00", "-1", "+1", "1_0", "1.0", "1e3", "0x1", "abc", "%D9%A1", "%20", "1%20", "%201",
        "1%0A", "9223372036854775808", "99999999999999999999", "9" * 5000, "1%00", "%FF",
    ],
)  # fmt: skip
def test_an_impossible_id_is_refused_on_every_route(alice: User, task_id: str) -> None:
    for method, suffix in [
        ("GET", ""), ("PUT", ""), ("PATCH", ""), ("DELETE", ""),
        ("PATCH", "/complete"), ("PATCH", "/incomplete"),
    ]:  # fmt: skip
        answer = alice.request(method, f"{alice.tasks}/{task_id}{suffix}", json={"title": "x"})
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid task ID"})


@pytest.mark.parametrize("task_id", ["9223372036854775807", "0" * 5000 + "9223372036854775807"])
def test_the_largest_id_is_merely_not_found(alice: User, task_id: str) -> None:
    answer = alice.get(f"{alice.tasks}/{task_id}")

    assert (answer.status_code, answer.json()) == (404, {"error": "Task not found"})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=done", STATUS),
        ("status=", STATUS),
        ("limit=0", "Limit must be an integer from 1 to 1000"),
        ("limit=1001", "Limit must be an integer from 1 to 1000"),
        ("limit=-1", "Limit must be an integer from 1 to 1000"),
        ("limit=%2B5", "Limit must be an integer from 1 to 1000"),
        ("limit=1_0", "Limit must be an integer from 1 to 1000"),
        ("limit=", "Limit must be an integer from 1 to 1000"),
        ("limit=" + "0" * 5000, "Limit must be an integer from 1 to 1000"),
        ("limit=ten", "Limit must be an integer from 1 to 1000"),
        ("limit=%D9%A1", "Limit must be an integer from 1 to 1000"),
        ("limit=" + "9" * 5000, "Limit must be an integer from 1 to 1000"),
        ("limit=5%00", "Limit must be an integer from 1 to 1000"),
        ("limit=5&cursor=", "Invalid cursor"),
        ("limit=5&cursor=abc", "Invalid cursor"),
        ("limit=5&cursor=%FF%00", "Invalid cursor"),
        ("limit=5&cursor=" + "A" * 32, "Invalid cursor"),
        ("limit=5&cursor=" + "A" * 4000, "Invalid cursor"),
    ],
)
def test_a_bad_query_is_refused(alice: User, query: str, message: str) -> None:
    answer = alice.get(f"{alice.tasks}?{query}")

    assert (answer.status_code, answer.json()) == (400, {"error": message})


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None]
)
def test_another_content_type_is_refused(alice: User, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    answer = alice.post(alice.tasks, content=b'{"title": "x"}', headers=headers)

    assert answer.status_code == 415
    assert answer.json() == {"error": "Content-Type must be application/json"}


@pytest.mark.parametrize(
    ("method", "suffix"),
    [("PUT", ""), ("PATCH", ""), ("PATCH", "/complete"), ("PATCH", "/incomplete")],
)
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json-patch+json"},
        {"Content-Type": "application/merge-patch+jsonp"},
        JSON | {"Content-Encoding": "gzip"},
    ],
)
def test_a_change_of_another_type_is_told_the_right_ones(
    alice: User, method: str, suffix: str, headers: dict[str, str]
) -> None:
    task = alice.create()

    answer = alice.request(method, alice.path(task) + suffix, content=b"{}", headers=headers)

    assert answer.status_code == 415
    assert answer.headers["Accept-Patch"] == "application/json, application/merge-patch+json"
    assert alice.get(alice.path(task)).json() == task


def test_a_merge_patch_creates_nothing(alice: User) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}

    answer = alice.post(alice.tasks, content=b'{"title": "x"}', headers=headers)

    assert (answer.status_code, alice.get(alice.tasks).json()) == (415, [])
    assert "Accept-Patch" not in answer.headers


def test_a_compressed_body_is_refused(alice: User) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}

    answer = alice.post(alice.tasks, content=gzip.compress(b'{"title": "x"}'), headers=headers)

    assert answer.status_code == 415
    assert answer.json() == {"error": "Content-Encoding is not supported"}


def test_a_charset_parameter_is_fine(alice: User) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}

    assert alice.post(alice.tasks, content=b'{"title": "x"}', headers=headers).status_code == 201


def test_no_body_and_no_content_type_is_an_empty_body(alice: User) -> None:
    answer = alice.post(alice.tasks)

    assert (answer.status_code, answer.json()) == (400, {"error": NOT_AN_OBJECT})


@pytest.mark.parametrize("size", [64 * 1024 + 1, 1024 * 1024, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_64_kib_is_refused(alice: User, size: int, chunked: bool) -> None:
    body = json.dumps({"title": "x", "description": "x" * size}).encode()[:size]
    content = (body[i : i + 16384] for i in range(0, size, 16384)) if chunked else body

    answer = alice.post(alice.tasks, content=content, headers=JSON)

    assert answer.status_code == 413
    assert answer.json() == {"error": "Request body must be at most 64 KiB"}
    assert alice.get(alice.tasks).json() == []


def test_of_many_unknown_fields_the_first_twenty_are_named(alice: User) -> None:
    body = {f"field {number:04}": 1 for number in range(1000)} | {"title": " "}

    answer = alice.post(alice.tasks, json=body)

    faults = answer.json()["error"].split("; ")
    assert faults[0] == "Title is required"
    assert faults[1:] == [f"Unknown field: field {number:04}" for number in range(20)]


def test_a_body_of_64_kib_is_read(alice: User) -> None:
    body = b'{"title": "x"}'.ljust(64 * 1024)

    assert alice.post(alice.tasks, content=body, headers=JSON).status_code == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", ""), ("POST", "/1"), ("GET", "/1/complete"), ("TRACE", "")],
)
def test_a_wrong_method_is_told_the_right_ones(alice: User, method: str, path: str) -> None:
    answer = alice.request(method, alice.tasks + path)

    assert (answer.status_code, answer.json()) == (405, {"error": "Method not allowed"})
    assert "OPTIONS" in answer.headers["Allow"]


def test_a_stranger_is_not_told_the_methods_of_anothers_path(alice: User, bob: User) -> None:
    for method, path in [("DELETE", ""), ("POST", "/1"), ("GET", "/1/complete")]:
        answer = bob.request(method, alice.tasks + path)
        assert (answer.status_code, answer.json()) == (403, {"error": "Forbidden"})


@pytest.mark.parametrize("path", ["/nothing", "/api/", "/tasks/1/complete/x", "/tasks/"])
def test_an_unknown_path_is_not_found(alice: User, path: str) -> None:
    path = path.replace("/tasks", alice.tasks)

    answer = alice.get(path)

    assert (answer.status_code, answer.json()) == (404, {"error": "Not found"})


@pytest.mark.parametrize("segment", ["%00", "alice%00", "%FF", "%C3%28", "%ED%A0%80"])
def test_a_path_that_no_user_id_can_have_is_somebody_elses(alice: User, segment: str) -> None:
    answer = alice.get(f"/api/{segment}/tasks")

    assert (answer.status_code, answer.json()) == (403, {"error": "Forbidden"})


def test_an_error_is_json_with_a_request_id_and_is_not_stored(alice: User) -> None:
    for answer in (alice.get("/nothing"), alice.get(alice.tasks + "/x"), alice.post(alice.tasks)):
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Request-ID"]
        assert list(answer.json()) == ["error"]


def of_one_mib(start: bytes, item: bytes, end: bytes) -> bytes:
    count = (MAX_PUSH - len(start) - len(end) - 10) // len(item)
    return start + item * count + end


SEND = "Send 1 to 100 changes"
MANY_VALUES = {
    "empty arrays": (of_one_mib(b'{"tasks":[', b"[],", b"0]}"), SEND),
    "numbers": (of_one_mib(b'{"tasks":[', b"0,", b"0]}"), SEND),
    "names": (of_one_mib(b"{", b'"a":0,', b'"a":0}'), SEND),
    "an array": (of_one_mib(b"[", b"0,", b"0]"), "Request body must be a JSON object"),
    "nesting": (of_one_mib(b'{"a":', b'{"":', b""), SEND),
}


def read(app: Flask, body: bytes) -> tuple[str | None, float]:
    """Why a body is refused, and the seconds of CPU that it took."""
    with app.test_request_context(method="POST", data=body, content_type="application/json"):
        started = time.process_time()
        try:
            read_body(limit=MAX_PUSH)
        except ValidationError as error:
            return describe(error), time.process_time() - started
        return None, time.process_time() - started


@pytest.mark.parametrize("kind", MANY_VALUES)
def test_many_values_are_refused_before_they_are_decoded(app: Flask, kind: str) -> None:
    body, message = MANY_VALUES[kind]
    white_space = of_one_mib(b"{", b" ", b"}")

    refused = [read(app, body) for _ in range(5)]
    plain = [read(app, white_space) for _ in range(5)]

    assert {reason for reason, _ in refused} == {message}
    # To decode them would take thirty times as long as white space.
    assert min(seconds for _, seconds in refused) < 15 * min(seconds for _, seconds in plain)


@pytest.mark.parametrize("text", [b",[{", b'\\",', b"\\\\,", "\U0001f600,".encode()])
def test_what_is_in_texts_does_not_count_as_values(app: Flask, text: bytes) -> None:
    body = of_one_mib(b'{"tasks":[{"title":"', text, b'"}]}')

    assert read(app, body)[0] is None
