"""A site behind a firewall: nothing goes in, and out only through a CONNECT proxy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import table_task
from federation_network import (
    ALONE,
    Proxy,
    can_be_alone,
    handed_out,
    listening,
    listening_sockets,
)
from federation_processes import Federation

pytestmark = pytest.mark.slow

ADDRESS = "federation.invalid:443"
"""A name that no resolver knows: without the proxy there is no way."""


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[tuple[Federation, Proxy]]:
    """A server that can be reached through the proxy only."""
    federation = Federation(tmp_path, address=ADDRESS)
    with federation, Proxy(listening(), {ADDRESS: federation.port}) as proxy:
        federation.proxy = proxy.url
        yield federation, proxy


def test_sites_and_researcher_reach_the_server_through_the_proxy_only(
    apart: tuple[Federation, Proxy], tmp_path: Path
) -> None:
    federation, proxy = apart
    task = table_task(tmp_path / "job", sites=2, rounds=3)
    for site, data in task.sites.items():
        federation.join(site, data)
        federation.node(site, environment={"HTTPS_PROXY": proxy.url}).start()
    run = federation.submit(task.job)
    assert federation.wait(run).status == "completed"
    assert federation.result(run)["model_hash"] == task.simulated()
    assert set(proxy.asked) == {ADDRESS}


def test_node_without_the_proxys_password_says_so(
    apart: tuple[Federation, Proxy], tmp_path: Path
) -> None:
    federation, proxy = apart
    federation.join("east", {})
    url = f"http://127.0.0.1:{proxy.port}"
    node = federation.node("east", environment={"HTTPS_PROXY": url})
    node.start()
    federation.trouble("east", "wants a user and a password")


@pytest.mark.skipif(not can_be_alone(), reason="this machine lets nobody make a network (unshare)")
def test_node_in_a_network_where_only_the_proxy_is_works(
    apart: tuple[Federation, Proxy], tmp_path: Path
) -> None:
    federation, _ = apart
    door = tmp_path / "door"
    take = handed_out(door)
    direct = f"import socket; socket.create_connection(('127.0.0.1', {federation.port}), 3)"
    task = table_task(tmp_path / "job", sites=1, rounds=3)
    (site,) = task.sites
    federation.join(site, task.sites[site])
    node = federation.node(site, before=[*ALONE, str(door)])
    node.start()
    with Proxy(take(), {ADDRESS: federation.port}) as only:
        into = ["nsenter", "--net", "--user", "--preserve-credentials", "--target", str(node.pid)]
        tried = subprocess.run(
            [*into, sys.executable, "-c", direct], capture_output=True, text=True, check=False
        )
        assert "Network is unreachable" in tried.stderr or "refused" in tried.stderr
        run = federation.submit(task.job)
        assert federation.wait(run).status == "completed"
        assert set(only.asked) == {ADDRESS}
        assert listening_sockets(node.pid) == []
        assert federation.result(run)["model_hash"] == task.simulated()


def test_node_at_work_and_its_worker_listen_nowhere(tmp_path: Path) -> None:
    task = table_task(tmp_path / "job", sites=1, rounds=200)
    (site,) = task.sites
    with Federation(tmp_path) as federation:
        federation.admit(task.sites)
        run = federation.submit(task.job)
        federation.rounds(run, 2)
        node = federation.nodes[site]
        worker = federation.worker(site)
        assert listening_sockets(federation.server.pid) != []  # the check sees what there is
        assert listening_sockets(node.pid) == []
        assert listening_sockets(worker) == []
        federation.researcher.cancel(run)
