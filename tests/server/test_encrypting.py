"""Encrypted rounds at the server: the same bits as quantised ones, and nothing there that could read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import encrypted_sites as encrypted
import numpy as np
import played_sites as played
import pytest

pytest.importorskip("tenseal")

from atoll.privacy.he.contexts import PublicContext, SecretContext
from atoll.privacy.he.parameters import Parameters
from atoll.server.rounds import encrypting, key_sharing, playing, preparing, summing

LAST = "va-long-beach"
QUIET = "evaluation.every=50"


def spec(aggregation: str, *more: str, rounds: int = 1) -> Any:
    return played.heart_spec(f"privacy.aggregation={aggregation}", f"rounds.count={rounds}", *more)


@pytest.fixture(scope="module")
def quantised(hospitals: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The hash of the model after a quantised job of the same kind, with all sites or all but the last."""

    @cache
    def hash_of(absent: tuple[str, ...] = (), rounds: int = 1) -> str:
        home = tmp_path_factory.mktemp("quantised")
        return played.model_hash(home, hospitals, spec("quantised", QUIET, rounds=rounds), absent)

    return hash_of


@pytest.fixture
def world(tmp_path: Path, hospitals: Any) -> encrypted.EncryptedWorld:
    return encrypted.EncryptedWorld(tmp_path / "home", hospitals)


def released(world: encrypted.EncryptedWorld) -> list[Any]:
    """What sites have opened of updates."""
    return [
        record
        for site in world.sites.values()
        for record in site.book.records
        if record.kind == "release" and record.occasion.job.count("/") == 1
    ]


def test_an_encrypted_run_has_the_bits_of_the_quantised_one_and_tells_its_figures(world, quantised):
    run = world.submit(spec("encrypted", rounds=2))
    world.run()
    row = world.store.run(run)
    assert row.status == "completed", row.reason
    assert world.hash(run) == quantised((), 2)
    record = world.record(run)
    assert record["federated"]
    assert record["sites"] is None  # figures of held-out rows were added up as ciphertexts, too
    assert set(record["contributed"].values()) == {0}


def test_no_secret_is_in_what_the_server_holds_and_none_could_be_loaded_there(world):
    run = world.submit(spec("encrypted", QUIET))
    world.reach("pledge", about="train")
    raws = {site.keys(run) for site in world.sites.values()}
    assert len(raws) == 1  # one key, at all sites
    (raw,) = raws
    parameters = Parameters.exact(4)
    public = SecretContext(parameters, raw).public().raw
    secret = [raw[i : i + 24] for i in range(0, len(raw) - 24, 997)]
    secret = [piece for piece in secret if piece not in public]
    assert len(secret) > 30
    held = b"".join(bytes(world.disk.view(p)) for p in files(world))
    shown = [s for of_run in world.service._office.shown.values() for s in of_run.values()]
    held += b"".join(bytes(s.read(0, s.blob.size)) for s in shown)
    held += repr(vars(world.database)).encode("utf-8", "replace")
    assert public[:24] in held  # the search finds what is there
    assert not [piece for piece in secret if piece in held]
    for module in (encrypting, key_sharing, playing, preparing, summing):
        assert SecretContext not in vars(module).values()


def files(world: encrypted.EncryptedWorld) -> list[Path]:
    """Everything on the server's disk."""
    found, todo = [], [Path("/blobs")]
    while todo:
        folder = todo.pop()
        for name in world.disk.names(folder):
            path = folder / name
            (found if world.disk.size(path) is not None else todo).append(path)
    return found


def test_a_dealer_that_hands_the_secret_to_the_server_is_refused(world):
    dealer = next(iter(world.sites.values()))

    def lie(task, arrays):
        if task.kind == "deal":
            arrays["public"] = np.frombuffer(dealer.keys(task.run), np.uint8)

    dealer.lie = lie
    run = world.submit(spec("encrypted", QUIET))
    assert world.ended(run) == "failed"
    assert "a secret key where a public one belongs" in world.store.run(run).reason


@pytest.mark.parametrize("step", encrypted.STEPS)
def test_the_sum_is_exact_whatever_step_one_of_four_sites_dies_in(world, quantised, step):
    world.sites[LAST].dies_at = step
    run = world.submit(spec("encrypted", QUIET))
    assert world.ended(run) == "completed"
    # Whose ciphertext has come is in the sum, even if its site is gone when that is opened.
    inside = step != "train"
    assert world.hash(run) == quantised(() if inside else (LAST,))
    assert set(world.record(run)["missing"]) == (set() if inside else {LAST})


def test_below_two_thirds_nothing_is_opened(world):
    for name in (LAST, "hungary"):
        world.sites[name].dies_at = "train"
    run = world.submit(spec("encrypted", QUIET, "rounds.max_aborts=1", "rounds.deadline=300"))
    assert world.ended(run) == "failed"
    assert not released(world)


def test_a_sum_of_fewer_than_the_quorum_is_not_opened_while_the_missing_site_may_come(
    world, quantised
):
    """Opened without it, no later sum on the same model could be had: sites refuse two that are so near."""
    run = world.submit(spec("encrypted", QUIET, "rounds.quorum=4"))
    world.reach("train")
    world.wait(
        600, absent=(LAST,)
    )  # ten times what a silent site is waited for where others can do
    assert (world.store.run(run).status, released(world)) == ("open", [])
    world.run()
    assert world.store.run(run).reason == "completed"
    assert world.hash(run) == quantised()


def test_a_quorum_that_is_not_met_by_the_deadline_opens_nothing_and_the_next_round_is_whole(world):
    run = world.submit(spec("encrypted", QUIET, "rounds.quorum=4", "rounds.deadline=300", rounds=2))
    world.reach("train")
    world.wait(320, absent=(LAST,))
    assert not released(world)
    world.run()
    assert world.store.run(run).reason == "completed"
    first, second = world.service.rounds(run).rounds
    assert (first["committed"], second["committed"]) == (False, True)
    assert "3 ciphertexts, and 4 are needed" in str(first["missing"])
    assert set(second["contributed"]) == set(world.sites)


def test_a_server_that_is_killed_after_every_single_answer_comes_to_the_same_bits(world, quantised):
    run = world.submit(spec("encrypted", QUIET))
    world.killed_after_every_answer(run)
    assert world.store.run(run).reason == "completed"
    assert world.hash(run) == quantised()
    assert len(released(world)) in (2, 3, 4)


@pytest.mark.parametrize("step", ["deal", "take", "sums", "train", "pledge", "open"])
def test_nodes_that_are_killed_before_any_step_go_on_with_what_is_on_disk(world, quantised, step):
    run = world.submit(spec("encrypted", QUIET))
    world.reach(step, about="" if step in ("deal", "take", "sums") else "train")
    for site in world.sites.values():
        site.begin()
    world.run()
    assert world.store.run(run).reason == "completed"
    assert world.hash(run) == quantised()


def test_a_server_that_comes_back_asks_for_the_same_sum_though_another_ciphertext_has_come(
    world, quantised
):
    run = world.submit(spec("encrypted", QUIET))
    world.reach("train")
    others = [name for name in world.sites if name != LAST]
    for name in others:
        world.sites[name].turn(world.service)
    asked_to = None
    while not asked_to:
        world.time += 20
        world.service.step()
        asked = [task for name in others for task in world.service.poll(name, ()).tasks]
        asked_to = next((task for task in asked if task.kind == "pledge"), None)
        assert world.time < 1_010_000
    notes = [json.loads(e.text) for e in world.store.events(run) if e.kind == "encrypting"]
    assert notes[-1]["members"] == others
    world.kill()
    world.run()
    assert world.store.run(run).reason == f"completed without {LAST} from round 1"
    assert world.hash(run) == quantised((LAST,))


def test_a_site_that_lies_about_the_sum_is_outvoted_and_named(world, quantised):
    def lie(task, arrays):
        if task.kind == "open":
            arrays |= {name: array + 1 for name, array in arrays.items()}

    liar = world.sites["hungary"]
    liar.lie = lie
    run = world.submit(spec("encrypted", QUIET, rounds=3))
    world.run()
    assert world.store.run(run).reason == "completed"
    assert world.hash(run) == quantised((), 3)
    assert "open" in liar.sent  # it was asked at least once
    blamed = {e.site for e in world.store.events(run) if e.kind == "blamed"}
    assert blamed == {"hungary"}


def test_a_false_tag_ends_the_round_without_a_sum_and_nothing_is_opened(world):
    world.sites["hungary"].lie = lambda task, arrays: (
        arrays.update(tag=arrays["tag"] ^ 1) if task.kind == "train" else None
    )
    run = world.submit(spec("encrypted", QUIET, "rounds.max_aborts=1"))
    assert world.ended(run) == "failed"
    assert not released(world)
    reasons = {s.reasons["open"] for s in world.sites.values() if "open" in s.reasons}
    assert all("is not the sum of these 4 sites' ciphertexts" in reason for reason in reasons)
    assert reasons


@pytest.mark.parametrize("what", ["root", "pieces"])
def test_a_ciphertext_that_is_not_what_it_says_is_left_out(world, quantised, what):
    def lie(task, arrays):
        if task.kind == "train":
            arrays[what] = arrays[what] ^ 1 if what == "root" else arrays[what][:-1]

    world.sites[LAST].lie = lie
    run = world.submit(spec("encrypted", QUIET))
    assert world.ended(run) == "completed"
    assert world.hash(run) == quantised((LAST,))


def test_a_run_between_two_sites_is_refused_for_each_would_know_the_other_s_update(
    tmp_path, hospitals
):
    world = encrypted.EncryptedWorld(tmp_path / "home", dict(list(hospitals.items())[:2]))
    run = world.submit(spec("encrypted", QUIET))
    assert world.ended(run) == "failed"
    assert "has 2 sites" in world.store.run(run).reason


def test_the_server_keeps_a_type_of_key_that_opens_nothing(world):
    world.submit(spec("encrypted", QUIET))
    world.reach("train")
    (engine,) = world.service._engines.values()
    key = engine._playing._key
    assert type(key) is PublicContext
    assert not key.handle().is_private()


def test_scaffold_sends_both_its_vectors_as_ciphertexts(world, hospitals, tmp_path):
    more = ("algorithm.name=scaffold", "algorithm.weights=uniform")
    run = world.submit(spec("encrypted", *more, rounds=2))
    world.run()
    assert world.store.run(run).reason == "completed"
    plain = played.World(tmp_path / "quantised", hospitals)
    other = plain.submit(spec("quantised", *more, rounds=2))
    plain.run()
    assert world.hash(run) == plain.hash(other)


def test_a_server_without_the_library_says_which_one_before_it_asks_for_a_key(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    run = world.submit(spec("encrypted", QUIET))
    assert world.ended(run) == "failed"
    assert "pip install 'atoll[he]'" in world.store.run(run).reason
    assert not any(task.kind == "greet" for site in world.sites.values() for task in site.asked)
