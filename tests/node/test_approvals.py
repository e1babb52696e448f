"""Approvals: only what the steward has approved runs, to the byte; what was decided cannot be forged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_federation as ff
import pytest

from atoll.core.errors import AtollError, NotFound, PolicyError, StorageError
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.datasets import Datasets
from atoll.node.home import Home
from atoll.node.policy import approvals as module
from atoll.node.policy.approvals import Approvals, Request
from atoll.node.settings import Policy
from atoll.wire.frames import Blob
from atoll.wire.identity import Identity
from atoll.wire.messages import BlobRef, ResultBody

REQUEST = Request(
    {"name": "toy", "seed": 1},
    {"own.py": "ab" * 32},
    "heart",
    {"age": "number"},
    "ana",
    ("east", "west"),
)


def east(folder: Path, server: ff.FakeServer, approval: str = "code") -> ff.Running:
    policy = Policy(approval=approval)  # type: ignore[arg-type]  # checked by the schema
    return ff.Running(ff.node_at(folder, "east", server, ff.table_text(1), True, policy=policy))


def steward_of(folder: Path) -> Approvals:
    home = Home(folder / "east")
    return Approvals(home.approvals, Identity.load(home.identity))


def answer(run: ff.Solo, **more: Any) -> ResultBody:
    return run.server.result(run.train(**more).id)[0]


# At a node ----------------------------------------------------------------------------------------


def test_a_job_takes_part_once_its_steward_has_approved_it_and_no_longer_than_that(
    tmp_path: Path,
) -> None:
    server = ff.FakeServer()
    first, again = ff.Solo(server, tmp_path), ff.Solo(server, tmp_path, "r2")
    with east(tmp_path, server):
        said = answer(first)
        steward = steward_of(tmp_path)
        (found,) = steward.all()
        assert said.status == "refused"
        assert f"was asked (request {found.digest[:12]})" in said.reason
        assert str(tmp_path) not in said.reason
        assert (found.run, found.request.researcher, found.request.sites) == (
            "r1",
            "ana",
            ("east",),
        )
        assert found.request.job == spec_to_plain(first.run.spec)
        assert (found.code / "own.py").read_bytes() == first.run.files["own.py"]
        assert steward.waiting == 1
        assert answer(again).status == "refused"
        assert steward.waiting == 1  # the same job, in another run
        steward.decide(found.digest, approved=True, by="eva")
        assert (answer(first).status, answer(again).status, steward.waiting) == ("done", "done", 0)
        steward.decide(
            found.digest, approved=False, by="eva", reason="the ethics board has said no"
        )
        said = answer(again)
        assert said.status == "refused"
        assert "has denied this job: the ethics board has said no" in said.reason
    with east(tmp_path, server):  # started anew it knows the same
        assert answer(ff.Solo(server, tmp_path, "r3")).status == "refused"


def another_code(run: ff.Solo) -> dict[str, Any]:
    raw = run.run.files["own.py"].replace(b"0.5", b"0.6")
    return {"code": {"own.py": run.server.keep(raw)}}


def another_file(run: ff.Solo) -> dict[str, Any]:
    more = {"numpy.py": run.server.keep(b"")}
    return {"code": {**run.task().code, **more}}


def another_name(run: ff.Solo) -> dict[str, Any]:
    (ref,) = run.task().code.values()
    return {"code": {"numpy.py": ref}}


def another_plan(run: ff.Solo) -> dict[str, Any]:
    plain = spec_to_plain(run.run.spec)
    plain["seed"] += 1
    run.run.spec = parse_job(plain)
    return {}


def another_researcher(run: ff.Solo) -> dict[str, Any]:
    run.run.by = "ben"
    return {}


def another_site(run: ff.Solo) -> dict[str, Any]:
    run.run.servers["west"] = run.server
    return {}


@pytest.mark.parametrize(
    "change",
    [another_code, another_file, another_name, another_plan, another_researcher, another_site],
)
def test_whatever_a_server_changes_after_the_approval_is_refused(
    tmp_path: Path, change: Callable[[ff.Solo], dict[str, Any]]
) -> None:
    server = ff.FakeServer()
    run = ff.Solo(server, tmp_path)
    with east(tmp_path, server):
        answer(run)
        steward = steward_of(tmp_path)
        (found,) = steward.all()
        steward.decide(found.digest, approved=True, by="eva")
        assert answer(run).status == "done"
        said = answer(run, **change(run))
        assert (said.status, "has to approve this job first" in said.reason) == ("refused", True)
        assert steward.waiting == 1


def test_a_dataset_with_other_columns_is_another_request(tmp_path: Path) -> None:
    server = ff.FakeServer()
    run = ff.Solo(server, tmp_path)
    with east(tmp_path, server):
        answer(run)
        steward = steward_of(tmp_path)
        steward.decide(steward.all()[0].digest, approved=True, by="eva")
        assert answer(run).status == "done"
        register, table = Datasets(tmp_path / "east" / "datasets.toml"), tmp_path / "east.csv"
        lines = table.read_text().splitlines()
        table.write_text("\n".join([f"{lines[0]},name", *(f"{line},eve" for line in lines[1:])]))
        register.remove("sites")
        register.add("sites", table)
        assert answer(run).status == "refused"


def test_another_federation_where_somebody_has_the_same_name_is_another_request(
    tmp_path: Path,
) -> None:
    server = ff.FakeServer()
    home = Home(tmp_path / "east")
    home.make()
    for federation, status in (("one", "done"), ("two", "refused")):
        home.federation.write_text(json.dumps({"federation": federation}))
        run = ff.Solo(server, tmp_path, federation)
        run.run.federation = federation
        with east(tmp_path, server):
            answer(run)
            steward = steward_of(tmp_path)
            if federation == "one":
                steward.decide(steward.all()[0].digest, approved=True, by="eva")
            assert answer(run).status == status


@pytest.mark.parametrize(
    ("approval", "status"), [("code", "done"), ("all", "refused"), ("none", "done")]
)
def test_jobs_without_code_of_their_own_need_none_unless_all_do(
    tmp_path: Path, approval: str, status: str
) -> None:
    server = ff.FakeServer()
    spec = parse_job(ff.job_tables(model={"kind": "logistic"}, algorithm={"name": "fedavg"}))
    run = ff.Deployed(spec, {"east": server}, tmp_path)
    with east(tmp_path, server, approval):
        said = server.result(server.offer(run.task("survey", "east")).id)[0]
    assert said.status == status


# In its folder ------------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "identity.pem")


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    (tmp_path / "blobs").mkdir()
    return tmp_path / "blobs"


@pytest.fixture
def book(tmp_path: Path, key: Identity, blobs: Path) -> Approvals:
    return Approvals(tmp_path / "approvals", key, files=blobs.joinpath, now=lambda: 7.0)


def refused(book: Approvals, request: Request = REQUEST, **code: BlobRef) -> bool:
    try:
        book.check("r1", request, code)
    except PolicyError:
        return True
    return False


def test_no_change_of_a_decision_makes_a_no_a_yes(
    tmp_path: Path, key: Identity, book: Approvals
) -> None:
    assert refused(book)
    book.decide(REQUEST.digest, approved=False, by="eva")
    path = tmp_path / "approvals" / REQUEST.digest / "decision.json"
    whole = path.read_text()
    for at in range(len(whole)):
        for changed in (whole[:at], whole[:at] + chr(ord(whole[at]) ^ 1) + whole[at + 1 :]):
            path.write_text(changed)
            with pytest.raises(AtollError):
                Approvals(tmp_path / "approvals", key).check("r1", REQUEST, {})
    path.write_text(whole.replace("false", "true"))
    with pytest.raises(StorageError, match="is not what this site's key has signed"):
        book.check("r1", REQUEST, {})


def test_a_yes_is_of_one_request_and_one_site(tmp_path: Path, book: Approvals) -> None:
    other = replace(REQUEST, researcher="ben")
    assert refused(book)
    assert refused(book, other)
    book.decide(REQUEST.digest, approved=True, by="eva")
    assert not refused(book)
    assert refused(book, other)
    folder = tmp_path / "approvals"
    said = (folder / REQUEST.digest / "decision.json").read_text()
    (folder / other.digest / "decision.json").write_text(said)
    with pytest.raises(StorageError, match="has signed"):
        book.check("r1", other, {})
    stranger = Approvals(folder, Identity.create(tmp_path / "other.pem"))
    with pytest.raises(StorageError, match="has signed"):
        stranger.check("r1", REQUEST, {})


def test_a_decision_counts_when_it_has_been_told_and_is_told_again_when_it_changes(
    tmp_path: Path, key: Identity
) -> None:
    told: list[tuple[str, bool]] = []

    def tell(digest: str, approved: bool, *rest: object) -> None:
        if not told:
            told.append((digest, False))
            raise StorageError("no room")
        told.append((digest, approved))

    book = Approvals(tmp_path / "approvals", key, told=tell)
    assert refused(book)
    Approvals(tmp_path / "approvals", key).decide(REQUEST.digest, approved=True, by="eva")
    with pytest.raises(StorageError, match="no room"):
        book.check("r1", REQUEST, {})
    for _ in range(3):
        assert not refused(book)
    Approvals(tmp_path / "approvals", key).decide(REQUEST.digest, approved=False, by="eva")
    assert refused(book)
    assert told[1:] == [(REQUEST.digest, True), (REQUEST.digest, False)]


def test_a_request_that_could_not_be_kept_is_asked_again(
    book: Approvals, blobs: Path, tmp_path: Path
) -> None:
    ref = BlobRef.of(Blob.of(b"code"))
    request = replace(REQUEST, code={"a/own.py": ref.sha256})
    with pytest.raises(StorageError, match="cannot be written"):
        book.check("r1", request, {"a/own.py": ref})
    assert book.waiting == 0
    assert list((tmp_path / "approvals").iterdir()) == []
    (blobs / ref.sha256).write_bytes(b"code")
    assert refused(book, request, **{"a/own.py": ref})
    (found,) = book.all()
    assert (found.code / "a" / "own.py").read_bytes() == b"code"
    assert (found.request, found.asked) == (request, 7.0)


def test_code_stays_in_its_folder_and_within_bounds(book: Approvals, tmp_path: Path) -> None:
    ref = BlobRef(sha256="ab" * 32, size=1)
    for name in ("../own.py", "/own.py", "a/../../own.py"):
        with pytest.raises(AtollError):
            book.check("r1", replace(REQUEST, code={name: ref.sha256}), {name: ref})
    huge = BlobRef(sha256="ab" * 32, size=1 << 30)
    with pytest.raises(AtollError, match="bytes of code"):
        book.check("r1", replace(REQUEST, code={"own.py": huge.sha256}), {"own.py": huge})
    assert book.all() == []


def test_a_server_that_makes_up_requests_fills_no_disk(
    book: Approvals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    made = [replace(REQUEST, researcher=name) for name in "abc"]
    assert all(refused(book, request) for request in made)
    assert {w.request.researcher for w in book.all()} == {"a", "b"}
    book.decide(made[0].digest, approved=False, by="eva")
    assert refused(book, made[2])
    assert book.waiting == 2


def test_a_request_is_found_by_how_it_begins_and_is_what_was_asked(
    book: Approvals, tmp_path: Path
) -> None:
    assert refused(book)
    assert book.find(REQUEST.digest[:6]).request == REQUEST
    for start in ("", "zz"):
        with pytest.raises(NotFound):
            book.find(start)
    path = tmp_path / "approvals" / REQUEST.digest / "request.json"
    raw = json.loads(path.read_text())
    wrong: list[Any] = [
        {**raw, key: value} for key in REQUEST.to_plain() for value in (5, "lung", None, [])
    ]
    for one in (*wrong, 5, [], "", {}, {**raw, "asked": "soon"}, {**raw, "more": 1}):
        path.write_text(json.dumps(one))
        with pytest.raises(StorageError, match="is not what was asked for"):
            book.find(REQUEST.digest)
    path.write_text(path.read_text()[:-1])
    with pytest.raises(StorageError, match="is not what was asked for"):
        book.find(REQUEST.digest)
