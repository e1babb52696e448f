"""The first round of a regression: is the outcome possible, and where does the climb begin."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from atoll.algorithms.statistics import glm_newton
from atoll.algorithms.statistics.families import Family
from atoll.algorithms.statistics.glm_design import misfit, moments_of
from atoll.algorithms.statistics.glm_rows import Rows
from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = ["level_of", "outcome_sums", "ready"]


def outcome_sums(
    rows: Rows, law: Family, data: Mapping[str, Array], site: int, sites: int
) -> dict[str, Array]:
    """What a site adds of its outcome.

    Returns:
        ``outcomes``: total weight, total frequency, weighted sum of y, rows at the lowest and at the
        highest outcome, rows, weighted sum of the offset; ``saturated``; ``flat``: sites whose outcomes
        are all at one bound.

    Raises:
        DataError: an outcome that the family does not know.
    """
    outcomes, saturated = np.zeros(7), np.zeros(())
    k = len(rows.design.names)
    low, high = law.range
    for block in rows.blocks(data, np.zeros(k), np.ones(k)):
        y, weight = block.outcome, block.weight * block.times
        if not law.allows(y).all():
            odd = float(y[~law.allows(y)][0])
            raise misfit(
                rows.outcome,
                f"holds {odd:g}, which no {law.name} model knows",
                "look at the column, or choose another family",
            )
        saturated = saturated + weight @ law.saturated(y)
        bounds = (np.count_nonzero(y == low), np.count_nonzero(y == high))
        outcomes += np.array(
            [weight.sum(), block.times.sum(), weight @ y, *bounds, len(y), weight @ block.offset]
        )
    answer = {"outcomes": outcomes, "saturated": saturated}
    if rows.intercept == "site":
        # A site all at one bound has an intercept at infinity and tells nothing of the rest.
        flat = np.zeros((3, sites))
        at_low, at_high, n = outcomes[3:6]
        flat[:, site] = [n > 0 and at_low == n, n > 0 and at_high == n, n == 0]
        if law.name == "gamma" or law.range[0] == -np.inf:
            flat[:2] = 0.0
        answer["flat"] = flat
    return answer


def level_of(law: Family, outcomes: Array) -> float:
    """The linear predictor, less the offset, at which an average row has the average outcome."""
    weight, _, total, *_, offset = outcomes.tolist()
    level = law.link(total / weight)
    inverse = law.name == "gamma" and law.canonical  # there the offset must not take it below zero
    return level if inverse else level - offset / weight


def ready(rows: Rows, law: Family, totals: Mapping[str, Array]) -> dict[str, Array]:
    """The state before the climb.

    Raises:
        DataError: no complete row, or outcomes that are all at one bound.
    """
    found = moments_of(totals)
    at_low, at_high, n = totals["outcomes"][3:6].tolist()
    if n == 0:
        empty = [c for c, e in zip(rows.columns, totals["empty"], strict=True) if e]
        where = f"; columns that are empty somewhere: {', '.join(empty)}" if empty else ""
        raise DataError(f"no site has a complete row{where}", remedy="leave out such columns")
    for bound, count in zip(law.range, (at_low, at_high), strict=True):
        if count == n and law.name != "gamma":
            raise DataError(
                f"outcome {rows.outcome!r} is {bound:g} in all {int(n)} rows of all sites",
                remedy="a model needs both outcomes" if law.name == "binomial" else "",
            )
    sites = totals["flat"].shape[1] if "flat" in totals else 0
    point = rows.start(sites, level_of(law, totals["outcomes"]))
    state = glm_newton.begin(point)
    if sites:
        state["kept"][:sites] = totals["flat"].sum(axis=0) == 0
    return {
        **totals,
        **state,
        "centre": rows.centre(found),
        "scale": found.scale,
    }
