"""What sites may not do, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import played_sites as played
import pytest

from atoll.core.errors import (
    AtollError,
    Equivocation,
    FenceError,
    Forbidden,
    NotFound,
    StateError,
    TooLarge,
    Unreachable,
    UpdateRefused,
    WireError,
)
from atoll.wire.frames import Blob, encode

World = played.World
Change = Callable[[Any, dict[str, Any], dict[str, Any]], None]


def in_training(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Change:
    """A site that changes what it sends in training only."""

    def apply(task: Any, body: dict[str, Any], arrays: dict[str, Any]) -> None:
        if task.kind == "train":
            change(body, arrays)

    return apply


def poisoned(value: float) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(body: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays["delta"] = arrays["delta"].copy()
        arrays["delta"][3] = value

    return change


def renamed(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["gamma"] = arrays.pop("delta")


def missing(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays.clear()


def further(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["more"] = arrays["delta"]


def longer(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["delta"] = np.concatenate([arrays["delta"], arrays["delta"]])


def folded(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["delta"] = arrays["delta"].reshape(1, -1)


def narrow(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["delta"] = arrays["delta"].astype(np.float32)


def put(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda body, arrays: body.update(fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (poisoned(np.nan), "1 of"),
        (poisoned(np.inf), "not finite"),
        (poisoned(1e300), "beyond"),
        (renamed, "'gamma'"),
        (missing, "'delta' is missing"),
        (further, "2 arrays"),
        (longer, "bytes"),
        (folded, "has shape"),
        (narrow, "float32"),
        (put(weight=-1.0), "ResultBody"),
        (put(weight=1e6), "weight 1000000.0"),
        (put(examples=10**6), "1000000 examples"),
        (put(task="heart-1.train.0.cleveland"), "was sent for"),
        (put(surprise=1), "ResultBody"),
        (put(metrics={"train_loss": {"count": [3]}}), "train_loss"),
        (put(metrics={"other": {"mean": ["1", "1", True]}}), "other"),
        (put(metrics={"train_loss": {"code": []}}), "unknown kind"),
    ],
)
def test_an_update_that_is_not_valid_is_refused_and_named_and_leaves_no_trace(
    make_world: Callable[..., World], change: Any, words: str
) -> None:
    world, twin = make_world(), make_world()
    world.sites["hungary"].change = in_training(change)

    def honest(body: dict[str, Any], arrays: dict[str, Any]) -> None:
        body |= {"status": "failed", "reason": "broken", "weight": 0.0, "examples": 0}
        body["metrics"] = {}
        arrays.clear()

    twin.sites["hungary"].change = in_training(honest)
    runs = [w.submit(played.heart_spec("rounds.count=2")) for w in (world, twin)]
    world.run(rounds=6)
    world.kill()
    world.run()
    twin.run()
    record = world.service.rounds(runs[0]).rounds[0]
    assert record["missing"]["hungary"].startswith("refused: ")
    assert words in record["missing"]["hungary"]
    assert sorted(record["contributed"]) == ["cleveland", "switzerland", "va-long-beach"]
    assert world.hash(runs[0]) == twin.hash(runs[1])
    refusals = [e for e in world.store.events(runs[0]) if e.kind == "refused"]
    assert {e.site for e in refusals} == {"hungary"}
    assert world.service.job(runs[0]).reason == "completed without hungary from round 1"


def test_a_failure_at_a_site_stands_in_the_record_with_its_traceback(world: World) -> None:
    def fail(body: dict[str, Any], arrays: dict[str, Any]) -> None:
        reason = "ValueError (own.py:7 in fit, own.py:3 in step)"
        body |= {"status": "failed", "reason": reason, "weight": 0.0, "examples": 0, "metrics": {}}
        arrays.clear()

    world.sites["va-long-beach"].change = in_training(fail)
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.run()
    missing = world.service.rounds(run).rounds[0]["missing"]
    assert missing == {"va-long-beach": "failed: ValueError (own.py:7 in fit, own.py:3 in step)"}


def test_a_second_answer_is_an_alarm_and_the_first_stays(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=2"))
    world.service.step()
    site = world.sites["hungary"]
    site.turn(world.service)
    task = f"{run}.survey.0.hungary"
    first = site.spool[task]
    again = world.service.deliver("hungary", task, first)
    assert again.again
    other = encode({"task": task, "status": "failed", "reason": "changed my mind"})
    for _ in range(2):
        with pytest.raises(Equivocation) as caught:
            world.service.deliver("hungary", task, other)
        assert caught.value.site == "hungary"
        world.kill()
        world.service.step()
    alarms = [e for e in world.store.events(run) if e.kind == "equivocation"]
    assert [e.site for e in alarms] == ["hungary"] * 2
    world.run()
    assert world.service.job(run).status == "completed"
    with pytest.raises(StateError):  # and after the end
        world.service.deliver("hungary", task, other)


def test_a_site_answers_for_itself_only_and_what_it_is_asked(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=2"), sites=["cleveland", "hungary"])
    world.service.step()
    frame = encode({"task": f"{run}.survey.0.cleveland", "status": "done"})
    for site, task, kind in (
        ("hungary", f"{run}.survey.0.cleveland", NotFound),
        ("switzerland", f"{run}.survey.0.switzerland", NotFound),
        ("hungary", "other-1.survey.0.hungary", NotFound),
        ("hungary", "nonsense", NotFound),
        (
            "hungary",
            f"{run}.train.7.hungary",
            Unreachable,
        ),  # for all it knows, of an earlier server
        ("hungary", f"{run}.ready.0.hungary", Unreachable),
    ):
        with pytest.raises(kind):
            world.service.deliver(site, task, frame)
    assert world.store.contributions(run) == ()


def test_bytes_that_are_no_frame_close_the_task_as_refused(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=2"))
    world.service.step()
    task = f"{run}.survey.0.hungary"
    with pytest.raises(WireError):
        world.service.deliver("hungary", task, b"not a frame")
    assert world.service.deliver("hungary", task, b"not a frame").again
    assert not world.service.poll("hungary", ()).tasks
    world.kill()
    world.run()
    assert "hungary" in world.service.job(run).reason
    assert "not a frame" in world.service.job(run).reason


def test_a_site_sees_what_its_tasks_name_and_nothing_else(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=2"), sites=["cleveland", "hungary"])
    world.reach("train")
    (task,) = world.service.poll("hungary", ()).tasks
    assert task.broadcast is not None
    for ref in (task.plan, task.broadcast):
        assert world.service.blob("hungary", ref.sha256).size == ref.size
        with pytest.raises(NotFound, match="no open task"):
            world.service.blob("switzerland", ref.sha256)
        with pytest.raises(NotFound, match="no open task"):
            world.service.blob(played.RESEARCHER, ref.sha256)
    world.sites["cleveland"].turn(world.service)
    update = world.store.contributions(run, f"{run}.train.0.cleveland")[0]
    assert world.blobs.has(update.sha256)
    with pytest.raises(NotFound, match="no open task"):
        world.service.blob("hungary", update.sha256)


def uploading(world: World) -> tuple[Any, bytes]:
    """A run in training, and an answer of hungary's that has not been sent."""
    world.submit(played.heart_spec("rounds.count=2"))
    site = world.sites["hungary"]
    world.reach("train")
    (task,) = world.service.poll("hungary", ()).tasks
    return task, site.answer(world.service, task)


def test_a_long_answer_comes_in_chunks_over_a_restart(world: World) -> None:
    task, frame = uploading(world)
    blob, service = Blob.of(frame), world.service
    half = len(frame) // 2
    with pytest.raises(Unreachable, match="not been uploaded"):
        service.deliver_uploaded("hungary", task.id, blob)
    sent = service.upload_chunk("hungary", blob.sha256, blob.size, 0, frame[:half], task.id)
    assert sent == half
    world.kill()
    world.service.step()
    service = world.service
    assert service.upload_received("hungary", blob.sha256) == half
    assert service.upload_received("cleveland", blob.sha256) == 0
    whole = service.upload_chunk("hungary", blob.sha256, blob.size, half, frame[half:], task.id)
    assert whole == blob.size
    world.kill()  # between the upload and its delivery
    world.service.step()
    assert not world.service.deliver_uploaded("hungary", task.id, blob).again
    assert world.service.deliver_uploaded("hungary", task.id, blob).again
    world.run()
    assert world.service.job(task.run).reason == "completed"


def test_an_upload_beyond_what_the_job_needs_is_refused_before_a_byte_is_kept(world: World) -> None:
    task, _ = uploading(world)
    digest = "a" * 64
    with pytest.raises(TooLarge, match="at most"):
        world.service.upload_chunk("hungary", digest, 1 << 30, 0, b"x", task.id)
    assert world.service.upload_received("hungary", digest) == 0
    world.run()
    record = world.service.rounds(task.run).rounds[0]
    assert "1073741824 bytes" in record["missing"]["hungary"]


def test_uploads_belong_to_an_open_task_of_the_site_or_to_a_researcher(world: World) -> None:
    task, frame = uploading(world)
    blob = Blob.of(frame)
    chunk = (blob.sha256, blob.size, 0, frame)
    for name, of, kind in (
        ("hungary", "", Forbidden),
        (played.RESEARCHER, task.id, Forbidden),
        ("cleveland", task.id, NotFound),
        ("hungary", task.id.replace("train", "ready"), StateError),
        ("nobody", "", Forbidden),
    ):
        with pytest.raises(kind):
            world.service.upload_chunk(name, *chunk, of)
    code = b"def model(): ...\n"
    own = Blob.of(code)
    assert world.service.upload_chunk(played.RESEARCHER, own.sha256, own.size, 0, code, "") == 17


def test_naming_anothers_blob_neither_shows_nor_removes_it(world: World) -> None:
    task, _ = uploading(world)
    world.sites["cleveland"].turn(world.service)
    theirs = world.store.contributions(task.run, f"{task.run}.train.0.cleveland")[0]
    with pytest.raises(UpdateRefused, match="was sent for"):
        world.service.deliver_uploaded("hungary", task.id, Blob(theirs.sha256, theirs.size))
    assert world.blobs.has(theirs.sha256)
    world.run()
    record = world.service.rounds(task.run).rounds[0]
    assert list(record["missing"]) == ["hungary"]
    assert "cleveland" in record["contributed"]


def test_an_answer_that_is_lost_from_disk_is_asked_for_again(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.reach("train")
    world.sites["cleveland"].turn(world.service)
    first = world.store.contributions(run, f"{run}.train.0.")[0]
    world.blobs.delete(first.sha256)
    world.kill()
    world.service.step()
    (task,) = world.service.poll(first.client, [first.task]).tasks
    assert task.id == first.task
    world.run()
    assert world.service.job(run).reason == "completed"
    assert len(world.sites[first.client].worked) == len(set(world.sites[first.client].worked))


def test_the_first_to_come_does_not_decide_which_metrics_count(world: World) -> None:
    def odd(task: Any, body: dict[str, Any], arrays: dict[str, Any]) -> None:
        if task.kind == "evaluate":
            body["metrics"] = {"loss": {"count": [1]}}

    world.sites["cleveland"].change = odd  # always asked first here
    run = world.submit(played.heart_spec("rounds.count=2"))
    world.run()
    assert world.service.job(run).status == "completed"
    record = world.service.rounds(run).rounds[-1]
    assert record["sites"]["cleveland"] == {}
    assert record["sites"]["hungary"]["loss"] > 0


def test_polling_tells_what_is_wanted_and_what_is_not(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=2"))
    assert world.service.poll("hungary", ["other-9.train.0.hungary"]).gone == [
        "other-9.train.0.hungary"
    ]
    survey = f"{run}.survey.0.hungary"
    assert world.service.poll("hungary", [survey]).gone == []  # nothing is known yet
    world.service.step()
    (task,) = world.service.poll("hungary", ()).tasks
    assert (task.id, task.deadline) == (survey, 3600.0)
    assert world.service.poll("hungary", [survey]).tasks == []
    world.sites["hungary"].turn(world.service)
    assert world.service.poll("hungary", [survey]).gone == []  # not settled: the others answer yet
    world.run()
    assert world.service.poll("hungary", [survey]).gone == [survey]
    assert set(world.changed) >= {"hungary", f"run {run}"}


def test_what_a_site_keeps_follows_from_what_was_committed(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=3", "algorithm.name='scaffold'"))
    world.run()
    asked = [t for t in world.sites["hungary"].asked if t.kind in ("train", "evaluate")]
    assert [(t.kind, t.number, t.kept) for t in asked] == [
        ("train", 0, ""),
        ("evaluate", 1, f"{run}.train.0.hungary"),
        ("train", 1, f"{run}.train.0.hungary"),
        ("evaluate", 2, f"{run}.train.1.hungary"),
        ("train", 2, f"{run}.train.1.hungary"),
        ("evaluate", 3, f"{run}.train.2.hungary"),
    ]


def test_an_error_of_the_server_itself_ends_that_run_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atoll.server.rounds.playing import Playing

    run = world.submit(played.heart_spec("rounds.count=2"))
    other = world.submit(played.heart_spec("rounds.count=2", "seed=2"))
    save = Playing._save

    def broken(self: Any, progress: Any) -> None:
        if self._row.id == run:
            raise RuntimeError("a fault of ours")
        save(self, progress)

    monkeypatch.setattr(Playing, "_save", broken)
    world.run()
    assert world.service.job(run).status == "failed"
    assert "RuntimeError: a fault of ours" in world.service.job(run).reason
    assert world.service.job(other).status == "completed"


def test_only_a_researcher_submits_and_only_its_own_runs_are_cancelled(world: World) -> None:
    spec = played.heart_spec("rounds.count=2")
    body = world.submission(spec)
    for name in ("hungary", "nobody"):
        with pytest.raises(Forbidden):
            world.service.submit(name, body)
    run = world.submit(spec)
    with pytest.raises(Forbidden, match="ruth"):
        world.service.cancel(run, "hungary")
    assert isinstance(Forbidden("x"), AtollError)


def test_a_server_that_was_replaced_tells_nobody_that_an_answer_is_not_needed(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=2"))
    world.reach("train")
    old = world.service
    world.store.lose_lock()
    world.start()
    later = world.submit(played.heart_spec("rounds.count=1"))
    task = f"{later}.survey.0.hungary"
    for ask in (
        lambda: old.poll("hungary", [task]),
        lambda: old.deliver("hungary", task, b""),
        lambda: old.blob("hungary", "0" * 64),
        old.step,
    ):
        world.time += 2
        with pytest.raises(FenceError):
            ask()
    world.run()
    assert world.service.job(run).reason == world.service.job(later).reason == "completed"
