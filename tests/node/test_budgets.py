"""Limits are kept as they were set; a file of limits that cannot be read is no file without limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.core.errors import DataError, JobError, NotFound
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import Limit
from atoll.node.settings import Masking, Policy, read_settings


def test_limits_are_kept_by_dataset_and_unit(tmp_path: Path) -> None:
    budgets = Budgets(tmp_path / "limits.toml")
    assert budgets.all() == []
    heart, site = Limit("heart", 3.0, 1e-5), Limit("heart", 8.5, 1e-6, "site", "replace")
    other = Limit("a b.c", 0.25, 0.01, "person")
    assert [budgets.set(limit) for limit in (heart, site, other)] == [None, None, None]
    assert budgets.all() == [other, heart, site]
    assert budgets.set(Limit("heart", 4.0, 1e-5)) == heart
    assert budgets.of("heart") == [Limit("heart", 4.0, 1e-5), site]
    budgets.remove("heart", "site")
    assert len(budgets.all()) == 2
    with pytest.raises(NotFound, match="no limit for one site"):
        budgets.remove("heart", "site")


@pytest.mark.parametrize(
    ("limit", "place"),
    [
        (Limit("heart", 0.0, 1e-5), "epsilon"),
        (Limit("heart", float("inf"), 1e-5), "epsilon"),
        (Limit("heart", 3.0, 0.0), "delta"),
        (Limit("heart", 3.0, 1.0), "delta"),
        (Limit("heart", 3.0, 1e-5, "house"), "unit 'house'"),
        (Limit("heart", 3.0, 1e-5, "record", "both"), "neighbouring"),
    ],
)
def test_what_is_no_limit_is_not_set(tmp_path: Path, limit: Limit, place: str) -> None:
    with pytest.raises(DataError, match=place):
        Budgets(tmp_path / "limits.toml").set(limit)
    assert not (tmp_path / "limits.toml").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[heart.record]\nepsilon = 3\n",
        "[heart.record]\nepsilon = 3\ndelta = '1e-5'\n",
        "[heart.record]\nepsilon = true\ndelta = 1e-5\n",
        "[heart.record]\nepsilon = 3\ndelta = 1e-5\nbudget = 1\n",
        "[heart.rows]\nepsilon = 3\ndelta = 1e-5\n",
        "[heart]\nepsilon = 3\ndelta = 1e-5\n",
        "heart = 3\n",
        "[heart.record\n",
    ],
)
def test_a_file_with_a_fault_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "limits.toml").write_text(text)
    with pytest.raises(DataError, match=r"limits\.toml"):
        Budgets(tmp_path / "limits.toml").of("other")


def test_a_site_s_policy_stands_in_node_toml(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    assert read_settings(path).policy == Policy(unmasked=True, private="limited")
    assert read_settings(path).masking == Masking(smallest=5, share=0.5, apart=3, neighbours=20)
    path.write_text('[policy]\nunmasked = false\nprivate = "all"\n[masking]\nsmallest = 7\n')
    assert read_settings(path).policy == Policy(unmasked=False, private="all")
    assert read_settings(path).masking.smallest == 7
    for text, fault in (
        ("[policy]\nprivat = 'all'\n", "did you mean 'private'"),
        ("[policy]\nprivate = 'some'\n", "policy.private"),
        ("[masking]\nsmallest = 2\n", "masking.smallest"),
        ("[masking]\nshare = 0.4\n", "masking.share"),
    ):
        path.write_text(text)
        with pytest.raises(JobError, match=fault):
            read_settings(path)
