"""What a node does with the tasks of a masked job beside an honest server's: nothing leaves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fake_federation import asked, job_tables

from atoll.core.errors import AuthError, StorageError
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.peers import Peers, Trust
from atoll.node.plans import read_plan
from atoll.node.pledges import Pledges
from atoll.node.settings import Masking
from atoll.node.sums.masking import Masked
from atoll.privacy.secagg.ledger import Record
from atoll.privacy.secagg.terms import Member, Occasion
from atoll.wire.frames import encode
from atoll.wire.messages import BlobRef, TaskBody

MASKED = {"privacy": {"aggregation": "masked"}}


def test_a_plain_training_task_of_a_masked_job_is_not_answered_with_integers(
    tmp_path: Path,
) -> None:
    """A server that leaves out the protocol would see what a single site sends."""
    body, arrays = asked(tmp_path, MASKED, "train", encode({}, {}))
    assert body.status in ("failed", "refused")
    assert not arrays


def test_a_message_of_the_protocol_for_a_job_that_is_not_masked_is_refused(tmp_path: Path) -> None:
    body, _ = asked(tmp_path, {}, "commit", encode({}, {}))
    assert body.status in ("failed", "refused")


def test_a_key_that_has_changed_is_refused_until_somebody_says_that_it_is_right(
    tmp_path: Path,
) -> None:
    peers = Peers(tmp_path / "peers.json")
    assert peers.pin({"east": "a" * 64, "west": "b" * 64}) == ["east", "west"]
    with pytest.raises(AuthError, match="west: another key"):
        peers.pin({"west": "c" * 64, "north": "d" * 64})
    assert peers.all() == {"east": "a" * 64, "west": "b" * 64}
    assert peers.pin({"west": "c" * 64}, again=["west"]) == ["west"]
    assert peers.all()["west"] == "c" * 64


def test_only_keys_with_the_pinned_fingerprint_count(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "peers.json")
    known, other = Member("east", b"k" * 32), Member("west", b"o" * 32)
    assert peers.keys([known, other]) == {}
    peers.pin({"east": hashlib.sha256(known.key).hexdigest(), "west": "0" * 64})
    assert peers.keys([known, other]) == {"east": known.key}


def test_a_damaged_file_of_pins_is_told(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text('{"east": 3}')
    with pytest.raises(StorageError, match="damaged"):
        Peers(path).all()


@pytest.mark.parametrize("kind", ["sums", "evaluate"])
def test_figures_of_a_masked_job_do_not_leave_in_clear(tmp_path: Path, kind: str) -> None:
    """A real node is asked for them as a job without masks is."""
    model = None if kind == "sums" else encode({}, {})
    body, arrays = asked(tmp_path, MASKED, kind, model, about=kind)
    assert body.status in ("failed", "refused")
    assert not arrays
    assert not body.metrics
    assert "no task of a masked round" in body.reason


def member(name: str, key: bytes) -> Member:
    return Member(name, key * 32)


def test_a_key_seen_first_counts_until_another_one_is_shown_under_its_name(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "peers.json")
    east, west = member("east", b"e"), member("west", b"w")
    assert set(peers.meet([east, west])) == {"east", "west"}
    assert peers.all() == {}  # nobody has pinned anything
    assert peers.keys([east]) == {}
    again = Peers(tmp_path / "peers.json")
    assert set(again.meet([member("east", b"x"), west])) == {"west"}


def test_a_key_that_somebody_has_pinned_counts_before_the_one_seen_first(tmp_path: Path) -> None:
    peers = Peers(tmp_path / "peers.json")
    old, new = member("east", b"o"), member("east", b"n")
    peers.meet([old])
    peers.pin({"east": hashlib.sha256(new.key).hexdigest()})
    assert peers.meet([old]) == {}
    assert peers.meet([new]) == {"east": new.key}


class Signer:
    """The site's own key."""

    key = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
    public_bytes = key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)


@pytest.mark.parametrize(("auto", "first_use", "known"), [(True, True, 2), (True, False, 1)])
def test_keys_seen_first_are_for_jobs_that_leave_masks_to_the_default(
    tmp_path: Path, auto: bool, first_use: bool, known: int
) -> None:
    peers, rules = Peers(tmp_path / "peers.json"), Masking(first_use=first_use)
    trust = Trust("lagoon", b"k" * 32, Signer(), Pledges(tmp_path / "book", Signer()), peers)
    cohort = [Member("east", Signer.public_bytes), member("west", b"w")]
    assert len(trust.policy("east", cohort, rules, auto=auto).pinned) == known
    assert len(trust.policy("east", cohort, rules).pinned) == 1  # a job that says "masked"


def plan_file(folder: Path, sites: list[str], **privacy: str) -> Path:
    spec = parse_job(job_tables(privacy=privacy, algorithm={"name": "fedavg"}))
    path = folder / f"{len(sites)}.plan"
    path.write_bytes(encode({"spec": spec_to_plain(spec), "sites": sites, "by": "ana"}, {}))
    return path


def test_a_plan_that_names_no_sites_is_taken_for_one_of_many(tmp_path: Path) -> None:
    assert read_plan(plan_file(tmp_path, [], aggregation="auto")).settled.masked
    four = read_plan(plan_file(tmp_path, ["a", "b", "c", "d"], aggregation="auto"))
    assert not four.settled.masked


def test_a_run_that_was_masked_before_the_node_was_started_anew_stays_so(tmp_path: Path) -> None:
    book = Pledges(tmp_path / "book", Signer())
    trust = Trust("lagoon", b"k" * 32, Signer(), book, Peers(tmp_path / "peers.json"))
    site = SimpleNamespace(trust=trust, name="a")
    path = plan_file(tmp_path, ["a", "b", "c", "d"], aggregation="auto")
    task = TaskBody(
        id="r1.train.0.a",
        run="r1",
        kind="train",
        number=0,
        client="a",
        plan=BlobRef(sha256="0" * 64, size=1),
    )
    assert not Masked("r1", site, lambda: 0.0).concerns(task, lambda blob: path)
    job = f"{read_plan(path).spec.hash()}/r1/sums"
    book.keep(Record("join", Occasion("lagoon", job, 0, 0, "m"), b"v"))
    assert Masked("r1", site, lambda: 0.0).concerns(task, lambda blob: path)
    again = Trust("lagoon", b"k" * 32, Signer(), Pledges(tmp_path / "book", Signer()), trust.peers)
    assert Masked("r1", SimpleNamespace(trust=again), lambda: 0.0).concerns(task, lambda b: path)
