"""Buffers of asynchronous runs under masks: sums alone are seen, whoever drops out, whenever it is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import masked_sites as masked
import numpy as np
import played_sites as played
import pytest

from atoll.core.errors import UpdateRefused
from atoll.job.buffered import Starts
from atoll.privacy.secagg.terms import usual_threshold
from atoll.wire.frames import encode
from atoll.wire.messages import ResultBody

RUN = ("evaluation.federated=false", "stop.metric=", "stop.patience=0", "algorithm.name=fedbuff")


def spec(aggregation: str, buffer: int, *more: str, rounds: int = 3, mode: str = "async") -> Any:
    made = played.heart_spec(
        *RUN,
        f"privacy.aggregation={aggregation}",
        f"rounds.count={rounds}",
        f"rounds.mode={mode}",
        *(("rounds.buffer=3", "rounds.max_staleness=6") if mode == "async" else ()),
        *more,
    )
    # The file beside the job has rows of four sites only.
    paced = made.rounds.model_copy(update={"buffer": buffer}) if mode == "async" else made.rounds
    return made.model_copy(update={"rounds": paced})


def halves(six: dict[str, Any]) -> dict[str, Any]:
    """Twelve sites: each of the six cut in two."""
    return {
        f"{name} {part}": table.take(np.arange(start, len(table), 2))
        for name, table in six.items()
        for start, part in enumerate("xy")
    }


@pytest.fixture
def world(tmp_path: Path, six: dict[str, Any]) -> masked.MaskedWorld:
    return masked.MaskedWorld(tmp_path / "home", six)


@pytest.fixture
def twelve(tmp_path: Path, six: dict[str, Any]) -> masked.MaskedWorld:
    return masked.MaskedWorld(tmp_path / "home", halves(six))


def records(world: Any, run: str) -> list[dict[str, Any]]:
    return [dict(row.record) for row in world.store.rounds(run)]


def quantised(home: Path, tables: dict[str, Any], rounds: int, *more: str) -> str:
    """The model of the synchronous run with the same integers."""
    made = spec("quantised", 6, *more, rounds=rounds, mode="sync")
    return played.model_hash(home / "quantised", tables, made)


def test_a_buffer_of_everybody_has_the_bits_of_synchronous_rounds(world, six, tmp_path):
    run = world.submit(spec("masked", 6))
    world.run()
    assert world.store.run(run).reason == "completed"
    assert world.hash(run) == quantised(tmp_path, six, 3)
    for record in records(world, run):
        assert sorted(record["contributed"]) == sorted(six)
        assert set(record["contributed"].values()) == {0}  # rows are told in total only


def test_a_job_that_says_nothing_is_masked_with_its_figures_as_in_synchronous_rounds(six, tmp_path):
    told = ("evaluation.federated=true",)
    found = []
    for mode in ("async", "sync"):
        world = masked.MaskedWorld(tmp_path / mode, six)
        run = world.submit(spec("auto", 6, *told, rounds=2, mode=mode))
        world.run()
        assert world.store.run(run).reason == "completed"
        assert all(site.book.records for site in world.sites.values())
        figures = [(r["federated"], r["train"], r["sites"]) for r in records(world, run)]
        found.append((world.hash(run), figures))
    assert found[0] == found[1]
    assert found[0][1][1][0]["loss"] > 0


def go(world: Any, run: str, sites: list[str], until: Any) -> None:
    """Let server and these sites take turns until something is so, before the next answer."""
    for _ in range(100):
        world.service.step()
        if until():
            return
        for name in sites:
            world.sites[name].turn(world.service)
    raise AssertionError("it never came to that")


def rounds(world: Any, run: str, sites: list[str]) -> None:
    """One more round, by these sites."""
    done = len(world.store.rounds(run))
    go(world, run, sites, lambda: len(world.store.rounds(run)) > done)


def test_the_first_who_are_ready_are_the_buffer_and_the_others_count_later(twelve):
    names = list(twelve.sites)
    run = twelve.submit(spec("masked", 6, rounds=2))
    twelve.reach("fit")
    rounds(twelve, run, names[:6])
    first = records(twelve, run)[0]
    assert sorted(first["contributed"]) == sorted(names[:6])
    rounds(twelve, run, names[6:])
    second = records(twelve, run)[1]
    assert sorted(second["contributed"]) == sorted(names[6:])
    assert (second["staleness"]["mean"], second["staleness"]["max"]) == (1.0, 1)
    assert twelve.store.run(run).status == "completed"


def test_old_updates_count_less_inside_the_mask(twelve, tmp_path, six):
    """The sum of the second step is that of simulated updates, each times 2^-1/2."""
    names = list(twelve.sites)
    run = twelve.submit(spec("masked", 6, rounds=2))
    twelve.reach("fit")
    for half in (names[:6], names[6:]):
        rounds(twelve, run, half)
    plain = played.World(tmp_path / "plain", halves(six))
    other = plain.submit(spec("plain", 6, rounds=2))
    plain.reach("train")
    for half in (names[:6], names[6:]):
        rounds(plain, other, half)
    mine, theirs = parameters(twelve, run), parameters(plain, other)
    assert np.abs(mine - theirs).max() < 1e-4
    assert np.abs(theirs).max() > 0.01


def parameters(world: Any, run: str) -> Any:
    """Of the last checkpoint."""
    from atoll.job.package import spec_from_plain
    from atoll.runtime import checkpoint

    row = world.store.last_round(run)
    raw = bytes(world.blobs.view(row.checkpoint))
    job = spec_from_plain(json.loads(world.store.run(run).spec)).hash()
    return checkpoint.decode(raw, job)[0].state.parameters


@pytest.mark.parametrize("step", ["fit", *masked.STEPS])
def test_the_sum_is_exact_whatever_step_a_site_dies_in(world, six, tmp_path, step):
    """Five of six are enough; who sent its integers is in the sum, even if it is gone when that is opened."""
    world.sites["switzerland"].dies_at = step
    run = world.submit(spec("masked", 6, rounds=1))
    assert world.ended(run) == "completed"
    inside = step in ("pledge", "release")
    left = set(six) if inside else set(six) - {"switzerland"}
    last = records(world, run)[-1]
    assert set(last["contributed"]) == left
    simple = played.World(tmp_path / "quantised", six)
    other = simple.submit(spec("quantised", 6, rounds=1, mode="sync"))
    simple.reach("train")
    absent = () if inside else ("switzerland",)
    simple.run(absent=absent)
    while simple.store.run(other).status == "open":
        simple.wait(20, absent=absent)
    assert world.hash(run) == simple.hash(other)


def test_below_the_threshold_nothing_is_opened_and_nothing_is_lost(world, six):
    """Two of six are gone: four would be too few to hide among."""
    for name in ("cleveland B", "switzerland"):
        world.sites[name].dies_at = "fit"
    run = world.submit(spec("masked", 6, "rounds.max_aborts=2"))
    assert world.ended(run, most=9000) == "failed"
    assert "4 sites are ready, and no 6 of them can be in one sum" in world.store.run(run).reason
    assert not [
        r for s in world.sites.values() for r in s.book.records if r.occasion.job.count("/") == 1
    ]


@pytest.mark.parametrize("killed", [False, True])
def test_a_buffer_that_was_asked_for_shares_and_not_opened_is_tried_again(twelve, killed):
    """Its sites give these updates to no other; the same buffer tells nothing new."""
    names = list(twelve.sites)
    run = twelve.submit(spec("masked", 6, rounds=3))
    twelve.reach("fit")
    go(twelve, run, names[:6], lambda: asked(twelve, run, "release"))
    for name in names[:2]:
        twelve.sites[name].turn(twelve.service)  # two release, four lose their keys
    for name in names[2:6]:
        twelve.sites[name].begin()
    rounds(twelve, run, names[:6])
    first = records(twelve, run)[0]
    assert not first["committed"]
    if killed:
        twelve.kill()
    go(twelve, run, names[6:], lambda: len(ready(twelve, run)) >= 6)
    assert len(notes(twelve, run)) == 1  # they are not taken: the others come first
    rounds(twelve, run, names)
    assert [set(note_sites(note)) for note in notes(twelve, run)[:2]] == [set(names[:6])] * 2
    assert set(records(twelve, run)[1]["contributed"]) == set(names[:6])
    twelve.run()
    assert twelve.store.run(run).status == "completed"


def asked(world: Any, run: str, kind: str) -> bool:
    """Whether sites are asked for that in a round of updates."""
    tasks = [t for n in world.sites for t in world.service.poll(n, ()).tasks]
    return any((t.kind, t.about) == (kind, "train") for t in tasks)


def ready(world: Any, run: str) -> list[str]:
    """Who has said so in the present step and before."""
    return [row.client for row in world.store.contributions(run, f"{run}.fit.")][6:]


def note_sites(note: list[str]) -> list[str]:
    return [task.split(".", 3)[3] for task in note]


def test_a_server_that_is_killed_after_every_single_answer_comes_to_the_same_bits(
    world, six, tmp_path
):
    run = world.submit(spec("masked", 6, rounds=2))
    world.killed_after_every_answer(run)
    assert world.store.run(run).status == "completed"
    assert world.hash(run) == quantised(tmp_path, six, 2)
    once(world)


def once(world: Any) -> None:
    """No site has released shares twice for a round, nor put one update into two sums."""
    for site in world.sites.values():
        mine = [r for r in site.book.records if r.kind == "release"]
        rounds = [r.occasion.name for r in mine]
        assert len(set(rounds)) == len(rounds)
        sources = [(r.occasion.job, r.source) for r in mine if r.source]
        assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("seed", range(6))
def test_in_a_storm_of_kills_every_sum_is_of_whole_buffers_and_no_update_is_in_two(twelve, seed):
    """Sites answer in any order and lose their keys, the server is killed; each round is right or not there."""
    rng = np.random.default_rng(seed)
    names = list(twelve.sites)
    run = twelve.submit(spec("masked", 6, rounds=4))
    twelve.reach("fit")  # before that, all sites must be there
    for _ in range(4000):
        twelve.service.step()
        site = twelve.sites[names[rng.integers(len(names))]]
        site.turn(twelve.service)
        chance = rng.random()
        if chance < 0.02:
            site.begin()
        elif chance < 0.04:
            twelve.kill()
        elif chance < 0.06:
            twelve.time += 5.0
        if twelve.store.run(run).status != "open":
            break
    assert twelve.ended(run) == "completed", twelve.store.run(run).reason
    once(twelve)
    for record in records(twelve, run):
        if record["committed"]:
            assert usual_threshold(6) <= len(record["contributed"]) <= 6
            assert record["staleness"]["max"] <= 6


def test_the_same_sites_are_asked_after_a_kill_though_another_is_ready_meanwhile(twelve):
    names = list(twelve.sites)
    run = twelve.submit(spec("masked", 6, rounds=1))
    twelve.reach("fit")
    go(twelve, run, names[:6], lambda: notes(twelve, run))
    (chosen,) = notes(twelve, run)
    twelve.kill()
    twelve.run()
    assert twelve.store.run(run).status == "completed"
    assert sorted(records(twelve, run)[0]["contributed"]) == sorted(names[:6])
    assert notes(twelve, run) == [chosen]


def notes(world: Any, run: str) -> list[list[str]]:
    """The buffers that were written down."""
    found = [json.loads(e.text) for e in world.store.events(run) if e.kind == "buffer"]
    return [note["tasks"] for note in found]


def test_a_ready_site_says_nothing_else(world):
    site = world.sites["switzerland"]
    honest = site._work

    def work(service: Any, task: Any) -> bytes:
        if task.kind != "fit":
            return honest(service, task)
        return encode(ResultBody(task=task.id, status="done", examples=123).model_dump())

    site._work = work
    run = world.submit(spec("masked", 6, rounds=1))
    assert world.ended(run) == "completed"
    record = records(world, run)[-1]
    assert "in the clear" in record["missing"]["switzerland"]
    assert not any(isinstance(error, UpdateRefused) for error in site.refusals)


def test_a_buffer_is_shown_as_it_is(world):
    """What the sites of a buffer agree on names each of them, and the one model that all have."""
    seen: list[Starts] = []
    real = Starts.from_plain

    def spying(raw: Any) -> Starts:
        seen.append(real(raw))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Starts, "from_plain", staticmethod(spying))
        run = world.submit(spec("masked", 6, rounds=1))
        world.run()
    assert world.store.run(run).status == "completed"
    assert len(seen) == 6
    assert {found.mark for found in seen} == {seen[0].mark}
    assert seen[0].sites == dict.fromkeys(world.sites, 0)


def test_a_site_that_is_always_the_slowest_never_counts_and_is_named(world, six):
    """Five of six make a buffer, and alone with an old version the sixth can be in none."""
    run = world.submit(spec("masked", 5, "rounds.max_staleness=9"))
    world.reach("fit")
    slow, *fast = six
    for _ in range(3):  # its work would be done when the others' sum is
        rounds(world, run, fast)
    assert world.ended(run) == "completed"
    assert [sorted(r["contributed"]) for r in records(world, run)] == [sorted(fast)] * 3
    assert world.store.run(run).reason == f"completed without {slow} from round 1"
