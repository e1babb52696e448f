"""The rows of a regression at one site: outcome, weights, offset, standardised design, intercepts.

A point of the climb is ``[intercept, coefficients]``, or ``[intercepts of all sites, coefficients]``, or the
coefficients alone, in the units of centred and scaled columns. A site works with its own intercept only
and scatters its sums into the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from atoll.algorithms.statistics.glm_design import Design, Moments, misfit, moments
from atoll.core.layout import Array

__all__ = ["Block", "Intercept", "Rows"]

Intercept = Literal["common", "site", "none"]


@dataclass(frozen=True)
class Block:
    """Some thousand complete rows.

    Args:
        matrix: design with a row of ones where there is an intercept, ``(p, rows)``.
        outcome: ``(rows,)``.
        weight: prior weights, 1 if there are none.
        times: frequencies, 1 if there are none.
        offset: 0 if there is none.
    """

    matrix: Array
    outcome: Array
    weight: Array
    times: Array
    offset: Array


@dataclass(frozen=True)
class Rows:
    """Which columns of a site play which part.

    Args:
        design: what explains.
        outcome: column to be explained.
        intercept: one for all, one for each site, or none.
        weights: column of prior weights (the variance is divided by them), or empty.
        frequencies: column that says how many equal rows one row stands for, or empty.
        offset: column added to the linear predictor, or empty.
    """

    design: Design
    outcome: str
    intercept: Intercept = "common"
    weights: str = ""
    frequencies: str = ""
    offset: str = ""

    @property
    def others(self) -> tuple[str, ...]:
        """Columns beside the design."""
        optional = (self.weights, self.frequencies, self.offset)
        return (self.outcome, *(name for name in optional if name))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order in which moments count the empty ones."""
        return tuple(dict.fromkeys((*self.design.features, *self.others)))

    def moments(self, data: Mapping[str, Array]) -> dict[str, Array]:
        """See :func:`~atoll.algorithms.statistics.glm_design.moments`.

        Raises:
            DataError: a weight or frequency below zero, or an infinite value.
        """
        for name in (self.weights, self.frequencies):
            if name and (data[name] < 0).any():
                raise misfit(name, f"holds {np.nanmin(data[name]):g}, a negative weight")
        return moments(self.design, data, self.others)

    def blocks(self, data: Mapping[str, Array], centre: Array, scale: Array) -> Iterator[Block]:
        """A site's complete rows with positive weight, standardised."""
        lead = int(self.intercept != "none")
        shift, factor = centre[:, None], (1.0 / scale)[:, None]
        for matrix, others in self.design.blocks(data, self.others, lead):
            matrix[lead:] -= shift
            matrix[lead:] *= factor
            parts = dict(zip(self.others_kinds, others, strict=True))
            ones = np.ones(matrix.shape[1])
            block = Block(
                matrix,
                parts["outcome"],
                parts.get("weights", ones),
                parts.get("frequencies", ones),
                parts.get("offset", np.zeros(matrix.shape[1])),
            )
            live = (block.weight > 0) & (block.times > 0)
            if not live.all():
                block = Block(
                    np.ascontiguousarray(matrix[:, live]),
                    *(
                        part[live]
                        for part in (block.outcome, block.weight, block.times, block.offset)
                    ),
                )
            yield block

    @property
    def others_kinds(self) -> tuple[str, ...]:
        """The parts that :attr:`others` play."""
        kinds = ("weights", "frequencies", "offset")
        return ("outcome", *(kind for kind in kinds if getattr(self, kind)))

    def start(self, sites: int, level: float) -> Array:
        """The point with this linear predictor everywhere."""
        k = len(self.design.names)
        heads = {"common": 1, "site": sites, "none": 0}[self.intercept]
        return np.concatenate([np.full(heads, level), np.zeros(k)])

    def own(self, point: Array, site: int) -> Array:
        """The part of a point that matters at ``site``."""
        if self.intercept != "site":
            return point
        return np.concatenate([point[[site]], self.slopes(point)])

    def slopes(self, point: Array) -> Array:
        """The coefficients of a point."""
        return point[len(point) - len(self.design.names) :]

    def scatter(self, name: str, square: Array, site: int, sites: int) -> dict[str, Array]:
        """A site's ``(p, p)`` matrix as arrays that add up: the whole, or blocks of an arrow."""
        if self.intercept != "site":
            return {name: square}
        own, cross = np.zeros(sites), np.zeros((sites, len(square) - 1))
        own[site], cross[site] = square[0, 0], square[0, 1:]
        return {name: square[1:, 1:], f"{name}_own": own, f"{name}_cross": cross}

    def gather(self, name: str, totals: Mapping[str, Array]) -> Array:
        """The whole matrix that scattered ones add up to."""
        if self.intercept != "site":
            return totals[name]
        cross = totals[f"{name}_cross"]
        return np.block([[np.diag(totals[f"{name}_own"]), cross], [cross.T, totals[name]]])

    def spread(self, vector: Array, site: int, sites: int) -> Array:
        """A site's ``(p,)`` vector at its place among all intercepts."""
        if self.intercept != "site":
            return vector
        whole = np.zeros(sites + len(vector) - 1)
        whole[site], whole[sites:] = vector[0], vector[1:]
        return whole

    def centre(self, found: Moments) -> Array:
        """What columns are centred at: their means, or zero without an intercept."""
        return found.centre if self.intercept != "none" else np.zeros(len(found.centre))

    def back(self, size: int, centre: Array, scale: Array) -> Array:
        """The matrix that turns a point of ``size`` into coefficients of the columns as they are."""
        k = len(centre)
        matrix = np.eye(size)
        matrix[size - k :, size - k :] = np.diag(1.0 / scale)
        matrix[: size - k, size - k :] = -(centre / scale)
        return matrix
