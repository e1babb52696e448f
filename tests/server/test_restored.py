"""A server that was put back from an older backup: its new runs meet nothing of those it has forgotten."""

from __future__ import annotations

from pathlib import Path

from played_sites import HEART, World, heart_tables

from atoll.job.load import read_spec
from atoll.server.store.contract import RESTORED


def test_runs_after_a_restore_have_ids_that_none_had_before(tmp_path: Path) -> None:
    world = World(tmp_path, heart_tables())
    forgotten = read_spec(HEART, ["rounds.count=2", "seed=1"])
    first = world.submit(forgotten)
    world.run()
    kept = {site.name: dict(site.spool) for site in world.sites.values()}
    world = World(tmp_path / "again", heart_tables())
    for site in world.sites.values():  # which have answers of the run that the server has forgotten
        site.spool.update(kept[site.name])
    world.store.add_event(RESTORED, "from a backup", "", "", 0.0)
    again = world.submit(read_spec(HEART, ["rounds.count=2", "seed=2"]))
    assert again == f"{first}-e{world.service.epoch}"
    world.run()
    assert world.store.run(again).status == "completed"
    for site in world.sites.values():
        assert {name.partition(".")[0] for name in site.worked} == {again}
