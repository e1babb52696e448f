"""Ledgers of six sites in masked rounds with noise in shares, between real processes, some of them killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_jobs import table_task
from federation_processes import Federation
from test_federation_masked import admitted

from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import Accounts, Limit
from atoll.node.policy.ledger_file import read_ledger
from atoll.wire.identity import Identity

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("dp_accounting")

SHARED = (
    "privacy.aggregation='masked'",
    "privacy.threshold=4",
    "privacy.clip=1.0",
    "privacy.client.where='sites'",
    "privacy.client.noise_multiplier=2.0",
    "algorithm.weights='uniform'",
    "preprocessing.mode='site'",
    "evaluation.federated=false",
)


def ledgers(federation: Federation) -> dict[str, Accounts]:
    found = {}
    for site, home in federation.homes.items():
        key = Identity.load(home.identity).public_bytes
        found[site] = read_ledger(home.ledger, key)[0]
    return found


def states(accounts: Accounts) -> Iterable[str]:
    return (entry.state for entry in accounts.entries)


def test_each_site_counts_every_round_whose_sum_it_was_in(tmp_path: Path) -> None:
    rounds = 6
    task = table_task(tmp_path / "job", sites=6, rounds=rounds)
    limit = Limit("rows", 50.0, 1e-5)
    with Federation(tmp_path) as federation:
        admitted(federation, task)
        for home in federation.homes.values():
            Budgets(home.budgets).set(limit)
        plain = federation.submit(task.job, task.settings)
        refused = federation.wait(plain)
        assert (refused.status, "policy.private" in refused.reason) == ("failed", True)
        run = federation.submit(task.job, [*task.settings, *SHARED])
        victims = list(task.sites)[:2]
        federation.rounds(run, 2)
        for site in victims:
            federation.nodes[site].kill()
        time.sleep(0.3)
        for site in victims:
            federation.nodes[site].start()
        info = federation.wait(run)
        assert info.status == "completed", info.reason
        records = federation.records(run)
        heads = federation.rows("SELECT record FROM rounds WHERE run = ? ORDER BY number", run)
        for site, accounts in ledgers(federation).items():
            taken = sum(site in record["contributed"] for record in records if record["committed"])
            counted = [state for state in states(accounts) if state != "returned"]
            tries = (
                2 if site in victims else 0
            )  # a round that it left after its input, or did not end
            assert taken <= len(counted) <= taken + 1 + tries, (site, list(states(accounts)))
            assert {e.charge.unit for e in accounts.entries} == {"site"}
            assert {e.charge.events[0]["kind"] for e in accounts.entries} == {"skellam"}
            assert 0 < accounts.spent(limit) < 50
            assert f'"{site}"' in str(heads[-1][0])  # the server remembers its head
