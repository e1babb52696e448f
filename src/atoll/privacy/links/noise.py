"""Noise that makes what is released differentially private: at the server, or at the clients.

At the server it is added to sums of numbers: independent in every round, or correlated over rounds for jobs
that cannot sample (:mod:`atoll.privacy.dp.matrix`). In shares each client adds a part to its integers
before they are masked, so that nobody ever sees a sum without noise. Or each client adds all that hides its own
update, whoever sees it (local privacy). All of it is drawn from the operating
system's generator: a run with noise is not repeatable, and must not be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from atoll.core.chain import COHORT, Passage, Passive, Setting
from atoll.core.errors import Fault
from atoll.core.layout import Array, Layout
from atoll.core.values import Aggregate, Update
from atoll.privacy.dp import matrix
from atoll.privacy.dp.clipping import noise_for_vectors
from atoll.privacy.dp.events import Event, Gaussian, MatrixGaussian
from atoll.privacy.dp.noise import Source, SystemSource, gaussian, grid_of, noised
from atoll.privacy.links.clip import BELOW, BOUND
from atoll.privacy.links.shares import Shares

__all__ = ["CentralNoise", "CorrelatedNoise", "LocalNoise", "NoiseShares"]

_KEPT, _ROUND = "noise.kept", "noise.round"


def _unclear(setting: Setting) -> Sequence[Fault]:
    """Vectors that no clip bounds."""
    return [
        Fault(
            "algorithm",
            f"sends {name!r}, which no clip bounds: noise cannot hide it",
            "use an algorithm that sends vectors of the model only, such as fedavg",
        )
        for name, (shape, _) in setting.vectors.items()
        if math.prod(shape) != setting.model and name != BELOW
    ]


def _taken(aggregate: Aggregate) -> tuple[list[str], Array]:
    """The vectors of the model, as one."""
    names = [name for name in sorted(aggregate.sums) if name != BELOW]
    return names, np.concatenate([aggregate.sums[n].reshape(-1) for n in names])


def _put(aggregate: Aggregate, names: Sequence[str], whole: Array) -> dict[str, Array]:
    sums, start = dict(aggregate.sums), 0
    for name in names:
        like = sums[name]
        sums[name] = whole[start : start + like.size].reshape(like.shape)
        start += like.size
    return sums


@dataclass(frozen=True, eq=False)
class CentralNoise(Passive):
    """Independent Gaussian noise on the sum of every round, by the server.

    Args:
        noise_multiplier: z, for all that a round releases.
        event: what one round costs.
        grid: C of the quantiser, whose rounding lengthens a contribution; 0 without one.
        count_deviation: noise on the count of an adaptive clip; 0 without one.
        source: of random bits.
    """

    noise_multiplier: float
    event: Event
    grid: float = 0.0
    count_deviation: float = 0.0
    source: Source = field(default_factory=SystemSource, repr=False)
    name: str = "noise"
    needs: frozenset[str] = frozenset({"bounded norm", "bounded weight"})
    gives: frozenset[str] = frozenset({"noise"})

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Vectors that no clip bounds."""
        return _unclear(setting)

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """The sums with noise."""
        names, whole = _taken(aggregate)
        z = self.noise_multiplier
        if self.count_deviation:
            z = noise_for_vectors(z, self.count_deviation)
        bound = _lengthened(float(slots[BOUND][0]), self.grid, slots, whole.size)
        sums = _put(aggregate, names, noised(self.source, whole, bound, z))
        if self.count_deviation:
            sums[BELOW] = sums[BELOW] + gaussian(self.source, 1, self.count_deviation)
        return replace(aggregate, sums=sums), {}

    def events(self) -> Sequence[Any]:
        """One Gaussian release: of the vectors and, where the clip adapts, the count together."""
        return (self.event,)


def _lengthened(bound: float, grid: float, slots: Mapping[str, Array], size: int) -> float:
    """C and what stochastic rounding to a quantiser's grid may add to it in L2."""
    if not grid:
        return bound
    return bound + math.sqrt(size) * grid / ((2**31 - 1) // int(slots[COHORT][0]))


@dataclass(frozen=True, eq=False)
class CorrelatedNoise(Passive):
    """Noise of the server that partly cancels over rounds: tree, banded or BLT, over all planned rounds.

    What later rounds need of it lies in the server's slots, which must stay at the server. A round that
    was aborted has its noise as well, which the next one that commits carries with its own: so rounds
    stand as far apart for the noise as they do for the clients, and the sums are those of the mechanism.

    Args:
        spec: the mechanism; its noise is in units of the clip.
        values: number of values of one release.
        grid: see :class:`CentralNoise`.
        source: of random bits.
    """

    spec: MatrixGaussian
    values: int
    grid: float = 0.0
    source: Source = field(default_factory=SystemSource, repr=False)
    name: str = "noise"
    needs: frozenset[str] = frozenset({"bounded norm", "bounded weight"})
    gives: frozenset[str] = frozenset({"noise"})

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Vectors that no clip bounds."""
        return _unclear(setting)

    def start(self, layout: Layout) -> Mapping[str, Array]:
        """No noise yet."""
        begun = matrix.start(self.spec, self.values)
        return {_KEPT: begun.kept, _ROUND: np.zeros(1)}

    def tell(self, slots: Mapping[str, Array]) -> Mapping[str, Array]:
        """Nothing: who knows the noise can take it away."""
        return {}

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """The sums with this round's noise.

        Raises:
            StateError: more rounds than planned.
        """
        names, whole = _taken(aggregate)
        bound = _lengthened(float(slots[BOUND][0]), self.grid, slots, whole.size)
        grid = grid_of(self.spec.deviation * bound)
        bound += grid * math.sqrt(whole.size)  # the values are rounded to the noise's grid
        after, noise = matrix.Correlated(int(slots[_ROUND][0]), slots[_KEPT]), np.zeros(whole.size)
        while after.round <= round:
            fresh, after = matrix.step(self.source, self.spec, after, bound)
            noise += fresh
        # The noise goes to the grid as well: the sum is exact, and so the ideal one, rounded.
        whole = (np.rint(whole / grid) + np.rint(noise / grid)) * grid
        kept = {_KEPT: after.kept, _ROUND: np.array([float(after.round)])}
        return replace(aggregate, sums=_put(aggregate, names, whole)), kept

    def events(self) -> Sequence[Any]:
        """The whole run is one event; it is paid for with the first round."""
        return (self.spec,)


@dataclass(frozen=True, eq=False)
class LocalNoise(Passive):
    """Each client hides its own update before anybody sees it: Gaussian noise for the whole clip.

    That a client takes part is no secret here, so datasets are compared by exchanging the update for
    another: the account counts 2 C (``replace``).

    Args:
        noise_multiplier: z, standard deviation over the clip.
        bound: C.
        source: of random bits.
    """

    noise_multiplier: float
    bound: float
    source: Source = field(default_factory=SystemSource, repr=False)
    name: str = "noise"
    needs: frozenset[str] = frozenset({"bounded norm", "bounded weight"})
    gives: frozenset[str] = frozenset({"noise"})

    @property
    def range(self) -> float:
        """What a coordinate hardly ever passes (once in 10^9 draws): for who makes integers of it."""
        return self.bound * (1.0 + 6.0 * self.noise_multiplier)

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Vectors that no clip bounds."""
        return _unclear(setting)

    def client(self, update: Update, passage: Passage) -> Update:
        """The vectors with noise, all of them in one release."""
        names = sorted(update.vectors)
        whole = np.concatenate([update.vectors[name].reshape(-1) for name in names])
        noisy = noised(self.source, whole, self.bound, self.noise_multiplier)
        sent, start = {}, 0
        for name in names:
            like = update.vectors[name]
            sent[name] = noisy[start : start + like.size].reshape(like.shape).astype(like.dtype)
            start += like.size
        return replace(update, vectors=sent)

    def events(self) -> Sequence[Any]:
        """One Gaussian release of each client that took part."""
        return (Gaussian(self.noise_multiplier),)


@dataclass(frozen=True, eq=False)
class NoiseShares(Passive):
    """Each client adds its share of integer noise, inside the mask.

    Args:
        shares: how much.
        bound: C.
        values: number of values of one update that are noised.
        model: d; lanes of this length are noised.
        cohort: n where it is known (at the coordinator), for the event.
        source: of random bits.
    """

    shares: Shares
    bound: float
    values: int
    model: int
    cohort: int = 0
    source: Source = field(default_factory=SystemSource, repr=False)
    name: str = "noise"
    needs: frozenset[str] = frozenset({"bounded norm", "bounded weight", "integers"})
    gives: frozenset[str] = frozenset({"noise"})

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Vectors that no clip bounds, and an adaptive clip, whose count would need noise too."""
        found = list(_unclear(setting))
        if BELOW in setting.vectors:
            reason = "'adaptive' sends a count, to which noise in shares is not added"
            remedy = "set clip_by = 'l2', or client.where = 'server'"
            found.append(Fault("privacy.clip_by", reason, remedy))
        return found

    def short(self, present: int, invited: int) -> str:
        """Why a sum over ``present`` carries too little noise; empty when it has enough."""
        least = self.shares.least(self.cohort)
        if present >= least:
            return ""
        return f"{present} shares of noise, {least} are accounted for"

    def client(self, update: Update, passage: Passage) -> Update:
        """The integers with this client's share, held within what one client may send."""
        lattice = self.shares.lattice(passage.cohort, self.bound, self.values)
        sent = {}
        for name, v in update.vectors.items():
            noise = lattice.noise.draw(self.source, v.size)
            noisy = np.clip(v.astype(np.int64) + noise, -lattice.levels, lattice.levels)
            sent[name] = noisy.astype(v.dtype)
        return replace(update, vectors=sent)

    def events(self) -> Sequence[Any]:
        """One release with the noise of the fewest shares."""
        lattice = self.shares.lattice(self.cohort, self.bound, self.values)
        return (lattice.event(self.shares.sampling),)
