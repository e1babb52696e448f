"""A researcher at a real server over TLS: joining, submitting, watching, fetching results."""

from __future__ import annotations

import json
import stat
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import atoll
from atoll.core.errors import (
    AuthError,
    Forbidden,
    JobError,
    NotFound,
    QuorumError,
    StateError,
    StorageError,
    Unreachable,
    WireError,
)
from atoll.job.load import read_spec
from atoll.node.home import Home
from atoll.node.join import join
from atoll.server import admin
from atoll.server.service import Readable, Service
from atoll.wire.frames import Blob
from atoll.wire.messages import BlobRef, RoundsReply

sys.path.insert(0, str(Path(__file__).parent / "cli"))

from live_server import live

HEART = Path(__file__).parents[1] / "examples" / "heart" / "job.toml"


def code(home, name="ada", role="researcher"):
    return admin.invite(home, name, role, 1.0, time.time())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live(tmp_path_factory.mktemp("connection") / "server") as home:
        site = code(home, "ulm", "site")
        folder = tmp_path_factory.mktemp("site")
        with pytest.raises(StateError, match="a site"):
            atoll.connect(folder / "wrong", code=site, proxy="")
        # The code is not used up by the wrong command.
        join(Home(folder / "node"), site, proxy="")
        yield home


@pytest.fixture(scope="module")
def ada(server, tmp_path_factory):
    with atoll.connect(tmp_path_factory.mktemp("ada"), code=code(server), proxy="") as made:
        yield made


# Joining -------------------------------------------------------------------------------------------


def test_joining_leaves_a_private_key_and_who_one_is(ada):
    assert stat.S_IMODE((ada.home / "identity.pem").stat().st_mode) == 0o600
    again = atoll.connect(ada.home, proxy="")
    assert again.membership == ada.membership
    assert again.membership.name == "ada"
    assert again.jobs() == ada.jobs()
    again.close()


def test_a_folder_belongs_to_one_federation(server, ada):
    with pytest.raises(StateError, match="already"):
        atoll.connect(ada.home, code=code(server, "bob"), proxy="")


def test_who_has_not_joined_is_told_how(tmp_path):
    with pytest.raises(NotFound, match="atoll job join CODE"):
        atoll.connect(tmp_path)


def test_a_code_works_once_and_a_mistyped_one_not_at_all(server, tmp_path):
    text = code(server, "eve")
    with pytest.raises(WireError, match="group"):
        atoll.connect(tmp_path / "a", code=text[:-1] + ("0" if text[-1] != "0" else "1"), proxy="")
    atoll.connect(tmp_path / "b", code=text, proxy="").close()
    with pytest.raises(AuthError):
        atoll.connect(tmp_path / "c", code=text, proxy="")
    # The folder of the failed attempt is still good for another code.
    atoll.connect(tmp_path / "c", code=code(server, "carl"), proxy="").close()


def test_a_damaged_folder_is_told_so(ada, tmp_path):
    (tmp_path / "federation.json").write_text('{"name": "ada"}')
    with pytest.raises(StorageError, match="damaged"):
        atoll.connect(tmp_path)


def test_the_default_folder_is_the_user_s_own(monkeypatch, tmp_path):
    monkeypatch.delenv("ATOLL_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NotFound, match=str(tmp_path / ".atoll" / "researcher")):
        atoll.connect()
    monkeypatch.setenv("ATOLL_HOME", str(tmp_path / "mine"))
    with pytest.raises(NotFound, match=str(tmp_path / "mine")):
        atoll.connect()


def test_members_are_shown_with_their_fingerprints(ada):
    named = {member.name: member.role for member in ada.federation().members}
    assert named["ulm"] == "site"
    assert named["ada"] == "researcher"


# Jobs ----------------------------------------------------------------------------------------------


def test_a_job_is_submitted_with_its_hash_listed_shown_and_cancelled(ada):
    run = ada.submit(HEART, settings=["rounds.count=7"])
    info = ada.show(run)
    assert info.job_hash == read_spec(HEART, ["rounds.count=7"]).hash()
    assert (info.by, info.sites, info.ended) == ("ada", ("ulm",), False)
    assert run in [i.id for i in ada.jobs()]
    assert ada.planned(run) == 7
    with pytest.raises(StateError, match="not ended"):
        ada.result(run, "x")
    ada.cancel(run)
    assert (ada.wait(run).status, ada.show(run).ended) == ("cancelled", True)
    with pytest.raises(StateError):
        ada.cancel(run)


def test_a_job_s_own_code_goes_with_it_and_data_do_not(ada, tmp_path, monkeypatch):
    text = HEART.read_text().replace(
        'kind = "logistic"', 'kind = "torch"\nfactory = "mine.py:make"'
    )
    (tmp_path / "job.toml").write_text(text.replace("l2 = 0.01", ""))
    (tmp_path / "heart.csv").write_bytes(HEART.with_name("heart.csv").read_bytes())
    (tmp_path / "mine.py").write_text("from layers import make\n")
    (tmp_path / "layers.py").write_text("def make():\n    raise RuntimeError('only at a site')\n")
    kept = {}
    real = Service.submit

    def watched(self, by, body):
        kept.update({name: ref.sha256 for name, ref in body.files.items()})
        return real(self, by, body)

    monkeypatch.setattr(Service, "submit", watched)
    ada.cancel(ada.submit(tmp_path / "job.toml"))
    assert kept == {
        name: Blob.of((tmp_path / name).read_bytes()).sha256 for name in ("layers.py", "mine.py")
    }


def test_faults_come_before_anything_is_sent(ada):
    with pytest.raises(JobError, match="lr"):
        ada.submit(HEART, settings=["local.lr=-1"])


def test_faults_that_the_server_finds_come_with_their_places(ada):
    with pytest.raises(JobError) as caught:
        ada.submit(HEART, settings=["clock.dropout=0.1"], sites=["nowhere"])
    assert {fault.place for fault in caught.value.faults} >= {"clock.dropout", "sites"}


def test_a_run_that_is_not_there_is_told_so(ada):
    for act in (
        ada.show,
        ada.cancel,
        lambda run: list(ada.watch(run)),
        lambda r: ada.result(r, "x"),
    ):
        with pytest.raises(NotFound, match="nothing-9"):
            act("nothing-9")


def test_another_s_run_is_not_one_s_own_to_cancel(ada, server, tmp_path):
    run = ada.submit(HEART)
    bob = atoll.connect(tmp_path / "bob", code=code(server, "bob2"), proxy="")
    with pytest.raises(Forbidden, match="ada"):
        bob.cancel(run)
    bob.close()
    ada.cancel(run)


# Beginning at a model -------------------------------------------------------------------------------


def test_a_job_goes_on_from_the_model_of_an_earlier_run(ada, server, monkeypatch, tmp_path):
    twin = atoll.simulate(
        atoll.load_job(HEART, ["rounds.count=1", "evaluation.compare=false"]), out=tmp_path / "twin"
    )
    run = ada.submit(HEART, settings=["rounds.count=1"])
    ada.cancel(run)
    ada.wait(run)
    raw = (tmp_path / "twin" / "model.safetensors").read_bytes()
    (server / "runs" / run / "model.safetensors").write_bytes(raw)
    seen = []
    real = Service.submit

    def watched(self, by, body):
        seen.append(body)
        return real(self, by, body)

    monkeypatch.setattr(Service, "submit", watched)
    for initial in (run, tmp_path / "twin", twin.parameters):
        ada.cancel(ada.submit(HEART, initial=initial))
    assert len({body.job_hash for body in seen}) == 1
    assert {body.spec["model"]["start"] for body in seen} == {ada.start(run).hash}
    assert {body.initial.sha256 for body in seen} == {seen[0].initial.sha256}
    assert seen[0].job_hash == atoll.load_job(HEART).begun(tmp_path / "twin").hash()
    with atoll.connect(tmp_path / "cy", code=code(server, "cy"), proxy="") as other:
        assert (
            other.start(run).hash == ada.start(run).hash
        )  # results are every researcher's to read


def test_a_model_that_does_not_fit_or_is_not_there_is_told_before_anything_is_sent(
    ada, monkeypatch, tmp_path
):
    sent = []
    monkeypatch.setattr(Service, "submit", lambda self, by, body: sent.append(body))
    for initial in ({"weight": np.ones(13)}, {"weight": np.ones(13), "intercept": np.ones(3)}):
        with pytest.raises(JobError, match="does not fit this job") as caught:
            ada.submit(HEART, initial=initial)
        assert [fault.place for fault in caught.value.faults] == ["entry 'intercept'"]
    for initial in ({"weight": [np.nan], "intercept": 0.0}, "gone.npz", tmp_path):
        with pytest.raises(JobError):
            ada.submit(HEART, initial=initial)
    with pytest.raises(NotFound, match="nothing-9"):
        ada.submit(HEART, initial="nothing-9")
    with pytest.raises(JobError, match="not given"):
        ada.submit(HEART, settings=[f"model.start='{'a' * 64}'"])
    assert sent == []


def test_a_run_without_a_model_is_nothing_to_begin_at(ada):
    run = ada.submit(HEART)
    with pytest.raises(StateError, match="has not ended"):
        ada.start(run)
    ada.cancel(run)
    ada.wait(run)
    with pytest.raises(NotFound, match="has left no model: cancelled"):
        ada.start(run)


# Watching ------------------------------------------------------------------------------------------


def scripted(records):
    def rounds(self, run, after=0):
        fresh = [{"round": n} for n in range(after + 1, min(after + 3, records + 1))]
        return RoundsReply(rounds=fresh[:2], status="open", ended=after + len(fresh) >= records)

    return rounds


def test_watching_gives_each_round_once_and_ends_with_the_run(ada, monkeypatch):
    monkeypatch.setattr(Service, "rounds", scripted(7))
    assert [record["round"] for record in ada.watch("x")] == [*range(1, 8)]
    assert [record["round"] for record in ada.watch("x", after=5)] == [6, 7]


def test_watching_survives_a_server_that_restarts(tmp_path, monkeypatch):
    home, told, seen = tmp_path / "server", [], []
    monkeypatch.setattr(Service, "rounds", scripted(4))
    with live(home):
        ada = atoll.connect(tmp_path / "ada", code=code(home), proxy="")
        watching = ada.watch("x", notice=told.append)
        seen += [next(watching), next(watching)]
    back = threading.Event()

    def restart():
        with live(home):
            back.wait(30)

    again = threading.Timer(0.7, restart)
    again.start()
    seen += list(watching)
    back.set()
    again.join(30)
    ada.close()
    assert [record["round"] for record in seen] == [1, 2, 3, 4]
    assert ["does not answer" in told[0], "answers again" in told[-1]] == [True, True]
    with pytest.raises(Unreachable):
        list(ada.watch("x", patience=0.0))


def test_a_server_that_goes_between_the_last_round_and_how_it_ended_is_waited_for(ada, monkeypatch):
    run = ada.submit(HEART)
    ada.cancel(run)
    ask, away, told = ada._channel.json, [1, 1, 1], []

    def asked(method, path, *more, **named):
        if path.endswith(run) and away:
            away.pop()
            raise Unreachable("nobody is there")
        return ask(method, path, *more, **named)

    monkeypatch.setattr(ada._channel, "json", asked)
    assert ada.wait(run).status == "cancelled"
    away.append(1)
    with pytest.raises(Unreachable):
        ada.show(run)
    away.append(1)
    assert ada.show(run, patience=9.0, notice=told.append).status == "cancelled"
    assert ["does not answer" in told[0], "answers again" in told[-1]] == [True, True]


# Results -------------------------------------------------------------------------------------------


FILES = {
    "manifest.json": b'{"status": "completed"}',
    "checkpoint/a b.json": b"1" * 700_000,
    "e": b"",
}


def offered(monkeypatch, files):
    refs = {name: BlobRef.of(Blob.of(raw)) for name, raw in files.items()}
    asked = []

    def file(self, run, name):
        asked.append(name)
        return Readable(len(files[name]), lambda a, b: files[name][a:b])

    monkeypatch.setattr(Service, "files", lambda self, run: refs)
    monkeypatch.setattr(Service, "file", file)
    return asked


def test_a_result_is_fetched_file_by_file_and_only_what_is_missing(ada, monkeypatch, tmp_path):
    asked = offered(monkeypatch, FILES)
    assert ada.result("x", tmp_path / "r") == tmp_path / "r"
    found = {
        str(p.relative_to(tmp_path / "r")): p.read_bytes()
        for p in (tmp_path / "r").rglob("*")
        if p.is_file()
    }
    assert found == FILES
    asked.clear()
    (tmp_path / "r" / "manifest.json").write_bytes(b'{"status": "forged!!!"}')
    ada.result("x", tmp_path / "r")
    assert set(asked) == {"manifest.json"}
    assert json.loads((tmp_path / "r" / "manifest.json").read_text()) == {"status": "completed"}


def test_a_result_is_not_mixed_with_another_run_s(ada, monkeypatch, tmp_path):
    runs = [ada.submit(HEART, settings=[f"seed={seed}"]) for seed in (1, 2)]
    for run in runs:
        ada.cancel(run)
        ada.wait(run)
    ada.result(runs[0], tmp_path / "r")
    ada.result(runs[0], tmp_path / "r")
    before = (tmp_path / "r" / "manifest.json").read_bytes()
    with pytest.raises(StateError, match="holds another run"):
        ada.result(runs[1], tmp_path / "r")
    assert (tmp_path / "r" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "c:evil", ".."]
)
def test_a_server_cannot_write_outside_the_folder(ada, monkeypatch, tmp_path, name):
    monkeypatch.setattr(
        "atoll.wire.messages.FilesReply.model_validate_json",
        classmethod(lambda cls, raw: cls.model_construct(files={name: BlobRef.of(Blob.of(b"x"))})),
    )
    offered(monkeypatch, {"e": b""})
    with pytest.raises(WireError, match="not in the folder"):
        ada.result("x", tmp_path / "r")
    assert list(tmp_path.rglob("evil")) == []


def test_a_run_without_files_says_how_it_ended(ada, monkeypatch, tmp_path):
    run = ada.submit(HEART)
    ada.cancel(run)
    ada.wait(run)
    monkeypatch.setattr(Service, "files", lambda self, run: {})
    with pytest.raises(QuorumError, match="cancelled"):
        ada.result(run, tmp_path / "r")
