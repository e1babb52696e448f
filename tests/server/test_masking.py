"""Masked rounds at the server: the same bits as quantised ones, whoever drops out and whenever it is killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import masked_sites as masked
import numpy as np
import played_sites as played
import pytest

from atoll.core.contracts import Task
from atoll.core.errors import UpdateRefused, WireError
from atoll.node.peers import Peers
from atoll.privacy.secagg.codec import read, written
from atoll.privacy.secagg.messages import Deal
from atoll.server.rounds import masking
from atoll.server.store.contract import Invite
from atoll.wire.frames import decode, encode

VICTIMS = ("cleveland B", "switzerland")


def spec(aggregation: str, *more: str, rounds: int = 1) -> Any:
    return played.heart_spec(
        f"privacy.aggregation={aggregation}",
        f"rounds.count={rounds}",
        *(["privacy.threshold=4"] if aggregation == "masked" else []),
        *more,
    )


@pytest.fixture(scope="module")
def quantised(six: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The hash of the model after a quantised job of the same kind."""

    @cache
    def hash_of(absent: tuple[str, ...] = (), rounds: int = 1, *more: str) -> str:
        home = tmp_path_factory.mktemp("quantised")
        return played.model_hash(home, six, spec("quantised", *more, rounds=rounds), absent)

    return hash_of


@pytest.fixture
def world(tmp_path: Path, six: Any) -> masked.MaskedWorld:
    return masked.MaskedWorld(tmp_path / "home", six)


def released(site: Any) -> list[Any]:
    return [record for record in site.book.records if record.kind == "release"]


def releases(world: masked.MaskedWorld) -> dict[str, list[int]]:
    """The rounds for which each site has released shares."""
    return {
        name: [r.occasion.round for r in released(site) if r.occasion.job.count("/") == 1]
        for name, site in world.sites.items()
    }


def test_a_masked_run_has_the_bits_of_the_quantised_one(world, quantised):
    run = world.submit(spec("masked", rounds=2))
    world.run()
    assert world.store.run(run).status == "completed"
    assert world.hash(run) == quantised((), 2)
    assert set(map(tuple, releases(world).values())) == {(0, 1)}


def test_scaffold_sends_both_its_vectors_under_masks(world, quantised):
    more = ("algorithm.name=scaffold", "algorithm.weights=uniform")
    run = world.submit(spec("masked", *more, rounds=3))
    world.run()
    assert world.store.run(run).reason == "completed"
    assert world.hash(run) == quantised((), 3, *more)


def test_memory_of_a_client_follows_the_attempt_that_counted(world, quantised):
    more = ("algorithm.name=scaffold", "algorithm.weights=uniform")
    run = world.submit(spec("masked", *more, rounds=3))
    for number in range(3):
        world.reach(
            "pledge", number, about="train"
        )  # integers and memory have been made, and are used again
        for name in list(world.sites)[number : number + 3]:
            world.sites[name].begin()
    world.run()
    assert world.store.run(run).reason == "completed"
    assert [n["attempt"] for n in notes(world, run) if n["step"] == "commit"] == [0, 1] * 3
    assert world.hash(run) == quantised((), 3, *more)


def test_a_cohort_that_no_round_can_be_masked_with_ends_the_round_with_the_reason(world):
    """Six sites and a threshold of two: whoever asks for that is told."""
    run = world.submit(spec("masked", "rounds.max_aborts=1"))
    world.reach("commit", about="train")
    assert world.store.run(run).status == "open"
    terms = masking.MaskedRound(
        world.service._office,
        world.store.run(run),
        masking.Masking((), threshold=2),
        7,
        "",
        lambda *given: None,
        60.0,
    )
    with pytest.raises(StopIteration) as ended:
        next(terms.play([Task(name, 0) for name in world.sites]))
    summed = ended.value.value
    assert summed.aggregate.count == 0
    assert all("threshold: is 2 for 6 sites" in o.reason for o in summed.outcomes)


@pytest.mark.parametrize("step", masked.STEPS)
def test_the_sum_is_exact_whatever_step_two_of_six_sites_die_in(world, quantised, step):
    for name in VICTIMS:
        world.sites[name].dies_at = step
    run = world.submit(spec("masked"))
    assert world.ended(run) == "completed"
    # Who has sent its masked input is in the sum, even if it is gone when the sum is opened.
    inside = step in ("pledge", "release")
    assert world.hash(run) == quantised(() if inside else VICTIMS)
    record = world.record(run)
    assert set(record["contributed"]) == set(world.sites) - (set() if inside else set(VICTIMS))
    assert set(record["missing"]) == (set() if inside else set(VICTIMS))


def test_below_the_threshold_nothing_is_opened_and_the_record_says_who_was_missing(world):
    for name in (*VICTIMS, "hungary A"):
        world.sites[name].dies_at = "train"
    run = world.submit(spec("masked", "rounds.max_aborts=1", "rounds.deadline=300"))
    assert world.ended(run) == "failed"
    row = world.store.run(run)
    assert "hungary A" in row.reason
    assert "0 of 6" in row.reason
    assert not any(releases(world).values())


def test_sites_that_lose_their_keys_take_part_in_the_next_attempt(world, quantised):
    run = world.submit(spec("masked"))
    world.reach("share", about="train")
    for name in list(world.sites)[:3]:
        world.sites[name].begin()
    world.run()
    assert world.store.run(run).status == "completed"
    assert world.hash(run) == quantised()
    assert [n["attempt"] for n in notes(world, run) if n["step"] == "commit"] == [0, 1]
    assert set(map(tuple, releases(world).values())) == {(0,)}


@pytest.mark.parametrize("step", ["share", "train"])
def test_a_sum_of_fewer_than_the_quorum_is_not_opened_but_tried_again(world, quantised, step):
    """A site that was started anew has lost its keys: opened without it, the round could not be had again."""
    run = world.submit(spec("masked", "rounds.quorum=6"))
    world.reach(step, about="train")
    world.sites["switzerland"].begin()
    world.run()
    assert world.store.run(run).status == "completed"
    assert world.hash(run) == quantised()
    assert [n["attempt"] for n in notes(world, run) if n["step"] == "commit"] == [0, 1]
    assert set(map(tuple, releases(world).values())) == {(0,)}
    assert set(world.record(run)["contributed"]) == set(world.sites)


def test_a_quorum_that_cannot_be_met_opens_nothing_and_names_who_is_missing(world):
    world.sites["switzerland"].dies_at = "train"
    more = "rounds.quorum=6", "rounds.max_aborts=1", "rounds.deadline=300"
    run = world.submit(spec("masked", *more))
    assert world.ended(run) == "failed"
    assert "switzerland" in world.store.run(run).reason
    assert not any(releases(world).values())


@pytest.mark.parametrize("step", ["commit", "share", "train"])
def test_a_quorum_waits_for_a_site_that_is_away_for_some_minutes(world, quantised, step):
    run = world.submit(spec("masked", "rounds.quorum=6"))
    world.reach(step, about="train")
    world.wait(
        300, absent=("switzerland",)
    )  # where others can do, silence ends the waiting after one
    assert world.store.run(run).status == "open"
    world.run()
    assert world.store.run(run).reason == "completed"
    assert world.hash(run) == quantised()
    assert [n["attempt"] for n in notes(world, run) if n["step"] == "commit"] == [0]


def notes(world: masked.MaskedWorld, run: str) -> list[dict[str, Any]]:
    """What the server has written down."""
    found = [json.loads(e.text) for e in world.store.events(run) if e.kind == "masking"]
    return [note for note in found if note["about"] == "train"]


def steps(world: masked.MaskedWorld, run: str) -> set[str]:
    """The steps that have begun."""
    return {note["step"] for note in notes(world, run)}


def test_a_server_that_is_killed_after_every_single_answer_comes_to_the_same_bits(world, quantised):
    run = world.submit(spec("masked"))
    world.killed_after_every_answer(run)
    assert world.store.run(run).status == "completed"
    assert world.hash(run) == quantised()
    told = list(map(tuple, releases(world).values()))
    assert set(told) <= {(0,), ()}  # four are enough to open the sum
    assert told.count((0,)) >= 4


@pytest.mark.parametrize("step", masked.STEPS[:4])
def test_who_was_not_heard_before_a_kill_is_not_heard_after_it(world, quantised, step):
    """The set that was told to sites must be the same after the kill, though a late answer would fit."""
    run = world.submit(spec("masked"))
    world.reach(step, about="train")
    following = masked.STEPS[masked.STEPS.index(step) + 1]
    others = [site for name, site in world.sites.items() if name != "switzerland"]
    for _ in range(100):
        world.service.step()
        if following in steps(world, run):
            break
        for site in others:
            site.turn(world.service)
        world.time += 5
    assert following in steps(world, run)
    world.kill()
    assert world.ended(run) == "completed"
    inside = step == "pledge"
    assert world.hash(run) == quantised(() if inside else ("switzerland",))
    assert all(len(rounds) <= 1 for rounds in releases(world).values())


def test_after_a_release_a_round_without_a_sum_is_not_tried_again(world):
    """Three of six release, three fall silent: the shares are too few, and fresh keys would not help."""
    for name in list(world.sites)[:3]:
        world.sites[name].dies_at = "release"
    run = world.submit(spec("masked", "rounds.max_aborts=1", "rounds.deadline=100"))
    assert world.ended(run) == "failed"
    assert {n["attempt"] for n in notes(world, run) if n["round"] == 0} == {0}


def test_answers_say_nothing_about_a_site_in_the_clear(world):
    """But for signatures, sealed bytes and masked words, every site sends the same."""
    run = world.submit(spec("masked"))
    world.run()
    assert world.store.run(run).status == "completed"
    for kind in masked.STEPS:
        seen = {
            json.dumps([{k: v for k, v in body.items() if k not in ("task", "seconds")}, size])
            for site in world.sites.values()
            for said, body, size in site.said
            if said == kind
        }
        assert len({json.loads(s)[0]["examples"] for s in seen}) == 1
        assert len({json.dumps(json.loads(s)[0]) for s in seen}) == 1
        sizes = [json.loads(s)[1] for s in seen]
        # Names differ in length, and nothing else does.
        assert max(sizes) - min(sizes) <= 64
    words = [
        decode(raw, played.EVERYTHING)[1]
        for site in world.sites.values()
        for task, raw in site.spool.items()
        if ".train." in task
    ]
    rows = np.array([float(len(site.table)) for site in world.sites.values()])
    for lane in ("weight", "examples"):
        sent = np.array([float(w[lane][0]) for w in words])
        assert sent.min() > 2**40  # no site's own number: uniform over 64 bits
        assert abs(np.corrcoef(rows, sent)[0, 1]) < 0.999


def test_a_site_whose_shares_do_not_open_is_left_out_of_the_next_attempt(world, quantised):
    """It signs what it sends, so whoever cannot open it knows whom to blame, itself too."""
    culprit = world.sites["switzerland"]
    honest = culprit._work

    def work(service: Any, task: Any) -> bytes:
        raw = honest(service, task)
        if (task.kind, task.about) != ("share", "train"):
            return raw
        body, arrays = decode(raw, played.EVERYTHING)
        session = culprit.masked[task.run]._machine[1].at
        deal, made = read(Deal, arrays["said"].tobytes()), []
        for envelope in deal.envelopes:
            bad = replace(envelope, sealed=envelope.sealed[::-1])
            signed = culprit.key.sign(bad.signed(session.terms.context, session.roster))
            made.append(replace(bad, signature=signed))
        said = written(replace(deal, envelopes=tuple(made)))
        return encode(body, {"said": np.frombuffer(said, np.uint8)})

    culprit._work = work
    run = world.submit(spec("masked"))
    assert world.ended(run) == "completed"
    assert [n["attempt"] for n in notes(world, run) if n["step"] == "commit"] == [0, 1]
    assert world.hash(run) == quantised(("switzerland",))
    assert "6 sites say: " in world.record(run)["missing"]["switzerland"]


def tampered(change: Callable[[dict[str, Any], dict[str, Any]], None], kind: str) -> Any:
    def apply(site: masked.MaskedSite) -> None:
        honest = site._work

        def work(service: Any, task: Any) -> bytes:
            raw = honest(service, task)
            if (task.kind, task.about) != (kind, "train"):
                return raw
            body, arrays = decode(raw, played.EVERYTHING)
            arrays = {name: array.copy() for name, array in arrays.items()}
            change(body, arrays)
            return encode(body, arrays)

        site._work = work

    return apply


def flipped(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["delta"][3] ^= 1


def told(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    body["examples"] = 200


def cut(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["said"] = arrays["said"][:-1]


def longer(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["delta"] = np.concatenate([arrays["delta"], arrays["delta"]])


def floats(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["delta"] = arrays["delta"].astype(np.float32)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (flipped, "train", "not those that were signed"),
        (told, "train", "in the clear"),
        (told, "commit", "in the clear"),
        (cut, "share", "a message says"),
        (longer, "train", "shape"),
        (floats, "train", "float32"),
    ],
)
def test_a_site_that_says_what_no_honest_site_says_is_left_out_by_name(
    world, quantised, change, kind, words
):
    site = world.sites["switzerland"]
    tampered(change, kind)(site)
    run = world.submit(spec("masked"))
    assert world.ended(run) == "completed"
    assert world.hash(run) == quantised(("switzerland",))
    record = world.record(run)
    assert list(record["missing"]) == ["switzerland"]
    assert words in record["missing"]["switzerland"] or any(
        isinstance(error, UpdateRefused | WireError) and words in error.message
        for error in site.refusals
    )


def test_a_site_that_came_back_with_its_first_key_is_known_by_that_one(world):
    """It had left, joined with another key, left again, and joined with the one before."""
    name = "switzerland"
    for secret, key in (("aa" * 32, b"2" * 32), ("bb" * 32, world.key(name, 0))):
        world.store.set_member(name, "left")
        world.store.add_invite(Invite(secret, name, "site", world.time + 1))
        world.store.join(secret, name, key, world.time)
    run = world.submit(spec("masked"))
    assert world.ended(run) == "completed"
    assert world.store.run(run).reason == "completed"
    assert name in world.record(run)["contributed"]


@pytest.mark.parametrize("step", masked.STEPS)
def test_a_site_with_a_new_key_ends_no_run_when_the_server_is_started_again(world, step):
    """What all have signed before names the key that it had."""
    name, run = "switzerland", world.submit(spec("masked", rounds=2))
    key = masked.Key("its second").public_bytes
    world.reach(step, 0, "train")
    world.store.set_member(name, "revoked")
    world.store.add_invite(Invite("aa" * 32, name, "site", world.time + 1))
    world.store.join("aa" * 32, name, key, world.time)
    for site in world.sites.values():
        Peers(site.home.peers).pin({name: hashlib.sha256(key).hexdigest()}, [name])
    world.kill()
    assert world.ended(run, absent=(name,)) == "completed"
    records = [row.record for row in world.store.rounds(run)]
    assert all(record["committed"] for record in records)
    assert list(records[-1]["missing"]) == [name]
    assert not [e for e in world.store.events(run) if e.kind == "blamed"]


def test_a_server_whose_machine_has_slept_asks_for_rounds_that_are_not_over(world):
    """Its own clock stood still for an hour; that of the sites did not."""
    office = world.service._office
    office.now = lambda: world.time - 3600
    run = world.submit(spec("masked", "rounds.deadline=60"))
    assert world.ended(run) == "completed", world.store.run(run).reason
