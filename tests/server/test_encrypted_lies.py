"""What a site refuses in an encrypted run, whatever the server says: it opens sums only, and one a round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

import encrypted_sites as encrypted
import played_sites as played

from atoll.node.run_keys import RunKeys

VICTIM, OPENER = "cleveland", "hungary"


@pytest.fixture
def world(tmp_path: Path, hospitals: Any) -> encrypted.EncryptedWorld:
    return encrypted.EncryptedWorld(tmp_path / "home", hospitals)


def submitted(world: encrypted.EncryptedWorld) -> str:
    return world.submit(
        played.heart_spec(
            "privacy.aggregation=encrypted",
            "rounds.count=1",
            "rounds.max_aborts=1",
            "evaluation.every=50",
        )
    )


def about_updates(site: encrypted.EncryptedSite, kind: str) -> bool:
    return any(
        record.kind == kind and record.occasion.job.count("/") == 1 for record in site.book.records
    )


def deceive(world: encrypted.EncryptedWorld, kind: str, change: Any, site: str = OPENER) -> None:
    """Let the server say something else to one site (to all, where all are named) in a step about updates."""

    def deceived(task: Any, arrays: dict[str, Any]) -> None:
        if task.kind == kind and task.about == "train":
            change(arrays)

    for name in world.sites if site == "all" else [site]:
        world.sites[name].deceived = deceived


def reason(world: encrypted.EncryptedWorld, kind: str) -> str:
    submitted(world)
    world.run()
    found = {site.reasons.get(kind, "") for site in world.sites.values()} - {""}
    assert found
    return "; ".join(sorted(found))


def alone(world: encrypted.EncryptedWorld, arrays: dict[str, Any]) -> None:
    """One site's ciphertext in the place of the sum."""
    sent = world.sites[VICTIM].sent["train"]
    arrays |= {"pieces": sent["pieces"], "sizes": sent["sizes"]}


def test_one_site_s_ciphertext_is_not_opened_as_though_it_were_the_sum(world):
    deceive(world, "open", lambda arrays: alone(world, arrays), "all")
    assert "is not the sum of these 4 sites' ciphertexts" in reason(world, "open")
    assert not any(about_updates(site, "release") for site in world.sites.values())


def test_nor_when_the_server_says_that_this_is_all_there_is(world):
    def change(arrays: dict[str, Any]) -> None:
        sent = world.sites[OPENER].sent["train"]
        index = sorted(world.sites).index(OPENER) + 1
        alone(world, arrays)
        arrays |= {
            "members": np.array([index], np.int64),
            "roots": sent["root"],
            "tags": sent["tag"],
            "pieces": sent["pieces"],
            "sizes": sent["sizes"],
        }

    deceive(world, "open", change)
    submitted(world)
    world.run()
    if any(task.kind == "open" and task.about == "train" for task in world.sites[OPENER].asked):
        assert "a sum of 1 sites, and 3 are the fewest" in world.sites[OPENER].reasons["open"]


def test_a_sum_that_too_few_have_pledged_themselves_to_is_not_opened(world):
    def change(arrays: dict[str, Any]) -> None:
        arrays["pledgers"] = np.repeat(arrays["pledgers"][:1], 3)
        arrays["pledges"] = np.tile(arrays["pledges"][:64], 3)

    deceive(world, "open", change, "all")
    assert "fewer than 3 sites have pledged" in reason(world, "open")


def test_no_site_pledges_itself_to_a_second_sum_in_a_round(world):
    """Two sums over sets that differ by one site would show what that site has sent."""
    run = submitted(world)
    world.reach("open", about="train")
    site = world.sites[OPENER]
    (task,) = [t for t in site.asked if t.kind == "pledge" and t.about == "train"]
    site.spool.pop(task.id)
    site.node.spool.settle(run, task.id)

    def change(arrays: dict[str, Any]) -> None:
        arrays["members"], arrays["roots"] = arrays["members"][1:], arrays["roots"][32:]

    said = played.decode(site.home.path.joinpath(task.said.sha256).read_bytes(), played.EVERYTHING)
    assert len(said[1]["members"]) == 4
    deceive(world, "pledge", change)
    site.answer(world.service, task)
    assert "another pledge was given in attempt 0 already" in site.reasons["pledge"]


def test_a_site_pledges_itself_to_nothing_that_it_is_not_in_and_to_no_sum_of_few(world):
    def change(arrays: dict[str, Any]) -> None:
        arrays["members"], arrays["roots"] = arrays["members"][:2], arrays["roots"][:64]

    deceive(world, "pledge", change, VICTIM)
    submitted(world)
    world.run()
    assert "a sum of 2 sites, and 3 are the fewest" in world.sites[VICTIM].reasons["pledge"]


def test_terms_that_the_server_has_not_signed_are_refused(world):
    def forge(arrays):
        arrays["invitation"][-1] ^= 1

    deceive(world, "train", forge, "all")
    assert "signature: is not the server's" in reason(world, "train")


def test_a_model_that_the_terms_do_not_name_is_refused(world):
    """Sites that start from other models than are told could be told apart."""
    submitted(world)
    world.reach("train")
    site = world.sites[OPENER]
    (task,) = world.service.poll(OPENER, ()).tasks
    other = task.model_copy(update={"broadcast": task.plan})
    site.answer(world.service, other)
    assert "model: is" in site.reasons["train"]


@pytest.mark.parametrize(
    ("kind", "what", "told"),
    [
        ("deal", "channels", "is not signed by it"),
        ("take", "dealt", "does not come from the site that deals it"),
        ("take", "sealed", "does not come from the site that deals it"),
        ("take", "signatures", "is not signed by it"),
    ],
)
def test_a_server_that_puts_keys_of_its_own_between_the_sites_is_found(world, kind, what, told):
    deceive(world, kind, lambda arrays: arrays[what].__setitem__(-1, arrays[what][-1] ^ 1), "all")
    assert told in reason(world, kind)
    (run,) = (row.id for row in world.store.runs())
    holders = [n for n, site in world.sites.items() if RunKeys(site.home.keys).has(run)]
    assert holders == [VICTIM]  # who has made it


def test_sites_that_nobody_has_pinned_get_no_key(tmp_path, hospitals):
    world = encrypted.EncryptedWorld(tmp_path / "home", hospitals)
    for site in world.sites.values():
        site.home.peers.unlink()
    assert "atoll node peers --pin" in reason(world, "greet")


def test_the_site_s_own_rule_on_the_fewest_sites_counts(tmp_path, hospitals, monkeypatch):
    monkeypatch.setattr(encrypted.EncryptedSite, "smallest", 5)
    world = encrypted.EncryptedWorld(tmp_path / "home", hospitals)
    assert "cohort: has 4 sites" in reason(world, "greet")


def test_a_site_lets_go_of_the_key_when_the_run_is_over(world):
    run = submitted(world)
    world.reach("train")
    site = world.sites[OPENER]
    assert site.keys(run)
    site.node.end(run)
    assert not RunKeys(site.home.keys).has(run)
