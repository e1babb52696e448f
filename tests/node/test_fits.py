"""Work that is done before its answer is wanted: nothing leaves meanwhile, and it is not done twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_federation as ff
import numpy as np
import pytest
from fake_server import ANY

from atoll.core.errors import AuthError
from atoll.data.readers import read_table
from atoll.job import deployed
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.models.linear import LinearTrainer
from atoll.node.lies.cast import SITES
from atoll.node.lies.stage import Stage, digest_of
from atoll.node.orders import DatasetBody, Order, done_only
from atoll.node.room import workplace
from atoll.node.room.workplace import Workplace
from atoll.node.settings import Settings
from atoll.wire.frames import decode, encode
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

NONE = BlobRef(sha256="0" * 64, size=0)


class Bench:
    """A workplace with a masked, asynchronous run of which this is one site of six."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rounds = {"mode": "async", "buffer": 6, "max_staleness": 4}
        tables = {"privacy": {"aggregation": "masked"}, "algorithm": {"name": "fedbuff"}}
        spec = parse_job(ff.job_tables(**tables, rounds=rounds))
        (folder / "east.csv").write_text(ff.table_text(1))
        rows = read_table(folder / "east.csv")
        told = {name: deployed.survey(spec, name, rows) for name in ("east", *"abcde")}
        schema = deployed.agree(spec, told)
        sums = dict(deployed.column_sums_at(spec, schema, "east", rows).vectors)
        body = {
            "run": "r1",
            "spec": spec_to_plain(spec),
            "sites": ["east", *"abcde"],
            "schema": deployed.schema_to_plain(schema),
        }
        (folder / "plan").write_bytes(encode(body, sums))
        islands = deployed.islands_at(spec, schema, sums, "east", rows)
        self.parts = deployed.parts_at(spec, islands, folder, "east", 6)
        self.length = self.parts.trainer.layout.size
        self.place = Workplace(folder / "work")

    def do(self, kind: str, **more: Any) -> tuple[ResultBody, dict[str, Any]]:
        """The result of a task."""
        vectors = {
            "parameters": np.zeros(self.length),
            "chain.cohort": np.array([6.0]),
        }
        (self.folder / "model").write_bytes(encode({"version": 0}, vectors))
        task = TaskBody(
            id=f"r1.{kind}.0.east",
            run="r1",
            kind=kind,  # type: ignore[arg-type]  # checked by the schema
            number=0,
            client="east",
            plan=NONE,
            **more,
        )
        order = Order(
            task=task,
            plan=str(self.folder / "plan"),
            broadcast=str(self.folder / "model"),
            result=str(self.folder / "result"),
            keep=str(self.folder / "keep"),
            dataset=DatasetBody(
                name="sites", path=str(self.folder / "east.csv"), missing=[], columns={}
            ),
        )
        self.place.carry_out(order)
        body, arrays = decode((self.folder / "result").read_bytes(), ANY)
        return ResultBody.model_validate(body), arrays


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that this process has trained."""
    seen: list[int] = []
    real = LinearTrainer.fit

    def fit(self: Any, *given: Any, **named: Any) -> Any:
        seen.append(1)
        return real(self, *given, **named)

    monkeypatch.setattr(LinearTrainer, "fit", fit)
    return seen


def test_a_fit_says_that_it_is_done_and_keeps_what_came_of_it(
    tmp_path: Path, trained: list[int]
) -> None:
    body, arrays = Bench(tmp_path).do("fit")
    assert (body.status, body.reason, arrays) == ("done", "", {})
    assert (body.examples, body.weight, body.metrics, body.answer) == (0, 0.0, {}, {})
    assert trained == [1]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_after_a_fit_the_update_counts_as_it_should_without_training_again(
    tmp_path: Path, trained: list[int], scale: float
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    ready, fresh = Bench(tmp_path / "one"), Bench(tmp_path / "two")
    ready.do("fit")
    _, late = ready.do("train", scale=scale)
    assert trained == [1]
    _, direct = fresh.do("train", scale=scale)
    assert trained == [1, 1]
    assert sorted(late) == sorted(direct)
    assert all(np.array_equal(late[name], direct[name]) for name in direct)
    _, whole = fresh.do("train")
    assert late["weight"][0] == whole["weight"][0]
    assert late["scaled"][0] == pytest.approx(scale * whole["scaled"][0], rel=1e-9)


@pytest.mark.parametrize("other", [{"repeat": 1}, {"fraction": 0.5}, {"version": 1}])
def test_what_was_made_from_something_else_is_not_used(
    tmp_path: Path, trained: list[int], other: dict[str, Any]
) -> None:
    bench = Bench(tmp_path)
    bench.do("fit")
    bench.do("train", **other)
    assert len(trained) == 2


def test_a_worker_that_tells_more_of_a_fit_is_cut_short() -> None:
    told = ResultBody(task="r1.fit.0.a", status="done", examples=90, weight=2.0, seconds=1.5)
    body, arrays = decode(done_only(told), ANY)
    said = ResultBody.model_validate(body)
    assert (said.status, said.seconds, said.examples, said.weight) == ("done", 1.5, 0, 0.0)
    assert not arrays


# Rounds begun with one model and gone on with another ---------------------------------------------


def find(stage: Stage) -> Any:
    return lambda blob: stage.folder / blob.sha256


def test_integers_of_an_earlier_attempt_from_another_model_are_made_anew(tmp_path: Path) -> None:
    """Else a server could have a site train from a model of its own, then let the attempt fail."""
    stage, name = Stage(tmp_path, Settings()), SITES[0]
    site, honest = stage.sites[name], stage.terms()
    other = replace(honest, occasion=replace(honest.occasion, model=digest_of(9.0)))
    first = stage.task(name, stage.invitation(other), model=9.0)
    site.answer(first, find(stage))
    work = site.first(first)
    assert work is not None
    stage.work(site, work)
    second = stage.task(name, stage.invitation(stage.terms(attempt=1)))
    site.answer(second, find(stage))
    again = site.first(second)
    assert again is not None
    assert again.broadcast == second.broadcast != first.broadcast
    assert site.trained(second) is None


def test_integers_of_an_earlier_attempt_from_the_same_model_are_used(tmp_path: Path) -> None:
    stage, name = Stage(tmp_path, Settings()), SITES[0]
    site = stage.sites[name]
    first = stage.task(name, stage.invitation(stage.terms()))
    site.answer(first, find(stage))
    stage.work(site, first.model_copy(update={"kind": "train"}))
    second = stage.task(name, stage.invitation(stage.terms(attempt=1)))
    site.answer(second, find(stage))
    assert site.first(second) is None
    assert site.trained(second) is not None


def test_the_integers_are_of_the_model_with_which_the_round_was_begun(tmp_path: Path) -> None:
    stage, name = Stage(tmp_path, Settings()), SITES[0]
    site, invitation = stage.sites[name], stage.invitation(stage.terms())
    site.answer(stage.task(name, invitation), find(stage))
    other = stage.task(name, invitation, model=9.0).model_copy(update={"kind": "train"})
    with pytest.raises(AuthError, match="from another model than its round was begun with"):
        site.trained(other)


def test_a_version_that_was_another_model_before_is_refused(tmp_path: Path) -> None:
    from atoll.job.buffered import Starts
    from atoll.node.sums.buffers import Buffers, Shown

    spec = parse_job(
        ff.job_tables(
            privacy={"aggregation": "masked"},
            algorithm={"name": "fedbuff"},
            rounds={"mode": "async", "buffer": 6, "max_staleness": 4},
        )
    )
    plan: Any = SimpleNamespace(spec=spec)
    buffers, sites = Buffers(), dict(zip(SITES, (0, 0, 0, 1, 1, 1), strict=True))

    def shown(name: str, **models: str) -> Shown:
        starts = Starts(1, {int(v[1:]): digest for v, digest in models.items()}, sites)
        body: Any = SimpleNamespace(version=sites[name], scale=1.0)
        return Shown(name, starts.to_plain(), body, models[f"v{sites[name]}"], SITES)

    mark = buffers.approved(plan, shown(SITES[3], v0="aa", v1="bb"), 3)
    assert mark == buffers.approved(plan, shown(SITES[3], v0="aa", v1="bb"), 3)
    with pytest.raises(AuthError, match="version 0 was another model before"):
        buffers.approved(plan, shown(SITES[3], v0="cc", v1="bb"), 3)
    with pytest.raises(AuthError, match="another model"):
        Buffers().approved(plan, replace(shown(SITES[3], v0="aa", v1="bb"), model="dd"), 3)


def test_a_file_that_is_written_while_it_is_read_is_not_taken_for_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest says to the log of questions which rows they were about."""
    bench, real = Bench(tmp_path), workplace.digest_of

    def replaced(path: str) -> str:
        digest = real(path)
        (tmp_path / "new.csv").write_text(ff.table_text(2))
        (tmp_path / "new.csv").rename(path)
        return digest

    monkeypatch.setattr(workplace, "digest_of", replaced)
    body, _ = bench.do("survey")
    assert (body.status, body.answer) == ("failed", {})
    assert "was changed while it was read" in body.reason
    monkeypatch.undo()
    assert bench.do("survey")[0].status == "done"
