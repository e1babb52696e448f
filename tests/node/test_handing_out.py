"""Whether a site hands out means and scales with a model: its rule, in the worker and in the node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import telling_site as ts
from telling_site import Told

from atoll.core.errors import PolicyError
from atoll.node.policy.leaving import checked
from atoll.node.rules import Rule

YES = Rule(inputs=True)
NOISE = {"noise_multiplier": 1.0, "open_metrics": True}
PRIVATE = {"record": NOISE, "aggregation": "plain"}
MASKED = {"aggregation": "masked"}


def agrees(folder: Path, table: Any, rule: Rule, **over: Any) -> bool:
    clear = {key: value for key, value in over.items() if key != "privacy"}
    sums = Told(folder / "clear", table, replace(rule, minimum=1), **clear).sums()
    told = Told(folder / "told", table, rule, **over).agreed()
    return bool(told.ask("ready", sums)[0]["answer"]["inputs"])


def test_a_site_says_nothing_unless_its_rule_does(tmp_path: Path) -> None:
    assert not agrees(tmp_path / "no", ts.rows(300), ts.ON)
    assert not agrees(tmp_path / "off", ts.rows(300), ts.OFF)
    assert agrees(tmp_path / "yes", ts.rows(300), YES)
    assert agrees(tmp_path / "masked", ts.rows(300), YES, privacy=MASKED)


@pytest.mark.parametrize("privacy", [{}, MASKED])
@pytest.mark.parametrize(
    "table",
    [
        ts.changed(300, dose={3: "", 7: ""}),  # two persons have no dose
        ts.changed(300, clan={3: "rare", 7: "rare"}),
        ts.rows(25),  # ten held out
    ],
)
def test_what_tells_of_few_persons_is_held_back_whatever_hides_it(
    tmp_path: Path, table: Any, privacy: Any
) -> None:
    assert agrees(tmp_path / "all", table, Rule(minimum=1, inputs=True), privacy=privacy)
    assert not agrees(tmp_path / "few", table, YES, privacy=privacy)


def test_nothing_goes_out_with_a_job_that_promises_differential_privacy(tmp_path: Path) -> None:
    assert not agrees(tmp_path, ts.rows(300), YES, privacy=PRIVATE)


@pytest.mark.parametrize(
    ("rule", "privacy", "refused"),
    [
        (ts.ON, {}, True),
        (ts.OFF, {}, True),
        (YES, PRIVATE, True),
        (YES, {}, False),
        (Rule(minimum=1, inputs=True), PRIVATE, True),
    ],
)
def test_job_code_that_agrees_in_the_site_s_place_is_refused(
    tmp_path: Path, rule: Rule, privacy: Any, refused: bool
) -> None:
    told = Told(tmp_path, ts.rows(300), rule, privacy=privacy).agreed()
    order = told.order("ready")
    told.write(order, {"answer": {"rows": 36, "held_out": 24, "inputs": True}})
    if not refused:
        assert checked(order).status == "done"
        return
    with pytest.raises(PolicyError, match="means and scales"):
        checked(order)
