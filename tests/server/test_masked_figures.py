"""What a masked run says of a single site beside its updates: nothing, and the same sums all the same."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import masked_sites as masked
import played_sites as played
import pytest

from atoll.core.errors import AtollError
from atoll.wire.frames import decode
from atoll.wire.messages import ResultBody


def spec(aggregation: str, *more: str) -> Any:
    return played.heart_spec(f"privacy.aggregation={aggregation}", "rounds.count=2", *more)


@pytest.fixture
def world(tmp_path: Path, six: Any) -> masked.MaskedWorld:
    return masked.MaskedWorld(tmp_path / "home", six)


@pytest.fixture(scope="module")
def clear(six: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last record of the same job whose integers are seen one by one."""
    world = played.World(tmp_path_factory.mktemp("clear"), six)
    run = world.submit(spec("quantised"))
    world.run()
    return dict(world.store.last_round(run).record)


def answers(world: masked.MaskedWorld) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Everything that sites have sent: site, kind of task, body and vectors."""
    found = []
    for name, site in world.sites.items():
        kinds = {task.id: task.kind for task in site.asked}
        for task, frame in site.spool.items():
            body, arrays = decode(frame, played.EVERYTHING)
            said = ResultBody.model_validate(body).model_dump()
            found.append((name, kinds[task], said, arrays))
    return found


def test_figures_of_held_out_rows_are_those_of_the_run_in_clear_and_nobody_s_own(world, clear):
    run = world.submit(spec("masked"))
    world.run()
    assert world.store.run(run).reason == "completed"
    record = world.record(run)
    assert record["federated"] == clear["federated"]
    assert set(record["federated"]) == {"loss", "accuracy", "auc"}
    assert record["sites"] is None
    assert len(clear["sites"]) == 6


def test_no_answer_of_a_masked_run_says_a_number_of_one_site(world, six):
    """Neither metrics, nor rows, nor a card; and what is a vector is masked."""
    world.submit(spec("masked"))
    world.run()
    kinds = set()
    for site, kind, body, arrays in answers(world):
        kinds.add(kind)
        assert body["status"] == "done", body
        assert not any(body[name] for name in ("examples", "weight", "metrics")), kind
        if kind == "ready":
            assert (body["answer"]["rows"], body["answer"]["held_out"]) == (0, 1)
            assert not any(body["answer"][name] for name in ("card", "notes"))
        elif kind in ("sums", "evaluate"):
            words = [array for name, array in arrays.items() if name != "said"]
            assert len(words) > 2
            assert all(array.dtype.name == "uint64" for array in words)
            rows = len(six[site])
            assert not any((array <= 4 * rows).any() for array in words)  # any count would be
        elif kind != "survey":
            assert not body["answer"]
    assert kinds == {"survey", "sums", "ready", "evaluate", *masked.STEPS}


def test_the_manifest_says_what_was_not_told(world):
    run = world.submit(spec("masked"))
    world.run()
    folder = world.service._office.folder(run)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["aggregation"] == "masked: the job says so"
    assert {entry["rows"] for entry in manifest["data"].values()} == {None}
    assert manifest["cards"] == []
    assert any("under masks" in note for note in manifest["notes"])


@pytest.mark.parametrize("step", masked.STEPS[1:])
def test_a_site_that_dies_while_figures_are_added_up_is_left_out_of_them(world, clear, step):
    victim = world.sites["switzerland"]
    victim.dies_at, victim.dies_about = "evaluate" if step == "train" else step, "evaluate"
    run = world.submit(spec("masked", "rounds.count=1", "privacy.threshold=4"))
    world.run()
    until = world.time + 2000
    while world.store.run(run).status == "open" and world.time < until:
        world.wait(20)
    assert world.store.run(run).status == "completed"
    figures = world.record(run)["federated"]
    assert set(figures) == {"loss", "accuracy", "auc"}


def test_a_site_that_does_not_come_to_the_sums_of_columns_is_named_and_nothing_begins(world):
    victim = world.sites["switzerland"]
    victim.dies_at, victim.dies_about = "share", "sums"
    run = world.submit(spec("masked"))
    world.run()
    until = world.time + 2000
    while world.store.run(run).status == "open" and world.time < until:
        world.wait(20)
    row = world.store.run(run)
    assert row.status == "failed"
    assert "sums" in row.reason
    assert "switzerland" in row.reason
    assert world.store.last_round(run) is None


def test_two_jobs_whose_column_sums_differ_by_one_site_are_not_both_answered(world):
    """Else their difference would be the sums of that site."""
    first = world.submit(spec("masked"))
    world.run()
    assert world.store.run(first).status == "completed"
    five = [name for name in world.sites if name != "switzerland"]
    second = world.submit(spec("masked", "seed=2"), sites=five)
    world.run()
    until = world.time + 2000
    while world.store.run(second).status == "open" and world.time < until:
        world.wait(20)
    row = world.store.run(second)
    assert row.status == "failed"
    assert "could be told from the sum" in row.reason


# What is settled ----------------------------------------------------------------------------------


def test_six_sites_mask_a_job_that_says_nothing(world):
    run = world.submit(spec("auto"))
    world.run()
    assert world.store.run(run).reason == "completed"
    told = world.service.job(run).aggregation
    assert told == "masked: 6 sites, and nothing in the job is against it"
    assert {task.about for site in world.sites.values() for task in site.asked} == {
        "train",
        "sums",
        "evaluate",
    }


def test_four_sites_do_not_and_say_why(tmp_path, six):
    four = dict(list(six.items())[:4])
    world = played.World(tmp_path / "home", four)
    run = world.submit(spec("auto"))
    world.run()
    assert world.store.run(run).reason == "completed"
    assert world.service.job(run).aggregation == "plain: 4 sites, masks hide little below 5"
    assert len(world.store.last_round(run).record["sites"]) == 4


def test_a_server_that_asks_a_masked_job_for_figures_in_clear_gets_none(world):
    run = world.submit(spec("auto"))
    world.run()
    site = world.sites["switzerland"]
    node = site.masked[run]
    for task in site.asked:
        if task.kind not in ("train", "sums", "evaluate"):
            continue
        bare = task.model_copy(update={"said": None, "id": f"{task.id}x"})
        assert node.concerns(bare, partial(site._file, world.service))
        with pytest.raises(AtollError):
            node.answer(bare, partial(site._file, world.service))


def test_sums_of_columns_that_no_rows_have_begin_nothing(world, monkeypatch):
    """Under masks a liar is not told from the others, but that somebody lies is."""
    liar = world.sites["switzerland"]
    made = liar._made

    def lying(service, task):
        vectors, memory, lanes = made(service, task)
        if task.kind == "sums":
            vectors["rows"] = vectors["rows"] - 10**6
        return vectors, memory, lanes

    monkeypatch.setattr(liar, "_made", lying)
    run = world.submit(spec("masked"))
    world.run()
    row = world.store.run(run)
    assert row.status == "failed"
    assert "a site has sent what no rows have, and masks hide which" in row.reason
    assert world.store.last_round(run) is None
