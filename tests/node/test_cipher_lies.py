"""A server that lies in an encrypted run: no site opens what is no sum, and a check left out is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from atoll.core.errors import AuthError
from atoll.node import pledges
from atoll.node.lies import encrypted_stage as lying_encrypted
from atoll.node.lies import of_ciphers as lies_of_ciphers
from atoll.node.lies.cast import SITES, Cast
from atoll.node.lies.encrypted_stage import Ask, EncryptedStage
from atoll.node.lies.of_ciphers import CIPHER_LIES
from atoll.node.lies.told import told
from atoll.node.peers import Trust
from atoll.node.settings import Masking, Settings
from atoll.node.sums import encrypting
from atoll.node.sums.encrypting import Encrypted
from atoll.privacy.he import rounds, sharing
from atoll.privacy.he.tags import Tags
from atoll.privacy.secagg import ledger
from atoll.privacy.secagg.policy import Approved
from atoll.wire import disk

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: Patch) -> None:
    """No power fails here."""
    monkeypatch.setattr(disk, "_sync", lambda path: None)


def stage(folder: Path) -> EncryptedStage:
    return EncryptedStage(Cast(folder, Settings(), "encrypted"))


def test_beside_an_honest_server_all_six_open_the_sum(tmp_path: Path) -> None:
    """Or what follows would show nothing."""
    played = stage(tmp_path)
    played.agree()
    played.round()
    assert played.refused == {}
    assert played.released == list(SITES)
    expected = sum(played.integers(name) for name in SITES)
    assert all(np.array_equal(found, expected) for found in played.opened.values())


@pytest.mark.parametrize("lie", CIPHER_LIES)
def test_every_site_gives_up_and_opens_nothing(lie: str, tmp_path: Path) -> None:
    found = told(lie, tmp_path)
    assert found.released == ()
    assert found.withstood, found.refused


# What each check is there for: without it the lie is believed ---------------------------------------


def no_tags(patch: Patch) -> None:
    patch.setattr(Tags, "check", lambda *given: None)


def all_pledged(patch: Patch) -> None:
    patch.setattr(encrypting, "pledged", lambda *given: dict.fromkeys(range(6)))


def no_book(patch: Patch) -> None:
    patch.setattr(pledges, "objection", lambda *given: "")


def no_quorum(patch: Patch) -> None:
    def included(self: Encrypted, terms: Any, said: Any) -> rounds.Included:
        return rounds.Included.of(said["members"].tolist(), rounds.rows_of(said["roots"], 32))

    patch.setattr(Encrypted, "_included", included)


def any_terms(patch: Patch) -> None:
    patch.setattr(Approved, "differs", lambda *given: [])


def any_cohort(patch: Patch, threshold: int) -> None:
    for module in (encrypting, lying_encrypted):
        patch.setattr(module, "usual_threshold", lambda sites: threshold)
    patch.setattr(encrypting, "objections", lambda *given: [])


def any_model(patch: Patch) -> None:
    for module in (encrypting, lying_encrypted, lies_of_ciphers):
        patch.setattr(module, "model_digest", lambda vectors: "one")


def any_memory(patch: Patch) -> None:
    patch.setattr(ledger, "_other_memory", lambda *given: "")


def any_work(patch: Patch) -> None:
    for module in (encrypting, lying_encrypted):
        patch.setattr(module, "work_mark", lambda task: "one")


def any_start(patch: Patch) -> None:
    patch.setattr(encrypting, "start_of", lambda task: ())


def unsigned(patch: Patch) -> None:
    patch.setattr(sharing, "signed_by", lambda *given: True)


def first_use(patch: Patch) -> None:
    """As if the site took for pinned whatever the server shows."""
    policy = Trust.policy

    def trusting(self: Trust, name: str, cohort: Any, *given: Any) -> Any:
        shown = {member.name: member.key for member in cohort}
        return replace(policy(self, name, cohort, *given), pinned=shown)

    patch.setattr(Trust, "policy", trusting)


def in_clear(patch: Patch) -> None:
    patch.setattr(Encrypted, "concerns", lambda *given: False)


@pytest.mark.parametrize(
    ("lie", "checks"),
    [
        ("one for the sum", [no_tags]),
        ("sum of a subset", [no_tags]),
        ("scaled sum", [no_tags]),
        ("ciphertext of its own", [no_tags]),
        ("forged tags", [no_tags]),
        ("another round's sum", [no_tags]),
        ("updates as figures", [all_pledged, no_book, no_tags, any_terms]),
        ("all but one", [no_quorum, all_pledged]),
        ("too few pledges", [all_pledged]),
        ("split pledges", [all_pledged]),
        ("asked twice", [no_book]),
        ("rolled back", [no_book]),
        ("another update", [no_book]),
        ("memory of its own", [any_memory]),
        ("one other model", [any_model]),
        ("begun with another model", [any_start]),
        ("faded ciphertexts", [any_work]),
        ("plan of its own", [any_work]),
        ("last digits", [any_work]),
        ("key of its own", [unsigned]),
        ("party of its own", [first_use]),
        ("swapped channel", [unsigned]),
        ("without ciphertexts", [in_clear]),
    ],
)
def test_a_site_that_does_not_check_is_noticed(
    lie: str, checks: list[Callable[[Patch], None]], tmp_path: Path, monkeypatch: Patch
) -> None:
    for leave_out in checks:
        leave_out(monkeypatch)
    assert told(lie, tmp_path).released


@pytest.mark.parametrize(
    ("lie", "threshold"),
    [("two at an opening", 2), ("few at an opening", 4), ("stale invitation", 5)],
)
def test_terms_are_refused_by_what_the_site_knows_itself(
    lie: str, threshold: int, tmp_path: Path, monkeypatch: Patch
) -> None:
    any_cohort(monkeypatch, threshold)
    assert told(lie, tmp_path).refused == {}


def test_words_of_another_run_mean_nothing_even_to_a_site_that_believes_their_terms(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """Each run has a key of its own, and tags are under that."""
    any_terms(monkeypatch)
    no_book(monkeypatch)
    found = told("another run's sum", tmp_path)
    assert found.released == ()
    assert "is not the sum of these" in found.refused[SITES[0]]


def test_the_last_digits_of_one_site_stood_out_when_plans_were_not_compared(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """What the lie is good for: all others count twice in what is opened."""
    any_work(monkeypatch)
    played = stage(tmp_path)
    CIPHER_LIES["last digits"](played)
    victim, others = played.integers(SITES[0]), sum(played.integers(n) for n in SITES[1:])
    assert np.array_equal(played.opened[SITES[0]], victim + 2 * others)


def test_a_faded_sum_was_one_site_s_update_when_factors_were_not_compared(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    any_work(monkeypatch)
    played = stage(tmp_path)
    CIPHER_LIES["faded ciphertexts"](played)
    assert np.array_equal(played.opened[SITES[1]], played.integers(SITES[0]))


def test_a_task_that_says_other_than_its_terms_is_refused_before_the_work(tmp_path: Path) -> None:
    """Terms in order for everybody, and a factor that is in none of them."""
    played = stage(tmp_path)
    played.agree()
    ask = Ask("train", played.terms(SITES[0]), played.plan(SITES[0]), scale=1e-9)
    body = played.task(SITES[0], ask)
    with pytest.raises(AuthError) as refused:
        played.sites[SITES[0]].held(body, played.cast.find)
    assert "work: is" in str(refused.value)


def test_the_site_s_own_rule_on_the_fewest_sites_counts(tmp_path: Path) -> None:
    played = EncryptedStage(Cast(tmp_path, Settings(masking=Masking(smallest=7)), "encrypted"))
    played.agree()
    assert all("has 6 sites" in reason for reason in played.refused.values())
    assert len(played.refused) == len(SITES)
