"""A node at work: the bits of the serial executor, restarts, failures, and nothing that listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_federation as ff
import pytest

from atoll import simulate
from atoll.job.build import job_from_spec
from atoll.job.load import parse_job
from atoll.runtime.checkpoint import model_hash

SITES = ("east", "west")


def federation(folder: Path, **over: Any) -> Any:
    """The tables of all sites in ``folder/sites``, and a job on them."""
    (folder / "sites").mkdir()
    for seed, site in enumerate(SITES):
        (folder / "sites" / f"{site}.csv").write_text(ff.table_text(seed))
    return parse_job(ff.job_tables(**over), folder=folder)


def simulated(spec: Any, folder: Path) -> str:
    """The model's hash in a simulation of the same job."""
    return simulate(job_from_spec(spec, folder), executor="serial").model_hash


def nodes(folder: Path, servers: dict[str, ff.FakeServer], **settings: Any) -> list[ff.Running]:
    return [
        ff.Running(ff.node_at(folder, site, server, ff.table_text(seed), **settings))
        for seed, (site, server) in enumerate(servers.items())
    ]


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"algorithm": {"name": "fedavg"}, "model": {"kind": "logistic", "personal": ["intercept"]}},
    ],
    ids=["scaffold", "personal"],
)
def test_a_deployed_run_ends_in_the_bits_of_the_serial_executor(
    tmp_path: Path, over: dict[str, Any]
) -> None:
    spec = federation(tmp_path, **over)
    servers = {site: ff.FakeServer() for site in SITES}
    east, west = nodes(tmp_path, servers)
    with east, west:
        finished = ff.Deployed(spec, servers, tmp_path).prepare().run()
    assert model_hash(finished.progress.state.parameters) == simulated(spec, tmp_path)
