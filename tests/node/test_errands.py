"""The tasks of one run side by side: one that is refused keeps no other from the worker."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atoll.core.errors import Equivocation, StateError
from atoll.node import errands
from atoll.node.orders import DatasetBody, Report
from atoll.node.room import dispatcher
from atoll.node.run_folder import Held
from atoll.wire.frames import Blob
from atoll.wire.messages import BlobRef, TaskBody

PLAN = BlobRef(sha256="a" * 64, size=1)
BEGUN, NEXT = "r.train.0.a", "r.train.1.a"


class Masked:
    """Masked rounds at this site: the invitation begins the work, and the step that needs it is refused."""

    def __init__(self, run: str, site: Any) -> None:
        self.kept: list[str] = []

    def concerns(self, body: TaskBody, find: Any) -> bool:
        return body.id != NEXT

    def held(self, body: TaskBody, find: Any) -> Held:
        if body.kind == "train":
            raise StateError("this attempt is over")
        return Held(body.id, "r", Blob.of(b""), Path("said"))

    def first(self, body: TaskBody, find: Any) -> TaskBody:
        return body.model_copy(update={"id": BEGUN, "kind": "train"})

    def keep(self, order: Any, report: Report) -> bool:
        self.kept.append(order.task.id)
        return True


class Spool:
    """Takes every result."""

    full = False

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}

    def finish(self, run: str, task: str, frame: bytes, named: Any = None) -> Held:
        return self.held.setdefault(task, Held(task, run, Blob.of(frame), Path(task)))

    def result(self, run: str, task: str) -> Held | None:
        return self.held.get(task)

    def read(self, held: Held) -> bytes:
        return b""

    def prepare(self, run: str, place: Path, trains: bool) -> tuple[Path, Path]:
        return place, place

    def memory(self, run: str, kept: str) -> None:
        """None is kept."""

    def keep_memory(self, *given: object) -> None:
        """None is kept."""

    def digest(self, run: str) -> str:
        return ""


def site_in(folder: Path) -> Any:
    data = DatasetBody(name="d", path="d.csv", missing=[], columns={})
    return SimpleNamespace(
        register=(),
        home=SimpleNamespace(work=folder, logs=folder),
        settings=SimpleNamespace(limits=SimpleNamespace(seconds=60.0), log=1.0, cache=1.0),
        spool=Spool(),
        cache=SimpleNamespace(
            path=lambda blob: folder, fetch=lambda *given: None, trim=lambda pins: None
        ),
        link=SimpleNamespace(download=None),
        asked=lambda plan: (SimpleNamespace(to_plain=data.model_dump), None),
        admit=lambda body, asked: None,
        leaving=lambda held: None,
        naming=lambda *given: None,
        hand_in=lambda held, raw: None,
        trouble={},
        pins={},
    )


def test_a_step_that_is_refused_while_the_worker_is_at_it_does_not_keep_the_next_from_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    told: list[Any] = []

    def new_worker(site: Any, body: TaskBody, folder: Path, log: Any, heard: Any) -> Any:
        worker = SimpleNamespace(
            folder=folder,
            pid=1,
            order=lambda order: given.append(order.task.id) or True,
            show=lambda files: None,
            aside=folder,
            join=lambda seconds: True,
            end=lambda why="": None,
        )
        told.append(lambda report: heard(worker, report))
        return worker

    monkeypatch.setattr(errands, "Summed", Masked)
    monkeypatch.setattr(dispatcher, "new_worker", new_worker)
    run = errands.Errands("r", site_in(tmp_path), again=False)
    for name, kind in (("r.commit.0.a", "commit"), (BEGUN, "train"), (NEXT, "train")):
        run.offer(
            TaskBody(id=name, run="r", kind=kind, number=0, client="a", plan=PLAN)  # type: ignore[arg-type]
        )
    run.start()
    try:
        _until(lambda: run.state()["tasks"].get(NEXT) == "working")
        assert run.state()["tasks"][BEGUN] == "sent"
        assert given == [BEGUN]
        told[0](Report(task=BEGUN, kept=False))
        _until(lambda: given == [BEGUN, NEXT])
        assert run._masked.kept == [BEGUN]
    finally:
        run.stop()
        run.join(5.0)


@pytest.mark.parametrize("asked", [True, False], ids=["asked for again", "not"])
def test_an_answer_that_was_not_wanted_any_more_is_kept_where_it_is_asked_for_again_in_time(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server gives a task up and the next asks for it, both while the node sends an earlier answer."""
    site, sent, settled = site_in(tmp_path), list[str](), list[str]()
    held = site.spool.finish("r", NEXT, b"")
    site.hand_in = lambda held, raw: sent.append(held.task)
    site.settle = lambda run, task: settled.append(task)
    monkeypatch.setattr(errands, "Summed", Masked)
    run = errands.Errands("r", site, [held], again=True)
    run.settled(NEXT)
    if asked:
        run.offer(TaskBody(id=NEXT, run="r", kind="train", number=0, client="a", plan=PLAN))
    run.start()
    try:
        _until(lambda: len(sent) == 1 + asked and len(settled) == 1 - asked)
        assert run.state()["tasks"] == ({NEXT: "sent"} if asked else {})
        run.settled(NEXT)  # later, when it is decided
        _until(lambda: settled == [NEXT])
    finally:
        run.stop()
        run.join(5.0)


def test_that_another_has_answered_with_the_site_s_key_is_told_until_the_node_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, taken = site_in(tmp_path), list[str]()
    held = [site.spool.finish("r", task, b"") for task in (BEGUN, NEXT)]

    def hand_in(held: Held, raw: bytes) -> None:
        if held.task == BEGUN:
            raise Equivocation("there is another answer")
        taken.append(held.task)

    site.hand_in, site.settle = hand_in, lambda run, task: None
    monkeypatch.setattr(errands, "Summed", Masked)
    run = errands.Errands("r", site, held, again=True)
    run.start()
    try:
        _until(lambda: taken == [NEXT])
    finally:
        run.stop()
        run.join(5.0)
    (said,) = site.trouble.values()
    assert said.startswith(f"{BEGUN} had another answer before. Does a copy of this folder work")


def _until(done: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)
