"""A site works for those whose signatures it knows: servers cannot change a job, make one up, or repeat one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_federation as ff
import pytest

from atoll.core.errors import PolicyError
from atoll.job.load import parse_job
from atoll.job.package import spec_digest, spec_to_plain
from atoll.node.home import Home
from atoll.node.peers import Peers
from atoll.node.policy import researchers as module
from atoll.node.policy.researchers import Researchers
from atoll.node.settings import Policy
from atoll.wire.frames import encode
from atoll.wire.identity import Identity
from atoll.wire.messages import BlobRef, SignedBody, TaskBody
from atoll.wire.submissions import Submission

KEY, OTHER = Identity.fresh(), Identity.fresh()
SPEC = parse_job(ff.job_tables())
CODE = {"own.py": BlobRef(sha256="a" * 64, size=9)}
NONCE = "5" * 32
SITES = ("east", "west")


def submission(**changes: Any) -> Submission:
    files = {name: ref.sha256 for name, ref in CODE.items()}
    made = Submission("lagoon", "ana", spec_digest(SPEC), files, SITES, NONCE)
    return replace(made, **changes)


def task(run: str = "toy-1", code: dict[str, BlobRef] = CODE, plan: str = "0") -> TaskBody:
    return TaskBody(
        id=f"{run}.train.1.east",
        run=run,
        kind="train",
        number=1,
        client="east",
        plan=BlobRef(sha256=plan * 64, size=1),
        code=code,
    )


class Place:
    """A site that has joined."""

    def __init__(self, folder: Path, rule: Any = "seen") -> None:
        self.home, self.rule = Home(folder), rule
        self.home.make()
        self.start()

    def start(self) -> None:
        self.rules = Researchers(self.home, "lagoon", "east", self.rule)

    def check(
        self,
        signed: SignedBody | None,
        *,
        body: TaskBody | None = None,
        spec: Any = SPEC,
        by: str = "ana",
        sites: tuple[str, ...] = SITES,
    ) -> None:
        self.rules.check(body or task(), spec, by, sites, signed)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "east")


def test_what_was_signed_passes_and_is_checked_once_for_each_plan(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    monkeypatch.setattr(Submission, "check", lambda self, signed: checked.append(signed.nonce))
    signed = submission().signed(KEY)
    for plan in ("0", "0", "1", "0", "1"):
        place.check(signed, body=task(plan=plan))
    assert len(checked) == 2
    place.check(signed, body=task(code={}))
    assert len(checked) == 3


SEED = parse_job(ff.job_tables(seed=4))
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "another job": ({"spec": SEED}, "not what ana has signed"),
    "another file": (
        {"body": task(code={"own.py": BlobRef(sha256="b" * 64, size=9)})},
        "not what ana has signed",
    ),
    "one more file": ({"body": task(code={**CODE, "os.py": CODE["own.py"]})}, "not what ana"),
    "no file": ({"body": task(code={})}, "not what ana has signed"),
    "another name": ({"by": "ben"}, "not what ben has signed"),
    "fewer sites": ({"sites": ("east",)}, "east, west for this, and nobody else"),
    "more sites": ({"sites": (*SITES, "north")}, "east, west for this, and nobody else"),
}


@pytest.mark.parametrize("lie", LIES)
def test_whatever_a_server_changes_is_refused_and_leaves_nothing(place: Place, lie: str) -> None:
    changes, said = LIES[lie]
    with pytest.raises(PolicyError, match=said):
        place.check(submission().signed(KEY), **changes)
    assert not place.home.submissions.exists()
    assert not place.home.researchers_seen.exists()
    place.check(submission().signed(KEY))


def test_what_nobody_signed_is_refused(place: Place) -> None:
    with pytest.raises(PolicyError, match="nobody has signed this job"):
        place.check(None)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "reef"},
        {"definition": "f" * 64},
        {"files": {}},
        {"sites": ("east",)},
        {"nonce": "6" * 32},
        {"by": "ben"},
    ],
)
def test_a_signature_of_something_else_is_none(place: Place, changes: dict[str, Any]) -> None:
    of_this = {"nonce": NONCE, "sites": list(SITES)}
    signed = submission(**changes).signed(KEY).model_copy(update=of_this)
    with pytest.raises(PolicyError, match="not what ana has signed"):
        place.check(signed)


def test_a_job_for_all_goes_to_whoever_the_server_counts(place: Place) -> None:
    place.check(submission(sites=()).signed(KEY), sites=("east", "north", "west"))


def test_a_job_for_others_is_refused(place: Place) -> None:
    signed = submission(sites=("north", "west")).signed(KEY)
    with pytest.raises(PolicyError, match="north, west for this"):
        place.check(signed, sites=("north", "west"))


def test_a_submission_is_one_run_and_stays_so(place: Place) -> None:
    signed = submission().signed(KEY)
    place.check(signed)
    for _ in range(2):
        with pytest.raises(PolicyError, match="once, and it was run toy-1"):
            place.check(signed, body=task("toy-2"))
        place.start()
        place.check(signed)
    place.check(submission(nonce="6" * 32).signed(KEY), body=task("toy-2"))
    assert json.loads(place.home.submissions.read_text()) == {NONCE: "toy-1", "6" * 32: "toy-2"}


def test_the_first_key_under_a_name_is_kept(place: Place) -> None:
    place.check(submission().signed(KEY))
    place.start()
    other = submission(nonce="6" * 32).signed(OTHER)
    with pytest.raises(PolicyError, match="another key than the one this site knows") as caught:
        place.check(other, body=task("toy-2"))
    assert "--repin" in caught.value.remedy
    Peers(place.home.researchers).pin({"ana": OTHER.fingerprint})  # as the steward was told
    place.check(other, body=task("toy-2"))
    with pytest.raises(PolicyError, match="another key"):
        place.check(submission(nonce="7" * 32).signed(KEY), body=task("toy-3"))


def test_only_pinned_keys_count_where_the_site_says_so(tmp_path: Path) -> None:
    place, signed = Place(tmp_path / "east", "pinned"), submission().signed(KEY)
    with pytest.raises(PolicyError, match="the key of ana is not pinned here") as caught:
        place.check(signed)
    assert "atoll node peers --pin" in caught.value.remedy
    Peers(place.home.peers).pin({"ana": KEY.fingerprint})  # as a site: that is another book
    with pytest.raises(PolicyError, match="not pinned"):
        place.check(signed)
    Peers(place.home.researchers).pin({"ana": KEY.fingerprint})
    place.check(signed)


def test_so_many_plans_are_known_by_heart(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 3)
    signed = submission().signed(KEY)
    for plan in "0123456789":
        place.check(signed, body=task(plan=plan))
    assert len(place.rules._passed) == 3


# In a node ----------------------------------------------------------------------------------------


def made_up(run: ff.Solo) -> dict[str, Any]:
    """The plan of a job that nobody has signed."""
    body = {"run": "r1", "by": "ana", "spec": spec_to_plain(run.run.spec), "sites": ["east"]}
    return {"plan": run.server.keep(encode(body))}


def changed(run: ff.Solo) -> dict[str, Any]:
    """Code that is not what was signed, beside the signature of what was."""
    honest = run.task()
    raw = run.run.files["own.py"].replace(b"0.5", b"0.6")
    return {"plan": honest.plan, "code": {"own.py": run.server.keep(raw)}}


@pytest.mark.parametrize(
    ("lie", "said"), [(made_up, "nobody has signed"), (changed, "not what ana has signed")]
)
def test_a_server_that_makes_up_or_changes_a_job_is_refused_by_the_node(
    tmp_path: Path, lie: Callable[[ff.Solo], dict[str, Any]], said: str
) -> None:
    server = ff.FakeServer()
    run = ff.Solo(server, tmp_path)
    policy = Policy()
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1), True, policy=policy)):
        assert server.result(run.train().id)[0].status == "done"
        more = lie(run)
        body = server.offer(run.task().model_copy(update=more))
        answer = server.result(body.id)[0]
        assert (answer.status, said in answer.reason) == ("refused", True)
        assert server.result(run.train().id)[0].status == "done"
