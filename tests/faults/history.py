"""What clients sent and were answered, and whether a service that loses nothing could have.

A task is a register: each write makes a new version of it, in the order of `updated_at`, and one
with `If-Match` makes it from the version that it names, or not at all. A request without an answer
may have happened or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from math import inf
from typing import Any

Task = dict[str, Any]

# The version that a deletion makes.
GONE = datetime.max.replace(tzinfo=UTC)


def version_of(task: Task) -> datetime:
    return datetime.fromisoformat(task["updated_at"])


@dataclass
class Write:
    """One request that changes a task, or several until the first one of them is answered.

    Of a push, there is one for each entry. One that changes all tasks of a status stands for
    itself: which ones that were is not known.
    """

    # create, update, delete, update all, delete all, or repeat: a create that was answered before.
    kind: str
    started: float
    fields: Task = field(default_factory=dict)
    task_id: int | None = None
    # The version that If-Match names.
    base: Task | None = None
    # done, refused (412) or absent (404, and 410 of a repeat, which else is "there"); unknown, if
    # there was no answer, or a 503.
    outcome: str = "unknown"
    ended: float = inf
    result: Task | None = None


class History:
    """All writes of one user. Threads add to it; `faults` reads it when they are through."""

    def __init__(self) -> None:
        self.writes: list[Write] = []

    def counts(self) -> dict[str, int]:
        counts = Counter(f"{write.outcome}" for write in self.writes)
        attempts = Counter(
            (write.task_id, version_of(write.base)) for write in self.writes if write.base
        )
        contested = sum(count > 1 for count in attempts.values())
        return {"writes": len(self.writes), **counts, "contested_versions": contested}

    def faults(self, final: dict[int, Task], seen: Iterable[Task]) -> list[str]:
        """What cannot be, given the list in the end and what copies have seen on the way."""
        by_task: defaultdict[int | None, list[Write]] = defaultdict(list)
        for write in self.writes:
            by_task[write.task_id].append(write)
        found = list(self._out_of_order())
        sweeps = [write for write in by_task[None] if write.kind in ("update all", "delete all")]
        titles = {
            write.fields["title"]
            for write in by_task[None]
            if write.kind == "create" and write.outcome == "unknown"
        }
        views: defaultdict[int, list[Task]] = defaultdict(list)
        for task in [*final.values(), *seen]:
            views[task["id"]].append(task)
        for task_id in {*by_task, *views} - {None}:
            writes = by_task[task_id]
            if not writes:
                found += [
                    f"{task_id} was created by nobody"
                    for task in views[task_id][:1]
                    if task["title"] not in titles
                ]
                continue
            register = Register(task_id, writes, sweeps)
            found += register.faults(final.get(task_id), views[task_id])
        return found

    def _out_of_order(self) -> Iterator[str]:
        """Versions are unique, and a write that ended before another began is the earlier one."""
        done = [write for write in self.writes if write.result]
        done.sort(key=lambda write: version_of(write.result))
        started = -inf
        for earlier, later in pairwise(done):
            same = version_of(earlier.result) == version_of(later.result)
            if same and earlier.started != later.started:  # of one push, they are the same
                yield f"{earlier} and {later} made the same version"
        versions: defaultdict[float, set[datetime]] = defaultdict(set)
        for write in done:
            versions[write.started].add(version_of(write.result))
        yield from (f"one push made {made}" for made in versions.values() if len(made) > 1)
        for write in done:
            if write.ended < started:
                yield f"{write} ended before one with an earlier version began"
            started = max(started, write.started)


class Register:
    """The writes of one task."""

    def __init__(self, task_id: int, writes: list[Write], sweeps: list[Write]) -> None:
        self.id = task_id
        self.done = [write for write in writes if write.outcome == "done"]
        self.refused = [write for write in writes if write.outcome == "refused"]
        self.absent = [write for write in writes if write.outcome == "absent"]
        # Of some changes, only the version that they made is unknown.
        self.unknown = [
            write
            for write in writes
            if write.outcome == "unknown"
            or (write.outcome == "done" and write.kind == "update" and write.result is None)
        ]
        # Creates that were sent again, and answered with the task.
        self.there = [write for write in writes if write.outcome == "there"]
        # What may have changed it.
        self.perhaps = [*self.unknown, *sweeps]
        self.deletes = [write for write in self.done if write.kind == "delete"]
        self.versions = {
            version_of(write.result): write.result for write in self.done if write.result
        }

    def faults(self, final: Task | None, views: list[Task]) -> Iterator[str]:
        for text in (
            *self._of_views(views),
            *self._of_winners(),
            *self._of_losers(),
            *self._of_contents(),
            *self._of_the_end(final),
        ):
            yield f"task {self.id}: {text}"

    def _of_views(self, views: list[Task]) -> Iterator[str]:
        for view in views:
            known = self.versions.get(version_of(view))
            if known is None and not self.perhaps:
                yield f"{view} was written by nobody"
            if known is not None and known != view:
                yield f"{view} is not the {known} that was answered"
            self.versions[version_of(view)] = view

    def _of_winners(self) -> Iterator[str]:
        winners = [write for write in self.done if write.base]
        bases = Counter(version_of(write.base) for write in winners)
        for base, count in bases.items():
            if count > 1:
                yield f"{count} writers won {base}"
        for write in winners:
            if write in self.unknown:
                continue
            base = version_of(write.base)
            made = version_of(write.result) if write.result else GONE
            if between := [version for version in self.versions if base < version < made]:
                yield f"{write} won although there was {between}"

    def _of_losers(self) -> Iterator[str]:
        writes = [*self.done, *self.perhaps]
        made = {version_of(write.result): write.started for write in self.done if write.result}
        for loser in self.refused:
            base = version_of(loser.base)
            if not any(
                # One that had ended before the version was made has not replaced it.
                made.get(base, -inf) < write.ended
                and write.started < loser.ended
                and (write.result is None or version_of(write.result) > base)
                for write in writes
            ):
                yield f"{loser} lost to nobody"
        deletes = [write for write in writes if write.kind in ("delete", "delete all")]
        for write in self.absent:
            if not any(delete.started < write.ended for delete in deletes):
                yield f"{write} found no task, and nobody had deleted it"

    def _of_contents(self) -> Iterator[str]:
        order = sorted(self.versions)
        for write in self.done:
            if not write.result or write.kind == "create":
                continue
            before = write.base
            if before is None and not self.unknown:
                earlier = [version for version in order if version < version_of(write.result)]
                before = self.versions[earlier[-1]]
                # All tasks of its status may have got another one at once.
                before = before | {"status": write.result["status"]}
            expected = (before or write.result) | write.fields
            if write.result | {"updated_at": expected["updated_at"]} != expected:
                yield f"{write} was made of {before}"

    def _of_the_end(self, final: Task | None) -> Iterator[str]:
        if len(self.deletes) > 1:
            yield f"it was deleted {len(self.deletes)} times"
        for delete in self.deletes:
            if final:
                yield f"{final} is still there after {delete}"
            for write in [*self.done, *self.there]:
                if write is not delete and write.started > delete.ended:
                    yield f"{write} changed or found what was deleted"
        perhaps = {write.kind for write in self.perhaps} & {"delete", "delete all"}
        if not (final or self.deletes or perhaps):
            yield "it is lost"
        if final and version_of(final) < max(self.versions):
            yield f"{final} is older than {max(self.versions)}"
