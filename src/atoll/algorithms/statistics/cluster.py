"""k-means over sites: Lloyd's algorithm on summed counts, equal to that of the pooled rows.

Each round sites assign their rows to the nearest centre and add up counts, sums and squared distances
(Lloyd, IEEE Trans. Inf. Theory 28, 1982). Several starts run in the same rounds; the best one is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.statistics.columns import varies
from atoll.algorithms.statistics.glm_design import Design, moments, moments_of
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array
from atoll.core.seeds import Seed

__all__ = ["Clusters", "KMeans", "assign", "nearest"]

MOMENTS, SPREAD, MOVE, DONE = range(4)
FIXED = Seed(0)


@dataclass(frozen=True)
class Clusters:
    """Centres and what lies around them.

    Args:
        features: names of the columns.
        centres: ``(k, d)``, in the units of the columns, largest cluster first.
        sizes: rows nearest to each, ``(k,)``.
        inertia: sum of squared distances to the nearest centre; of standardised columns if so fitted.
        scale: what columns are divided by before distances are taken, ``(d,)``.
        rows: complete rows.
        excluded: rows left out for missing values.
        iterations: rounds until no centre moved.
        converged: whether that happened.
        notes: what a reader has to know, in words.
    """

    features: tuple[str, ...]
    centres: Array
    sizes: Array
    inertia: float
    scale: Array
    rows: int
    excluded: int
    iterations: int
    converged: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class KMeans:
    """Lloyd's algorithm.

    Args:
        features: columns of numbers.
        clusters: k.
        seed: of the starts, which are drawn from a normal distribution like that of the columns.
        starts: how many are tried.
        centres: the start itself, ``(k, d)``, instead of drawn ones.
        standardise: whether columns are divided by their standard deviations first.
        most: rounds after which to stop.
    """

    features: Sequence[str]
    clusters: int
    seed: Seed = FIXED
    starts: int = 10
    centres: Sequence[Sequence[float]] = ()
    standardise: bool = False
    most: int = 300

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.starts < 1 or not self.features:
            raise JobError(
                f"{self.clusters} clusters, {self.starts} starts, {len(self.features)} features: each must "
                "be one or more"
            )
        if len(self.centres) and np.shape(self.centres) != (self.clusters, len(self.features)):
            raise JobError(f"centres are {np.shape(self.centres)}, not one row for each cluster")

    @property
    def design(self) -> Design:
        """The columns."""
        return Design.of(self.features, {})

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return tuple(self.features)

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(MOMENTS))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """The centres of all starts."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        names = {MOMENTS: (), SPREAD: ("centre",), MOVE: ("centre", "scale", "points")}[phase]
        return {"phase": state["phase"], **{n: state[n] for n in names}}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """What a site adds."""
        phase = int(question["phase"])
        if phase == MOMENTS:
            return moments(self.design, data, ())
        if phase == SPREAD:
            squares = np.zeros(len(self.features))
            for raw, _ in self.design.blocks(data, ()):
                squares += ((raw - question["centre"][:, None]) ** 2).sum(axis=1)
            return {"squares": squares}
        points = question["points"]
        starts, k, d = points.shape
        sums, counts, inertia = np.zeros(points.shape), np.zeros((starts, k)), np.zeros(starts)
        for raw, _ in self.design.blocks(data, ()):
            z = (raw - question["centre"][:, None]) / question["scale"][:, None]
            for s in range(starts):
                own, distance = nearest(z, points[s])
                counts[s] += np.bincount(own, minlength=k)
                for j in range(d):
                    sums[s, :, j] += np.bincount(own, z[j], k)
                inertia[s] += distance.sum()
        return {"cluster_sums": sums, "cluster_counts": counts, "inertia": inertia}

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        phase = int(state["phase"])
        if phase == MOMENTS:
            found = moments_of(totals)
            if found.rows < self.clusters:
                raise DataError(
                    f"{int(found.rows)} complete rows are less than {self.clusters} clusters"
                )
            return {**totals, "centre": found.centre, "phase": np.array(float(SPREAD))}
        if phase == SPREAD:
            return self._begin(state, np.sqrt(totals["squares"] / moments_of(state).rows))
        counts = totals["cluster_counts"][..., None]
        # A centre without rows stays where it is.
        moved = np.where(
            counts > 0, totals["cluster_sums"] / np.maximum(counts, 1.0), state["points"]
        )
        rounds = float(state["rounds"]) + 1
        rested = bool((moved == state["points"]).all())
        done = rested or rounds >= self.most
        return {
            **state,
            "points": moved,
            "cluster_counts": totals["cluster_counts"],
            "inertia": totals["inertia"],
            "rounds": np.array(rounds),
            "rested": np.array(float(rested)),
            "phase": np.array(float(DONE if done else MOVE)),
        }

    def _begin(self, state: Mapping[str, Array], spread: Array) -> dict[str, Array]:
        d, found = len(self.features), moments_of(state)
        moving = varies(spread**2 * found.rows, found.rows, found.centre)
        spread = np.where(moving, spread, 0.0)
        scale = np.where(spread > 0, spread, 1.0) if self.standardise else np.ones(d)
        if len(self.centres):
            points = ((np.asarray(self.centres, np.float64) - state["centre"]) / scale)[None]
        else:
            draw = (
                (self.seed / "k-means").generator().standard_normal((self.starts, self.clusters, d))
            )
            points = draw * spread / scale
        return {
            **state,
            "scale": scale,
            "still": np.where(moving, 0.0, 1.0),
            "points": points,
            "rounds": np.array(0.0),
            "phase": np.array(float(MOVE)),
        }

    def still(self, state: Mapping[str, Array]) -> list[str]:
        """Columns that have the same value in all complete rows of all sites."""
        return [name for name, one in zip(self.features, state["still"], strict=True) if one]

    def result(self, state: Mapping[str, Array]) -> Clusters:
        """The best start."""
        found = moments_of(state)
        best = int(np.argmin(state["inertia"]))
        counts = state["cluster_counts"][best]
        order = np.argsort(-counts, kind="stable")
        notes = found.notes(self.columns())
        notes += [
            f"column {name!r} is constant: it tells no rows apart" for name in self.still(state)
        ]
        if not counts.all():
            notes.append(f"{int((counts == 0).sum())} clusters have no rows")
        if not state["rested"]:
            notes.append(f"centres still move after {self.most} rounds")
        return Clusters(
            features=tuple(self.features),
            centres=(state["points"][best] * state["scale"] + state["centre"])[order],
            sizes=counts[order],
            inertia=float(state["inertia"][best]),
            scale=state["scale"],
            rows=int(found.rows),
            excluded=int(found.excluded),
            iterations=int(state["rounds"]),
            converged=bool(state["rested"]),
            notes=tuple(notes),
        )


def nearest(z: Array, points: Array) -> tuple[Array, Array]:
    """The nearest of ``points (k, d)`` for columns ``z (d, n)``, the first of equals; squared distances."""
    distance = np.stack([((z - point[:, None]) ** 2).sum(axis=0) for point in points])
    own = distance.argmin(axis=0)
    return own, distance[own, np.arange(z.shape[1])]


def assign(clusters: Clusters, data: Mapping[str, Array]) -> Array:
    """At a site: the cluster of each row, ``(n,)``; NaN for rows with missing values."""
    z = np.stack([np.asarray(data[name], np.float64) for name in clusters.features])
    labels = np.full(z.shape[1], np.nan)
    whole = ~np.isnan(z).any(axis=0)
    scale = clusters.scale[:, None]
    labels[whole] = nearest(z[:, whole] / scale, clusters.centres / clusters.scale)[0]
    return labels
