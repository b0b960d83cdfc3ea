"""Conditional requests (RFC 9110 section 13): nobody overwrites what they have not seen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import User

WRITES = [
    ("PUT", "", {"title": "changed"}),
    ("PATCH", "", {"description": "changed"}),
    ("PATCH", "/complete", None),
    ("PATCH", "/incomplete", None),
    ("DELETE", "", None),
]
STALE = [
    '"0"',
    '"2020-02-20T20:20:20.202020Z"',
    '"ffffffffffffffffffffffff"',
    '"-1"',
    '""',
    "rubbish",
    '"unterminated',
    ",,,",
    "",
    '"é"',
]


def tag_of(user: User, task: dict) -> str:
    return user.get(user.path(task)).headers["ETag"]


def test_a_task_has_a_strong_tag_that_every_change_changes(alice: User) -> None:
    answer = alice.post(alice.tasks, json={"title": "Buy milk"})
    task = answer.json()
    tags = [answer.headers["ETag"]]
    assert tag_of(alice, task) == tags[0]

    for n in range(20):
        answer = alice.patch(alice.path(task), json={"title": f"Buy milk {n}"})
        assert answer.headers["ETag"] == tag_of(alice, task)
        tags.append(answer.headers["ETag"])
    tags.append(alice.patch(f"{alice.path(task)}/complete").headers["ETag"])

    assert len(set(tags)) == len(tags)
    assert all(tag.startswith('"') and tag.endswith('"') for tag in tags)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}, "y"', "*"])
def test_a_known_version_is_not_sent_again(alice: User, method: str, form: str) -> None:
    task = alice.create()
    tag = tag_of(alice, task)

    answer = alice.request(method, alice.path(task), headers={"If-None-Match": form.format(tag)})

    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == tag
    assert answer.headers["X-Request-ID"]
    # There is no body to describe (RFC 9110 section 15.4.5).
    assert not answer.headers.keys() & {"content-type", "content-length"}


@pytest.mark.parametrize("tag", [*STALE, "{unquoted}", "W/{unquoted}", '"x", {unquoted}', '*, "x"'])
def test_an_unknown_version_is_sent(alice: User, tag: str) -> None:
    task = alice.create()
    unquoted = tag_of(alice, task).strip('"')

    answer = alice.get(
        alice.path(task), headers={"If-None-Match": tag.format(unquoted=unquoted).encode()}
    )

    assert (answer.status_code, answer.json()) == (200, task)


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
@pytest.mark.parametrize("form", ["{}", '"0", {}', '{}, W/"1"', "*"])
def test_a_write_with_the_current_tag_goes_through(
    alice: User, method: str, suffix: str, body: dict | None, form: str
) -> None:
    task = alice.create()
    headers = {"If-Match": form.format(tag_of(alice, task))}

    answer = alice.request(method, alice.path(task) + suffix, json=body, headers=headers)

    assert answer.status_code == (204 if method == "DELETE" else 200)


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
def test_a_write_with_another_tag_changes_nothing(
    alice: User, method: str, suffix: str, body: dict | None
) -> None:
    task = alice.create()
    tag = tag_of(alice, task)
    task = alice.patch(alice.path(task), json={"title": "meanwhile"}).json()
    present = tag_of(alice, task)

    # A tag stands in quotes (RFC 9110 section 8.8.3).
    unquoted = present.strip('"')
    wrong = [unquoted, f'"{unquoted}', f'"0", {unquoted}', f'*, "{tag}"']
    for stale in [*STALE, tag, *wrong]:
        headers = {"If-Match": stale.encode()}
        answer = alice.request(method, alice.path(task) + suffix, json=body, headers=headers)
        assert (answer.status_code, answer.json()) == (412, {"error": "Task was modified"}), stale
        assert answer.headers["ETag"] == present
        assert alice.get(alice.path(task)).json() == task


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
@pytest.mark.parametrize("form", ["{}", "W/{}", '"0", {}', "*"])
def test_a_write_that_is_not_meant_for_the_current_tag_changes_nothing(
    alice: User, method: str, suffix: str, body: dict | None, form: str
) -> None:
    task = alice.create()
    present = tag_of(alice, task)
    headers = {"If-None-Match": form.format(present)}

    for also in ({}, {"If-Match": present}, {"If-Match": "*"}):
        answer = alice.request(method, alice.path(task) + suffix, json=body, headers=headers | also)
        assert (answer.status_code, answer.json()) == (412, {"error": "Task was modified"})
        assert answer.headers["ETag"] == present
    assert alice.get(alice.path(task)).json() == task


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
@pytest.mark.parametrize("form", [*STALE, "{unquoted}", '*, "x"'])
def test_a_write_that_is_not_meant_for_another_tag_goes_through(
    alice: User, method: str, suffix: str, body: dict | None, form: str
) -> None:
    task = alice.create()
    tag = form.format(unquoted=tag_of(alice, task).strip('"'))

    answer = alice.request(
        method, alice.path(task) + suffix, json=body, headers={"If-None-Match": tag.encode()}
    )

    assert answer.status_code == (204 if method == "DELETE" else 200)


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
def test_of_two_conditions_both_have_to_hold(
    alice: User, method: str, suffix: str, body: dict | None
) -> None:
    task = alice.create()
    headers = {"If-Match": '"0"', "If-None-Match": '"0"'}

    answer = alice.request(method, alice.path(task) + suffix, json=body, headers=headers)

    assert answer.status_code == 412
    assert alice.get(alice.path(task)).json() == task


@pytest.mark.parametrize(("name", "status"), [("If-Match", 200), ("If-None-Match", 412)])
def test_a_hundred_tags_are_compared_and_more_are_refused(
    alice: User, name: str, status: int
) -> None:
    task = alice.create()
    hundred = ", ".join(['"0"'] * 99 + [tag_of(alice, task)])

    def put(tags: str) -> httpx.Response:
        return alice.put(alice.path(task), json={"title": "x"}, headers={name: tags})

    assert put(hundred).status_code == status
    answer = put(f'{hundred}, "1"')
    assert answer.status_code == 400
    assert answer.json() == {"error": f"{name} must list at most 100 tags"}


def test_the_tag_of_a_412_is_the_one_to_go_on_with(alice: User) -> None:
    task = alice.create()

    refused = alice.put(alice.path(task), json={"title": "x"}, headers={"If-Match": '"0"'})
    changed = alice.put(
        alice.path(task), json={"title": "x"}, headers={"If-Match": refused.headers["ETag"]}
    )

    assert (refused.status_code, changed.status_code) == (412, 200)
    assert changed.headers["ETag"] == tag_of(alice, task) != refused.headers["ETag"]


@pytest.mark.parametrize(("method", "suffix", "body"), WRITES)
@pytest.mark.parametrize("tag", ['"0"', "*", "rubbish"])
@pytest.mark.parametrize("condition", ["If-Match", "If-None-Match"])
def test_a_conditional_write_to_a_missing_task_is_not_found(
    alice: User, method: str, suffix: str, body: dict | None, condition: str, tag: str
) -> None:
    answer = alice.request(method, f"{alice.tasks}/1{suffix}", json=body, headers={condition: tag})

    assert (answer.status_code, answer.json()) == (404, {"error": "Task not found"})
    assert "ETag" not in answer.headers


def test_without_if_match_the_last_write_wins(alice: User) -> None:
    task = alice.create()

    for title in ("first", "second"):
        assert alice.put(alice.path(task), json={"title": title}).status_code == 200

    assert alice.get(alice.path(task)).json()["title"] == "second"


@pytest.mark.parametrize(("method", "suffix"), [("PUT", ""), ("PATCH", "/complete")])
def test_of_eight_concurrent_writers_exactly_one_wins(
    alice: User, method: str, suffix: str
) -> None:
    for _ in range(10):
        task = alice.create()
        headers = {"If-Match": tag_of(alice, task)}

        def write(n: int, path: str = alice.path(task) + suffix, headers: dict = headers) -> int:
            body = {"title": f"writer {n}"} if not suffix else None
            return alice.request(method, path, json=body, headers=headers).status_code

        with ThreadPoolExecutor(8) as pool:
            statuses = sorted(pool.map(write, range(8)))
        assert statuses == [200] + [412] * 7


def test_of_eight_concurrent_deletes_exactly_one_wins(alice: User) -> None:
    task = alice.create()
    headers = {"If-Match": tag_of(alice, task)}

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(
            pool.map(
                lambda _: alice.delete(alice.path(task), headers=headers).status_code, range(8)
            )
        )

    assert statuses == [204] + [404] * 7
