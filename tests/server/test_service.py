"""A deployed run: the same result as the simulation, whoever is killed when."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import played_sites as played
import pytest

import atoll
from atoll.core.errors import FenceError, JobError, NotFound, StateError, Unreachable
from atoll.job.package import spec_digest
from atoll.report.folder import read_model
from atoll.server.rounds import playing
from atoll.server.service import Service
from atoll.server.store.memory import MemoryStore
from atoll.wire.frames import Blob
from atoll.wire.identity import Identity
from atoll.wire.messages import BlobRef
from atoll.wire.submissions import Submission

World = played.World
REGRESSION = (
    *("rounds.count=3", "model.kind='linear'", "data.task='regression'", "data.classes=[]"),
    *("data.target='age'", "data.stratify=false", "data.columns.age={}"),
)
SCAFFOLD = ("rounds.count=4", "algorithm.name='scaffold'")
RESTING = ("rounds.count=6", "rounds.cohort='uniform'", "rounds.size=2", "rounds.separation=2")


def simulated(*overrides: str) -> Any:
    job = atoll.load_job(played.HEART, ["evaluation.compare=false", *overrides])
    return atoll.simulate(job, executor="serial")


def bare(record: Any) -> dict[str, Any]:
    """A round's record without what two runs may differ in."""
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.parametrize(
    "overrides",
    [
        ("rounds.count=4",),
        SCAFFOLD,
        ("rounds.count=5", "rounds.cohort='uniform'", "rounds.size=2"),
        RESTING,
        ("rounds.count=3", "preprocessing.mode='site'", "algorithm.name='fednova'"),
        REGRESSION,
    ],
)
def test_a_deployed_run_ends_in_the_bits_and_records_of_the_simulation(
    world: World, overrides: tuple[str, ...]
) -> None:
    run = world.submit(played.heart_spec(*overrides))
    world.run()
    twin = simulated(*overrides)
    assert world.service.job(run).status == "completed", world.service.job(run).reason
    assert world.hash(run) == twin.model_hash
    mine = [bare(record) for record in world.service.rounds(run).rounds]
    assert mine == [bare(record) for record in twin.rounds]


def test_a_federation_too_small_for_its_sites_to_rest_is_told_at_submission(world: World) -> None:
    with pytest.raises(JobError) as caught:
        world.submit(played.heart_spec(*RESTING, "rounds.separation=3"))
    (fault,) = caught.value.faults
    assert "each at most once in 3 rounds, take 6 clients, and there are 4" in fault.message


@pytest.mark.parametrize("first", [("rounds.count=4",), SCAFFOLD])
def test_a_model_that_is_shown_by_a_thread_of_its_own_has_the_same_bits(
    world: World, first: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (*first, "evaluation.every=3")  # in such a round it is shown before
    threads = []
    show = playing.Playing._show

    def noted(self: playing.Playing, broadcast: Any) -> Any:
        threads.append((broadcast.version, threading.current_thread().name.partition("_")[0]))
        return show(self, broadcast)

    monkeypatch.setattr(playing, "_LARGE", 0)
    monkeypatch.setattr(playing.Playing, "_show", noted)
    run = world.submit(played.heart_spec(*overrides))
    world.run()
    assert world.hash(run) == simulated(*overrides).model_hash
    # Each version is made once, those of rounds without an evaluation beside their checkpoint.
    assert [version for version, _ in threads] == list(range(len(threads)))
    assert [version for version, name in threads if name == "atoll-show"] == [1, 2]


def test_the_folder_is_that_of_a_simulation(world: World, tmp_path: Path) -> None:
    run = world.submit(played.heart_spec("rounds.count=3"))
    assert world.service.files(run) == {}
    world.run()
    job = atoll.load_job(played.HEART, ["evaluation.compare=false", "rounds.count=3"])
    atoll.simulate(job, executor="serial", out=tmp_path / "twin")
    twin = {p.relative_to(tmp_path / "twin").as_posix() for p in (tmp_path / "twin").rglob("*.*")}
    files = world.service.files(run)
    own = {name for name in twin if not name.startswith("checkpoint/")}
    assert own <= set(files)
    assert "checkpoint/round-00000003.safetensors" in files
    model = world.home / "runs" / run / "model.safetensors"
    assert model.read_bytes() == (tmp_path / "twin" / "model.safetensors").read_bytes()
    assert read_model(model)[0]
    manifest = json.loads((world.home / "runs" / run / "manifest.json").read_text())
    other = json.loads((tmp_path / "twin" / "manifest.json").read_text())
    for key in ("job_hash", "data", "cards", "population", "best", "model_hash", "status"):
        assert manifest[key] == other[key], key


def test_a_file_is_read_by_name_and_range(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=1"))
    with pytest.raises(NotFound, match="has not ended"):
        world.service.file(run, "manifest.json")
    world.run()
    found = world.service.file(run, "metrics.jsonl")
    assert found.size == world.service.files(run)["metrics.jsonl"].size
    assert found.read(0, 1) == b"{"
    for name in ("../store.db", "nothing", "/etc/passwd"):
        with pytest.raises(NotFound, match="no file"):
            world.service.file(run, name)


@pytest.mark.parametrize("overrides", [("rounds.count=3",), SCAFFOLD, RESTING])
def test_killed_between_all_steps_and_answers_a_run_ends_in_the_same_bits(
    world: World, overrides: tuple[str, ...]
) -> None:
    run = world.submit(played.heart_spec(*overrides))
    kills = idle = 0
    while idle < 2:
        idle += 1
        for site in world.sites.values():
            world.service.step()
            world.kill()
            world.service.step()
            idle = 0 if site.turn(world.service) else idle
            world.kill()
            kills += 2
    world.service.step()
    assert world.service.job(run).status == "completed"
    assert world.hash(run) == simulated(*overrides).model_hash
    assert kills > 40
    for site in world.sites.values():  # nobody has worked twice for what was acknowledged
        assert len(site.worked) == len(set(site.worked))


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("stride", [1, 5, 11])
def test_killed_inside_store_and_disk_operations_a_run_ends_in_the_same_bits(
    world: World, stride: int, power: bool
) -> None:
    """Every ``stride``-th operation since the last start is a crash, later after each success."""
    run = world.submit(played.heart_spec("rounds.count=2"))
    crashes, patience, left = 0, 1, 1

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash

    def watch(hook: Callable[..., None]) -> None:
        world.store.before = world.store.after = world.disk.before = hook

    while world.database.runs[run].status != "completed":
        try:
            watch(count)
            for site in world.sites.values():
                world.service.step()
                site.turn(world.service)
        except Crash:
            watch(lambda *_: None)
            if power:
                world.disk.crash()
            world.store.crash()
            world.start()
            crashes += 1
            left = patience = patience + stride  # each life goes a little further than the last
    watch(lambda *_: None)
    assert crashes > 10
    assert world.hash(run) == simulated("rounds.count=2").model_hash


def test_records_in_the_folder_that_were_not_committed_are_cut(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=3"))
    world.reach("train", 1)
    metrics = world.home / "runs" / run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"round": 2, "torn": tr')
    world.kill()
    world.run()
    numbers = [json.loads(line)["round"] for line in metrics.read_text().splitlines()]
    assert numbers == [1, 2, 3]


def test_what_is_useless_is_deleted_and_the_last_two_checkpoints_stay(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=4"))
    world.run()
    kept = {row.checkpoint for row in world.store.rounds(run)[-2:]}
    assert set(world.blobs.digests()) == kept


def test_what_a_crash_left_behind_is_collected_at_the_next_start(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=4"))
    world.blobs.put(b"of unknown origin")
    stray = world.blobs.put(b"x" * 8)
    delete, world.blobs.delete = world.blobs.delete, lambda sha256: None  # type: ignore[method-assign]
    world.run()
    assert len(list(world.blobs.digests())) > 20
    world.blobs.delete = delete  # type: ignore[method-assign]
    world.kill()
    kept = {row.checkpoint for row in world.store.rounds(run)[-2:]}
    assert set(world.blobs.digests()) == {*kept, stray.sha256, *_of(b"of unknown origin")}


def _of(raw: bytes) -> set[str]:
    import hashlib

    return {hashlib.sha256(raw).hexdigest()}


def test_several_runs_at_once_end_as_each_alone(world: World) -> None:
    jobs = [("rounds.count=3",), SCAFFOLD, ("rounds.count=2", "seed=7")]
    runs = [world.submit(played.heart_spec(*overrides)) for overrides in jobs]
    world.run(rounds=4)
    world.kill()
    world.run()
    for run, overrides in zip(runs, jobs, strict=True):
        assert world.hash(run) == simulated(*overrides).model_hash


def test_a_run_that_fails_leaves_the_others_alone_and_names_its_sites(world: World) -> None:
    bad = world.submit(played.heart_spec("rounds.count=2", "data.drop=['ca', 'nothing']"))
    good = world.submit(played.heart_spec("rounds.count=2"))
    world.run()
    assert world.service.job(good).status == "completed"
    failed = world.service.job(bad)
    assert failed.status == "failed"
    assert "nothing" in failed.reason
    manifest = json.loads((world.home / "runs" / bad / "manifest.json").read_text())
    assert manifest["status"].startswith("failed: ")


def test_a_site_that_cannot_take_part_ends_the_run_by_name(world: World) -> None:
    def lame(task: Any, body: dict[str, Any], arrays: dict[str, Any]) -> None:
        body |= {"status": "failed", "reason": "no dataset 'heart'", "answer": {}}
        arrays.clear()

    world.sites["hungary"].change = lame
    run = world.submit(played.heart_spec("rounds.count=2"))
    world.run()
    reply = world.service.job(run)
    assert reply.status == "failed"
    assert "hungary" in reply.reason
    assert "no dataset 'heart'" in reply.reason


def test_submissions_are_refused_with_every_fault(world: World) -> None:
    spec = played.heart_spec("data.site_column=''", "clock.dropout=0.5")
    with pytest.raises(JobError) as caught:
        world.submit(
            spec,
            sites=["cleveland", "clevelnd"],
            files={"own.py": BlobRef(sha256="0" * 64, size=3)},
        )
    text = str(caught.value)
    assert "clock.dropout" in text
    assert "did you mean 'cleveland'?" in text
    assert "own.py" in text
    body = world.submission(played.heart_spec())
    with pytest.raises(JobError, match="hash"):
        world.service.submit(played.RESEARCHER, body.model_copy(update={"job_hash": "0" * 64}))


def test_a_submission_that_somebody_else_signed_or_that_was_changed_is_refused(
    world: World,
) -> None:
    body, other = (world.submission(played.heart_spec(f"seed={seed}")) for seed in (1, 2))
    key = Identity.fresh()
    told = "", played.RESEARCHER, spec_digest(played.heart_spec("seed=1")), {}, ()
    changes = [
        {"signed": other.signed},
        {"signed": body.signed.model_copy(update={"sites": ["hungary"]})},
        {"signed": body.signed.model_copy(update={"nonce": "f" * 32})},
        {"signed": Submission(*told, body.signed.nonce).signed(key)},
        {"files": {"own.py": BlobRef(sha256="0" * 64, size=3)}},
    ]
    for change in changes:
        with pytest.raises(JobError, match="is not what ruth has signed"):
            world.service.submit(played.RESEARCHER, body.model_copy(update=change))
    assert world.service.jobs() == []


def test_the_same_submission_again_is_the_run_that_it_has_become(world: World) -> None:
    body = world.submission(played.heart_spec("rounds.count=1"))
    run = world.service.submit(played.RESEARCHER, body)
    assert world.service.submit(played.RESEARCHER, body) == run
    world.kill()
    assert world.service.submit(played.RESEARCHER, body) == run
    assert world.submit(played.heart_spec("rounds.count=1")) != run
    world.submitted -= 1  # its number once more, under something else
    world.submit(played.heart_spec("rounds.count=2"))
    assert len(world.service.jobs()) == 3


def test_a_file_whose_last_byte_came_before_the_server_was_killed_is_here(world: World) -> None:
    code = Blob.of(b"x = 1\n")
    world.disk.append(world.blobs._partial(code.sha256, played.RESEARCHER), 0, b"x = 1\n")
    world.kill()
    assert world.service.upload_received(played.RESEARCHER, code.sha256) == code.size
    run = world.submit(played.heart_spec("rounds.count=1"), files={"own.py": BlobRef.of(code)})
    world.run()
    assert world.service.job(run).status == "completed"


def test_a_subset_of_sites_can_be_asked(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=2"), sites=["hungary", "cleveland"])
    world.run()
    assert world.service.job(run).sites == ["cleveland", "hungary"]
    assert world.service.job(run).status == "completed"
    assert world.sites["switzerland"].asked == []


def test_who_looks_when_told_of_the_end_sees_it(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=1"))
    seen: list[bool] = []

    def look(names: Collection[str]) -> None:
        if f"run {run}" in names and world.service.job(run).status == "completed":
            seen.append(all(world.service.poll(s, {run}).gone == [run] for s in world.sites))

    world.service.on_change = look
    world.run()
    assert seen == [True]


def test_a_cancelled_run_ends_and_says_by_whom_also_after_a_crash(world: World) -> None:
    runs = [world.submit(played.heart_spec("rounds.count=50")) for _ in range(2)]
    world.run(rounds=6)
    for run in runs:
        world.service.cancel(run, played.RESEARCHER)
    world.service.step()
    world.kill()
    world.run()
    for run in runs:
        reply = world.service.job(run)
        assert (reply.status, reply.reason) == ("cancelled", "cancelled by ruth")
        manifest = json.loads((world.home / "runs" / run / "manifest.json").read_text())
        assert manifest["status"] == f"cancelled by ruth after round {manifest['rounds']}"
        with pytest.raises(StateError, match="has ended"):
            world.service.cancel(run, played.RESEARCHER)


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_is_cancelled_before_it_is_taken_up_again_tells_of_its_rounds(
    world: World, lost: bool
) -> None:
    run = world.submit(played.heart_spec("rounds.count=50"))
    world.reach("train", 2)
    world.service.cancel(run, played.RESEARCHER)
    if lost:  # so that it cannot come to its rounds without the sites
        world.blobs.delete(world.store.contributions(run, f"{run}.survey.")[0].sha256)
    world.kill()
    world.service.step()
    assert world.service.job(run).status == "cancelled"
    folder = world.home / "runs" / run
    manifest = json.loads((folder / "manifest.json").read_text())
    after = "" if lost else " after round 2"
    assert (manifest["status"], manifest["rounds"]) == (f"cancelled by ruth{after}", 2)
    assert (folder / "report.html").is_file() is not lost


def test_a_run_that_ends_while_it_is_cancelled_stays_ended(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.reach("evaluate", 1)
    for site in world.sites.values():
        site.turn(world.service)
    looks: list[str] = []

    def end(operation: str) -> None:
        if operation == "run" and not looks:
            looks.append(operation)
            world.service.step()

    world.store.after = end  # after the run's row was read, before it is changed
    with pytest.raises(StateError, match="has ended"):
        world.service.cancel(run, played.RESEARCHER)
    world.kill()
    world.run()
    assert world.service.job(run).status == "completed"


def test_a_second_server_is_refused_and_one_that_was_replaced_stops(world: World) -> None:
    def another() -> Service:
        store = MemoryStore(world.database)
        return Service(store, world.blobs, world.home, now=lambda: world.time)

    with pytest.raises(FenceError, match="held by"):
        another().start()
    run = world.submit(played.heart_spec("rounds.count=3"))
    world.run(rounds=2)
    world.store.lose_lock()
    newer = another()
    newer.start()
    with pytest.raises(FenceError, match="took over"):
        world.run()
    old, world.service = world.service, newer
    world.run()
    assert newer.job(run).status == "completed"
    assert old.epoch < newer.epoch


def test_a_full_disk_pauses_a_run_which_goes_on_by_itself(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=3"))
    world.reach("evaluate", 2)
    for site in world.sites.values():
        site.turn(world.service)

    def full(operation: str, path: Path) -> None:
        if operation == "write":
            raise OSError(28, "No space left on device")

    world.disk.before = full
    world.service.step()
    assert world.service.job(run).status == "open"
    events = [event for event in world.store.events(run) if event.kind == "paused"]
    assert "No space left on device" in events[0].text
    with pytest.raises(Unreachable, match="taken up again"):  # not "no such task": try again
        world.service.deliver("hungary", f"{run}.train.9.hungary", b"any")
    world.disk.before = lambda operation, path: None
    world.wait(20)
    assert world.hash(run) == simulated("rounds.count=3").model_hash


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm.name='fedasync'",),
        ("algorithm.name='fedbuff'", "rounds.buffer=2"),
        ("algorithm.name='fedbuff'", "rounds.buffer=2", "rounds.concurrency=3"),
    ],
)
def test_an_asynchronous_run_counts_every_answer_at_most_once_also_when_killed(
    make_world: Callable[..., World], overrides: tuple[str, ...]
) -> None:
    spec = played.heart_spec("rounds.count=8", "rounds.mode='async'", *overrides)
    for kill in (False, True):
        world = make_world()
        run = world.submit(spec)
        idle = 0
        while idle < 2:
            idle += 1
            for site in world.sites.values():
                world.service.step()
                idle = 0 if site.turn(world.service) else idle
                if kill:
                    world.kill()
        world.service.step()
        assert world.service.job(run).status == "completed"
        rows = world.store.rounds(run)
        used = [task for row in rows for task in row.tasks]
        assert len(used) == len(set(used)) == 8 * spec.rounds.buffer
        assert max(row.record["staleness"]["max"] for row in rows) > 0
        for site in world.sites.values():
            assert len(site.worked) == len(set(site.worked))


def test_an_asynchronous_run_that_waits_for_all_is_the_synchronous_one(world: World) -> None:
    overrides = ("rounds.count=4", "algorithm.name='fedbuff'", "rounds.mode='async'")
    run = world.submit(played.heart_spec(*overrides, "rounds.buffer=4"))
    world.run()
    assert world.hash(run) == simulated(*overrides, "rounds.buffer=4").model_hash
