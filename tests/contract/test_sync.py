"""docs/sync.js: copies in browsers, behind a network that loses answers, equal the server."""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.conftest import ROOT, SECRET, Server, User
from tests.test_backup_page import Copies

pytestmark = pytest.mark.slow

MODULE = ROOT / "docs" / "sync.js"
PAGE = ROOT / "docs" / "sync.md"

OPEN = """async ([service, userId, token]) => {
  const { openCopy } = await import(`${location.origin}/sync.js`);
  window.todo = openCopy({ service, userId, token: () => token, onRefused: noteRefused });
}"""

# What a user does, each step to the task at a place in the list; returns what was done, and to
# which. A task keeps its first title as its description.
STEPS = """async (steps) => {
  const done = [];
  for (const [kind, place, text] of steps) {
    const tasks = await todo.list();
    const task = tasks[Math.floor(place * tasks.length)];
    if (kind === 'create') await todo.create({title: text, description: text});
    else if (!task || !await todo[kind](task.id ?? task.key, {title: text})) continue;
    done.push([kind, kind === 'create' ? text : task.description, text]);
  }
  return done;
}"""

HISTORY = """
CREATE TABLE history (kind text, title text, made_as text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO history VALUES (TG_OP, OLD.title, OLD.description);
    ELSIF TG_OP = 'INSERT' OR NEW.title <> OLD.title THEN
        INSERT INTO history VALUES (TG_OP, NEW.title, NEW.description);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION note();
"""


class Network(ThreadingHTTPServer):
    """Hands requests on to the service and answers back, and loses some of either."""

    daemon_threads = True

    def __init__(self, service: str) -> None:
        super().__init__(("127.0.0.1", 0), Line)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.service = service
        self.chance = random.Random(28)
        self.loss = 0.0  # of requests and answers of changes, the part that is lost
        self.lose: list[str] = []  # what happens to the next ones, before chance decides
        self.hold: threading.Event | None = None  # answers wait for it
        self.happened: Counter[str] = Counter()
        self.pushes: list[bytes] = []
        self.lock = threading.Lock()

    def fate(self) -> str:
        with self.lock:
            fate = "nothing"
            if self.lose:
                fate = self.lose.pop(0)
            elif self.chance.random() < self.loss:
                fate = self.chance.choice(["request", "answer", "half an answer"])
            self.happened[fate] += 1
            return fate


class Line(BaseHTTPRequestHandler):
    """One request; a connection has no second one, which a browser would repeat by itself."""

    server: Network

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fate = "nothing" if self.command == "OPTIONS" else self.server.fate()
        if fate == "request":
            return
        if self.command == "POST":
            self.server.pushes.append(body)
        target = HTTPConnection(urlsplit(self.server.service).netloc, timeout=30)
        try:
            target.request(
                self.command, self.path, body, dict(self.headers) | {"Connection": "close"}
            )
            answer = target.getresponse()
            content = answer.read()
        except (OSError, HTTPException):
            self.server.happened["no service"] += 1
            return
        finally:
            target.close()
        if self.command == "POST" and self.server.hold is not None:
            self.server.hold.wait(30)
        if fate == "answer":
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"connection", "server", "date"}:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fate == "half an answer" else content)

    do_POST = do_OPTIONS = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Device:
    """A browser of a user's, with the module in one tab or several."""

    def __init__(self, browser: Browser, origin: str, network: Network, user: User) -> None:
        self.user = user
        self.network = network
        self.origin = origin
        self.refused: list[dict[str, Any]] = []
        self.context: BrowserContext = browser.new_context()
        self.context.set_default_timeout(30_000)
        self.context.expose_function("noteRefused", lambda told: self.refused.extend(told))
        self.context.route(
            "**/sync.js",
            lambda route: route.fulfill(path=MODULE, content_type="text/javascript"),
        )
        self.page = self.open()

    def open(self) -> Page:
        page = self.context.new_page()
        page.goto(self.origin)
        token = self.user.headers["Authorization"].removeprefix("Bearer ")
        page.evaluate(OPEN, [self.network.url, self.user.id, token])
        return page

    def reopen(self) -> None:
        """As if the browser had ended at this moment."""
        self.page.close()
        self.page = self.open()

    def create(self, title: str) -> str:
        return self.page.evaluate("title => todo.create({ title })", title)

    def edit(self, ref: int | str, title: str) -> bool:
        return self.page.evaluate("([ref, title]) => todo.edit(ref, { title })", [ref, title])

    def remove(self, ref: int | str) -> bool:
        return self.page.evaluate("ref => todo.remove(ref)", ref)

    def list(self) -> list[dict[str, Any]]:
        return self.page.evaluate("() => todo.list()")

    def sync(self) -> None:
        self.page.evaluate("() => todo.sync()")

    def start(self) -> None:
        self.page.evaluate("() => { window.running = todo.sync().then(() => true, () => false); }")

    def wait(self) -> bool:
        """Whether what was started ended well."""
        return self.page.evaluate("() => window.running")


@pytest.fixture(scope="module")
def serve(
    allowed_origin: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Server]]:
    servers: list[Server] = []

    def start(database_url: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "log"
        origin = {"CORS_ORIGINS": allowed_origin}
        servers.append(Server(log, DATABASE_URL=database_url, JWT_SECRET=SECRET, **origin))
        servers[-1].wait("/ready")
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def service(new_database: Callable[..., str], serve: Callable[[str], Server]) -> Server:
    return serve(new_database(schema=True))


@contextmanager
def network_to(server: Server) -> Iterator[Network]:
    with Network(server.url) as network:
        threading.Thread(target=network.serve_forever, daemon=True).start()
        yield network
        network.shutdown()


@pytest.fixture
def network(service: Server) -> Iterator[Network]:
    with network_to(service) as network:
        yield network


@pytest.fixture
def new_device(
    browser: Browser, allowed_origin: str
) -> Iterator[Callable[[Network, User], Device]]:
    devices: list[Device] = []

    def make(network: Network, user: User) -> Device:
        devices.append(Device(browser, allowed_origin, network, user))
        return devices[-1]

    yield make
    for device in devices:
        device.context.close()


@pytest.fixture
def user(service: Server) -> Iterator[User]:
    with User(service.url, f"user-{uuid4()}") as user:
        yield user


@pytest.fixture
def phone(new_device: Callable[..., Device], network: Network, user: User) -> Device:
    return new_device(network, user)


@pytest.fixture
def laptop(new_device: Callable[..., Device], network: Network, user: User) -> Device:
    return new_device(network, user)


def assert_equal(user: User, *devices: Device) -> list[dict[str, Any]]:
    """Each device shows what the server has; returns that."""
    for device in (*devices, *devices):  # what the last one pushes, the first one pulls
        device.sync()
    tasks = user.get(user.tasks).json()
    for device in devices:
        assert device.list() == tasks
    return tasks


def titles(tasks: list[dict[str, Any]]) -> list[str]:
    return [task["title"] for task in tasks]


def test_what_was_done_offline_is_sent_and_the_other_device_has_it(
    phone: Device, laptop: Device, user: User
) -> None:
    milk, bread, _ = (phone.create(title) for title in ("milk", "bread", "made and deleted"))
    assert phone.page.evaluate("ref => todo.complete(ref)", milk)
    assert phone.edit(bread, "rye bread")
    assert phone.remove(_)
    assert [(task["title"], task["status"]) for task in phone.list()] == [
        ("rye bread", "incomplete"),
        ("milk", "complete"),
    ]

    tasks = assert_equal(user, phone, laptop)

    assert titles(tasks) == ["rye bread", "milk"]
    # What the page calls a task by, it may go on to call it.
    assert phone.edit(bread, "white bread")
    assert laptop.remove(tasks[1]["id"])
    assert titles(assert_equal(user, phone, laptop)) == ["white bread"]
    assert not phone.edit(milk, "x") and not phone.edit("no such task", "x")
    assert phone.refused == laptop.refused == []


def test_the_page_shows_how_it_is_used(phone: Device, laptop: Device, user: User) -> None:
    code = re.findall(r"^```js\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    code = code.replace("http://localhost:8000", phone.network.url).replace("alice", user.id)
    token = user.headers["Authorization"].removeprefix("Bearer ")
    phone.page.evaluate(
        """(token) => {
          window.authClient = { token: async () => ({ data: { token } }) };
          window.rendered = [];
          window.render = (tasks) => rendered.push(tasks);
        }""",
        token,
    )

    phone.page.add_script_tag(type="module", content=code)
    phone.page.wait_for_function("() => rendered.length > 1")

    offline, synced = phone.page.evaluate("() => rendered")
    assert synced == user.get(user.tasks).json() == assert_equal(user, laptop)
    ((before, after),) = zip(offline, synced, strict=True)
    assert before["key"] and after["id"]
    for task in (before, after):
        assert (task["title"], task["description"]) == ("Buy milk", "Two bottles")
        assert task["status"] == "complete"


def test_the_module_is_no_longer_than_the_page_says() -> None:
    (lines,) = re.findall(r"in (\d+) lines", PAGE.read_text())
    assert len(MODULE.read_text().splitlines()) <= int(lines)


def test_the_first_to_reach_the_server_wins_and_the_other_one_is_told(
    phone: Device, laptop: Device, user: User
) -> None:
    for title in ("edited", "deleted, then edited", "edited, then deleted", "deleted"):
        phone.create(title)
    ids = {task["title"]: task["id"] for task in assert_equal(user, phone, laptop)}
    for device, name in ((phone, "phone"), (laptop, "laptop")):
        device.edit(ids["edited"], f"edited by {name}")
        device.remove(ids["deleted"])
    phone.remove(ids["deleted, then edited"])
    laptop.edit(ids["deleted, then edited"], "lost")
    phone.edit(ids["edited, then deleted"], "kept")
    laptop.remove(ids["edited, then deleted"])

    tasks = assert_equal(user, phone, laptop)

    assert titles(tasks) == ["kept", "edited by phone"]
    assert phone.refused == []
    told = {refused["id"]: refused for refused in laptop.refused}
    assert len(told) == len(laptop.refused) == 3
    edit, gone, deletion = (told[ids[title]] for title in list(ids)[::-1] if ids[title] in told)
    assert (edit["status"], edit["fields"]) == (412, {"title": "edited by laptop"})
    assert edit["task"] == tasks[1]
    assert (gone["status"], gone["fields"]) == (404, {"title": "lost"})
    assert (deletion["status"], deletion["fields"]) == (412, None)
    # The caller may insist.
    laptop.edit(edit["id"], edit["fields"]["title"])
    assert titles(assert_equal(user, phone, laptop)) == ["kept", "edited by laptop"]


def test_a_push_whose_answer_was_lost_is_sent_again_as_it_was_and_edits_go_after_it(
    phone: Device, laptop: Device, network: Network, user: User
) -> None:
    old, gone = phone.create("old"), phone.create("gone")
    assert_equal(user, phone)
    network.pushes.clear()
    phone.edit(old, "old, edited")
    phone.remove(gone)
    new = phone.create("new")
    network.lose = ["answer"]
    phone.start()
    assert not phone.wait()
    assert titles(user.get(user.tasks).json()) == ["new", "old, edited"]
    phone.edit(old, "old, edited again")
    phone.edit(new, "new, edited")
    phone.reopen()
    assert titles(phone.list()) == ["new, edited", "old, edited again"]

    tasks = assert_equal(user, phone, laptop)

    assert titles(tasks) == ["new, edited", "old, edited again"]
    first, again, after = network.pushes
    assert first == again
    assert {task.get("id") for task in json.loads(after)["tasks"]} == {task["id"] for task in tasks}
    assert phone.refused == []


def test_an_edit_made_while_its_task_is_on_its_way_waits_for_the_id(
    phone: Device, laptop: Device, network: Network, user: User
) -> None:
    network.hold = threading.Event()
    kept, gone = phone.create("kept"), phone.create("gone")
    phone.start()
    while len(network.pushes) < 1:
        phone.page.wait_for_timeout(20)
    phone.edit(kept, "edited")
    phone.remove(gone)
    assert titles(phone.list()) == ["edited"]
    network.hold.set()
    assert phone.wait()

    assert titles(assert_equal(user, phone, laptop)) == ["edited"]
    assert len(network.pushes) == 2


def test_an_edit_on_top_of_a_lost_answer_does_not_undo_what_another_device_did_since(
    phone: Device, laptop: Device, network: Network, user: User
) -> None:
    old = phone.create("old")
    assert_equal(user, phone)
    phone.edit(old, "old, edited")
    phone.create("new")
    network.lose = ["answer"]
    phone.start()
    assert not phone.wait()
    laptop.sync()
    for task in laptop.list():
        laptop.page.evaluate("id => todo.complete(id)", task["id"])
    laptop.sync()
    steps = [("edit", place, f"by phone {place}") for place in (0, 0.5)]
    assert len(phone.page.evaluate(STEPS, steps)) == 2

    tasks = assert_equal(user, phone, laptop)

    assert titles(tasks) == ["new", "old, edited"]
    assert {task["status"] for task in tasks} == {"complete"}
    assert [refused["status"] for refused in phone.refused] == [412, 412]
    assert {refused["fields"]["title"] for refused in phone.refused} == {
        text for _, _, text in steps
    }


def test_a_new_task_that_another_device_deleted_before_its_answer_came_is_not_made_again(
    phone: Device, laptop: Device, network: Network, user: User
) -> None:
    phone.create("gone")
    network.lose = ["half an answer"]
    phone.start()
    assert not phone.wait()
    laptop.sync()
    laptop.remove(laptop.list()[0]["id"])
    laptop.sync()

    assert assert_equal(user, phone, laptop) == []
    ((status, fields),) = [(told["status"], told["fields"]) for told in phone.refused]
    assert (status, fields["title"]) == (410, "gone")


def test_what_the_service_refuses_is_handed_over_and_the_rest_is_sent(
    phone: Device, laptop: Device, user: User
) -> None:
    for title in ("a", " ", "b", "x" * 256, "c"):
        phone.create(title)
    tasks = assert_equal(user, phone, laptop)
    assert titles(tasks) == ["c", "b", "a"]
    phone.edit(tasks[0]["id"], "")
    phone.remove(tasks[1]["id"])
    phone.edit(tasks[2]["id"], "a, edited")
    phone.page.evaluate("() => todo.create({ title: 'x', description: 'y'.repeat(2_000_000) })")

    assert titles(assert_equal(user, phone, laptop)) == ["c", "a, edited"]
    assert [told["status"] for told in phone.refused] == [400, 400, 400, 413]
    assert [told["fields"]["title"] for told in phone.refused] == [" ", "x" * 256, "", "x"]
    assert "Title is required" in phone.refused[0]["error"]
    # A key that was used for something else, which is not of this module's making.
    headers = {"Idempotency-Key": "taken"}
    user.post(user.tasks, json={"title": "first"}, headers=headers)
    phone.page.evaluate("() => todo.create({ title: 'second' }, 'taken')")
    assert titles(assert_equal(user, phone, laptop)) == ["first", "c", "a, edited"]
    assert (phone.refused[-1]["status"], phone.refused[-1]["fields"]["title"]) == (422, "second")


def test_a_push_has_a_hundred_changes_and_a_mebibyte_at_most(
    phone: Device, laptop: Device, network: Network, user: User
) -> None:
    phone.page.evaluate(
        """async () => {
          for (let n = 0; n < 150; n++) await todo.create({ title: `short ${n}` });
          const description = '€'.repeat(5000);
          for (let n = 0; n < 80; n++) await todo.create({ title: `long ${n}`, description });
        }"""
    )

    assert len(assert_equal(user, phone, laptop)) == 230
    # A third has what the first has left of the short ones, and as many long ones as fit.
    sizes = [len(json.loads(push)["tasks"]) for push in network.pushes]
    assert sizes[0] == 100 and sum(sizes) == 230
    assert len(sizes) == 3 and max(map(len, network.pushes)) <= 1024 * 1024


def test_tabs_take_turns_and_none_undoes_what_another_wrote(
    phone: Device, network: Network, user: User
) -> None:
    tabs = [phone.page, phone.open(), phone.open()]
    for number, tab in enumerate(tabs):
        tab.evaluate(
            """(tab) => { window.running = (async () => {
              for (let n = 0; n < 20; n++) {
                const key = await todo.create({ title: `${tab}-${n}` });
                const synced = todo.sync();
                await todo.edit(key, { title: `${tab}-${n}, edited` });
                if (n % 5 === 4) await synced;
              }
              await todo.sync();
            })(); }""",
            number,
        )
    for tab in tabs:
        tab.evaluate("() => window.running")

    tasks = assert_equal(user, phone)

    expected = {f"{tab}-{n}, edited" for tab in range(3) for n in range(20)}
    assert len(tasks) == 60 and set(titles(tasks)) == expected
    assert [tab.evaluate("() => todo.list()") for tab in tabs] == [tasks] * 3
    keys = [
        task["key"]
        for push in network.pushes
        for task in json.loads(push)["tasks"]
        if "key" in task
    ]
    assert len(keys) == len(set(keys)) == 60
    assert phone.refused == []


ROUNDS = 25


def test_two_devices_that_lose_answers_for_long_end_up_as_the_server_is(
    new_database: Callable[..., str],
    serve: Callable[[str], Server],
    new_device: Callable[[Network, User], Device],
) -> None:
    database_url = new_database(schema=True)
    with psycopg.connect(database_url) as connection:
        connection.execute(HISTORY)
    server = serve(database_url)
    chance = random.Random(28)
    done: dict[str, list[tuple[str, str, str]]] = {"phone": [], "laptop": []}
    ended: Counter[bool] = Counter()

    def act(name: str, number: int) -> None:
        steps = []
        for step in range(chance.randint(1, 4)):
            (kind,) = chance.choices(["create", "edit", "complete", "remove"], [4, 5, 2, 1])
            steps.append((kind, chance.random(), f"{name} {number}.{step}"))
        done[name] += map(tuple, devices[name].page.evaluate(STEPS, steps))

    with network_to(server) as network, User(server.url, "alice") as user:
        devices = {name: new_device(network, user) for name in done}
        network.loss = 0.4
        for number in range(ROUNDS):
            for name in devices:
                act(name, 2 * number)
            syncing = [d for d in devices.values() if chance.random() < 0.8]
            for device in syncing:
                device.start()
            for name in devices:
                act(name, 2 * number + 1)
            if number == ROUNDS // 2:
                assert server.stop() == 0
            elif number % 8 == 7:
                devices[chance.choice(list(devices))].reopen()
            for device in syncing:
                ended[device.wait()] += 1
            if number == ROUNDS // 2:
                server = serve(database_url)
                network.service = user.base_url = server.url
            for device in devices.values():
                shown = [task["description"] for task in device.list()]
                assert len(shown) == len(set(shown)), "shows a task twice"
        network.loss = 0.0

        tasks = assert_equal(user, *devices.values())

    with psycopg.connect(database_url) as connection:
        history = connection.execute("SELECT kind, title, made_as FROM history").fetchall()
    made = Counter(made_as for kind, _, made_as in history if kind == "INSERT")
    deleted = {made_as for kind, _, made_as in history if kind == "DELETE"}
    written = Counter(title for kind, title, _ in history if kind != "DELETE")
    told = {
        name: {(r["fields"] or {}).get("title") for r in devices[name].refused} for name in done
    }
    assert set(made.values()) == {1}, "made twice"
    assert {task["description"] for task in tasks} == made.keys() - deleted
    edits = 0
    for name, steps in done.items():
        for place, (kind, task, title) in enumerate(steps):
            # Another title, or a deletion, on the same device may have taken the place of this one.
            later = {kind for kind, other, _ in steps[place + 1 :] if other == task}
            if kind in {"create", "edit"}:
                edits += 1
                assert written[title] <= 1, "written twice"
                assert written[title] or title in told[name] or later & {"edit", "remove"}, "lost"
    figures = {
        "rounds": ROUNDS,
        "steps": Counter(kind for steps in done.values() for kind, _, _ in steps),
        "network": network.happened,
        "syncs that ended well": ended,
        "tasks": len(tasks),
        "refused": Counter(r["status"] for d in devices.values() for r in d.refused),
    }
    print(figures)  # noqa: T201
    # That all this was tried.
    assert network.happened["answer"] > 5 and network.happened["half an answer"] > 5, figures
    assert edits > 100 and deleted and figures["refused"][412] and ended[False] > 10, figures


def test_after_a_restored_backup_copies_start_again_and_keep_what_was_not_pushed(
    new_database: Callable[..., str],
    serve: Callable[[str], Server],
    new_device: Callable[[Network, User], Device],
    tmp_path: Path,
) -> None:
    copies = Copies(new_database, tmp_path)
    source = new_database(schema=True)
    server = serve(source)
    with network_to(server) as network, User(server.url, "alice") as user:
        phone, laptop = (new_device(network, user) for _ in range(2))
        for title in ("kept", "changed since", "deleted since"):
            phone.create(title)
        ids = {task["title"]: task["id"] for task in assert_equal(user, phone, laptop)}
        copies.dump(source)
        phone.edit(ids["changed since"], "changed")
        phone.remove(ids["deleted since"])
        lost = phone.create("made since")
        assert_equal(user, phone, laptop)
        phone.create("lost with its answer")
        network.lose = ["answer"]
        phone.start()
        assert not phone.wait()
        phone.create("not pushed")
        phone.edit(ids["kept"], "kept, edited")
        phone.edit(lost, "made since, edited")
        laptop.edit(ids["changed since"], "changed again")
        assert server.stop() == 0

        url = copies.restore()
        copies.after_restore(url)
        network.service = user.base_url = serve(url).url
        tasks = assert_equal(user, phone, laptop)

    expected = [
        "not pushed",
        "lost with its answer",
        "deleted since",
        "changed since",
        "kept, edited",
    ]
    assert titles(tasks) == expected
    assert [(told["status"], told["fields"]) for told in phone.refused] == [
        (404, {"title": "made since, edited"})
    ]
    assert [(told["status"], told["fields"]) for told in laptop.refused] == [
        (412, {"title": "changed again"})
    ]
    for close in copies.close:
        close()
