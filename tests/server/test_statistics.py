"""Statistics between server and sites: the bits of the simulation, and refusals that name the site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from masked_sites import MaskedWorld, six_tables
from played_sites import HEART, ROOT, World, heart_tables

import atoll
from atoll.core.errors import DataError, JobError
from atoll.job.from_file import job_from_spec
from atoll.job.load import parse_job, read_spec
from atoll.wire.messages import BlobRef

JOB = ROOT / "examples" / "statistics" / "job.toml"


def spec(*settings: str) -> Any:
    return read_spec(JOB, settings)


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def simulated(folder: Path, *settings: str) -> Any:
    atoll.simulate(atoll.load_job(JOB, settings), out=folder, executor="serial")
    return results(folder)


def test_a_deployed_run_ends_in_the_files_of_the_simulation(tmp_path: Path) -> None:
    world = World(tmp_path / "server", heart_tables())
    run = world.submit(spec())
    world.run()
    assert world.store.run(run).status == "completed", world.store.run(run).reason
    folder = tmp_path / "server" / "runs" / run
    assert results(folder) == simulated(tmp_path / "here")
    for name in ("table_one.csv", "who-is-ill.csv"):
        assert (folder / "tables" / name).read_bytes() == (
            tmp_path / "here" / "tables" / name
        ).read_bytes()
    page = (folder / "report.html").read_text()
    assert "odds ratio" in page.casefold()
    assert "seen by the server" in page
    assert {f"tables/{n}" for n in ("table_one.csv", "who-is-ill.csv")} <= set(
        world.service.files(run)
    )


def test_a_server_that_is_killed_goes_on_to_the_same_result(tmp_path: Path) -> None:
    world = World(tmp_path / "server", heart_tables())
    run = world.submit(spec())
    world.reach("train", 2)
    world.kill()
    world.run()
    assert results(tmp_path / "server" / "runs" / run) == simulated(tmp_path / "here")


def test_masked_sums_give_the_bits_of_plain_ones(tmp_path: Path) -> None:
    found = {}
    for kind, made in (("plain", World), ("masked", MaskedWorld)):
        world = made(tmp_path / kind, six_tables())
        run = world.submit(spec(f"privacy.aggregation='{kind}'"))
        world.run()
        assert world.store.run(run).status == "completed", world.store.run(run).reason
        folder = tmp_path / kind / "runs" / run
        found[kind] = results(folder)
        assert (
            found[kind]["rule"]["masked"],
            "masked" in (folder / "report.html").read_text(),
        ) == (
            kind == "masked",
            kind == "masked",
        )
    assert found["masked"]["analyses"] == found["plain"]["analyses"]


def test_masks_in_one_process_change_no_bit_either(tmp_path: Path) -> None:
    masked = simulated(tmp_path / "masked", "privacy.aggregation='masked'")
    assert masked["analyses"] == simulated(tmp_path / "plain")["analyses"]


def scales(kind: str) -> Any:
    columns = ["trestbps", "thalach"]
    raw = {
        "data": {
            "source": str(HEART.parent / "heart.csv"),
            "site_column": "hospital",
            "columns": {"sex": {"type": "category", "categories": ["female", "male"]}},
        },
        "privacy": {"aggregation": kind},
        "statistics": {
            "complete": ["age", "sex", *columns],
            "analyses": [
                {"kind": "standardise", "columns": columns},
                {"kind": "combat", "columns": columns, "covariates": ["age", "sex"]},
            ],
        },
    }
    return parse_job(raw, folder=Path())


def test_scales_of_columns_are_told_the_same_plain_and_masked(tmp_path: Path) -> None:
    found = {}
    for kind, made in (("plain", World), ("masked", MaskedWorld)):
        world = made(tmp_path / kind, six_tables())
        run = world.submit(scales(kind))
        world.run()
        assert world.store.run(run).status == "completed", world.store.run(run).reason
        found[kind] = results(tmp_path / kind / "runs" / run)["analyses"]
    assert found["masked"] == found["plain"]
    shown = [line["site"] for line in found["plain"][1]["table"]]
    assert shown == ["all", *six_tables()] * 2


def test_scales_of_columns_are_those_of_the_simulation(tmp_path: Path) -> None:
    world = World(tmp_path / "server", heart_tables())
    run = world.submit(scales("plain"))
    world.run()
    atoll.simulate(job_from_spec(scales("plain"), Path()), out=tmp_path / "here")
    assert results(tmp_path / "server" / "runs" / run) == results(tmp_path / "here")


def test_code_does_not_come_with_statistics(tmp_path: Path) -> None:
    world = World(tmp_path, heart_tables())
    code = BlobRef(sha256="0" * 64, size=1)
    with pytest.raises(JobError, match=r"statistics bring no code"):
        world.submit(spec(), files={"own.py": code})


def test_a_column_that_one_site_lacks_is_named_with_the_site(tmp_path: Path) -> None:
    tables = heart_tables()
    tables["hungary"] = tables["hungary"].without("cp")
    world = World(tmp_path, tables)
    world.submit(spec())
    with pytest.raises(
        DataError, match=r"site 'hungary', column 'cp': is not in this site's table"
    ):
        world.run()


def test_a_job_of_a_model_is_none_of_statistics() -> None:
    job = atoll.load_job(HEART)
    assert job.study is None
    raw = {
        "data": {"source": "heart.csv", "target": "disease"},
        "model": {"kind": "linear"},
        "statistics": {"analyses": [{"kind": "describ"}, {"kind": "logistic", "feature": ["a"]}]},
    }
    with pytest.raises(JobError) as caught:
        parse_job(raw, folder=Path())
    told = {fault.place for fault in caught.value.faults}
    assert told == {
        "statistics.analyses.0.kind",
        "statistics.analyses.1.feature",
        "statistics.analyses.1.outcome",
        "statistics.analyses.1.features",
        "model",
        "data.target",
    }


@pytest.mark.parametrize("rows", [0, -1, 2**70, "9", 1.5])
def test_a_site_that_tells_no_number_of_rows_is_named(tmp_path: Path, rows: Any) -> None:
    world = World(tmp_path / "server", heart_tables())

    def change(task: Any, body: dict[str, Any], arrays: dict[str, Any]) -> None:
        if task.kind == "ready":
            body["answer"]["rows"] = rows

    world.sites["hungary"].change = change
    run = world.submit(spec())
    world.run()
    row = world.store.run(run)
    assert (row.status, row.reason.startswith("at hungary: ")) == ("failed", True), row.reason
