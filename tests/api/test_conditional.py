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

# How a proxy that compresses spells a tag, or two of them in a row.
CODINGS = ["-gzip", "--gzip", ";gzip", "-br", "-zstd", "-deflate"]
SPELLINGS = ['W/"{}"', *(f'{weak}"{{}}{coding}"' for coding in CODINGS for weak in ("", "W/"))]
NO_SPELLINGS = [
    '"{}-lzma"', '"{}-gzip-gzip"', '"{}gzip"', '"-gzip{}"', '"{}"-gzip', 'w/"{}"', 'W/ "{}"',
    'W/W/"{}"', "W/{}", "{}-gzip",
]  # fmt: skip


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


@pytest.mark.parametrize("form", SPELLINGS)
def test_a_tag_that_a_proxy_has_rewritten_stands_for_the_tag(alice: User, form: str) -> None:
    task = alice.create()
    stale = form.format(task["updated_at"])
    task = alice.patch(alice.path(task), json={"title": "meanwhile"}).json()
    present = form.format(task["updated_at"])

    def ask(method: str, name: str, tag: str) -> int:
        body = {"title": "x"} if method == "PUT" else None
        return alice.request(method, alice.path(task), json=body, headers={name: tag}).status_code

    for tag, read, guarded in ((stale, 200, 412), (present, 304, 200)):
        assert ask("GET", "If-None-Match", tag) == read
        assert ask("GET", "If-None-Match", f'"x", {tag}') == read
        assert ask("PUT", "If-Match", tag) == guarded
    task = alice.get(alice.path(task)).json()
    present = form.format(task["updated_at"])
    assert ask("PUT", "If-None-Match", present) == 412
    assert ask("DELETE", "If-Match", f'"x", {present}') == 204


@pytest.mark.parametrize("form", NO_SPELLINGS)
def test_what_only_looks_like_a_tag_of_a_proxy_matches_nothing(alice: User, form: str) -> None:
    task = alice.create()
    tag = form.format(task["updated_at"])

    def put(name: str) -> int:
        return alice.put(alice.path(task), json={"title": "x"}, headers={name: tag}).status_code

    assert alice.get(alice.path(task), headers={"If-None-Match": tag}).status_code == 200
    assert (put("If-Match"), put("If-None-Match")) == (412, 200)


@pytest.mark.parametrize("form", SPELLINGS)
@pytest.mark.parametrize("query", ["", "?status=incomplete", "?limit=1"])
def test_a_list_s_tag_that_a_proxy_has_rewritten_stands_for_the_tag(
    alice: User, query: str, form: str
) -> None:
    alice.create()
    path = alice.tasks + query
    tag = form.format(alice.get(path).headers["ETag"].removeprefix("W/").strip('"'))

    known = alice.get(path, headers={"If-None-Match": tag})
    alice.create()
    changed = alice.get(path, headers={"If-None-Match": tag})

    assert (known.status_code, changed.status_code) == (304, 200)


@pytest.mark.parametrize("form", ["{}T{}Z", "{}t{}z", "{}T{}+00:00", "{}T{}-00:00", "{}T{}000Z"])
def test_a_time_in_a_tag_may_be_spelled_in_any_way_that_utc_has(alice: User, form: str) -> None:
    task = alice.create()
    date, time = task["updated_at"].removesuffix("Z").split("T")
    tag = f'"{form.format(date, time)}"'

    assert alice.get(alice.path(task), headers={"If-None-Match": tag}).status_code == 304
    changes = [
        alice.put(alice.path(task), json={"title": "x"}, headers={"If-Match": tag}) for _ in "12"
    ]

    assert [answer.status_code for answer in changes] == [200, 412]


def test_a_tag_with_another_time_or_none_matches_nothing(alice: User) -> None:
    task = alice.create()
    date, time = task["updated_at"].removesuffix("Z").split("T")
    wrong = [
        f"{date}T{time}1Z", f"{date}T{time}", f"{date}T{time}+01:00", f"{date} {time}Z",
        f" {date}T{time}Z", f"{date}T{time}Z ", f"{date}T{time}+0000", f"{date}T24:00:00Z",
        "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:60Z",
    ]  # fmt: skip

    for text in wrong:
        tag = f'"{text}"'
        read = alice.get(alice.path(task), headers={"If-None-Match": tag})
        write = alice.put(alice.path(task), json={"title": "x"}, headers={"If-Match": tag})
        assert (read.status_code, write.status_code) == (200, 412), text
