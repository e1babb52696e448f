"""What was released, as data: mechanisms return events, accountants read them.

An event says what one mechanism did in units of one *contribution*: how much one unit (a record, a
person, a site) may change the quantity that was released. It is immutable, has a plain form
for files and messages, and says nothing about who it happened to. A ledger is a list of events.

An accountant refuses what it does not know; so does :func:`from_plain`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from atoll.core.errors import Fault, JobError, raise_faults, suggest

__all__ = [
    "DiscreteGaussian",
    "Event",
    "Gaussian",
    "Geometric",
    "Guarantee",
    "Laplace",
    "MatrixGaussian",
    "Neighbouring",
    "Selection",
    "Skellam",
    "Stated",
    "Unit",
    "canonical",
    "from_plain",
    "to_plain",
]

Unit = Literal["record", "person", "site"]
"""Whose presence is hidden."""

Neighbouring = Literal["add_or_remove", "replace"]
"""Which two datasets must look alike: one unit more or less, or one unit exchanged for another."""


@dataclass(frozen=True)
class Guarantee:
    """(epsilon, delta)-differential privacy, with what it is about.

    Args:
        epsilon: at least 0; infinite where nothing is promised.
        delta: probability in [0, 1).
        unit: whose presence is hidden.
        neighbouring: which datasets are compared.

    >>> print(Guarantee(2.9998, 1e-5, "record", "add_or_remove"))
    epsilon 3.00 at delta 1e-05 for one record (add or remove)
    """

    epsilon: float
    delta: float
    unit: Unit
    neighbouring: Neighbouring

    def __post_init__(self) -> None:
        """Refuse what is no guarantee.

        Raises:
            JobError: all faults at once.
        """
        found = []
        if not self.epsilon >= 0:
            found.append(Fault("epsilon", f"{self.epsilon} is not at least 0"))
        if not 0 <= self.delta < 1:
            found.append(Fault("delta", f"{self.delta} is not in [0, 1)"))
        found += _unknown("unit", self.unit, get_args(Unit))
        found += _unknown("neighbouring", self.neighbouring, get_args(Neighbouring))
        raise_faults(JobError, "this is no guarantee", found)

    def __str__(self) -> str:
        """For people; epsilon is rounded up."""
        shown = math.ceil(self.epsilon * 100) / 100 if math.isfinite(self.epsilon) else math.inf
        relation = self.neighbouring.replace("_", " ")
        return f"epsilon {shown:.2f} at delta {self.delta:g} for one {self.unit} ({relation})"


def _unknown(place: str, word: str, known: tuple[str, ...]) -> list[Fault]:
    return [] if word in known else [Fault(place, f"{word!r} is unknown", suggest(word, known))]


@dataclass(frozen=True)
class Gaussian:
    """Gaussian noise on a sum.

    Args:
        noise_multiplier: z, the noise's standard deviation over one unit's contribution in L2.
        sampling: probability with which each unit took part, independently; 1 for all.
        count: how many times.
    """

    noise_multiplier: float
    sampling: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(self, positive=("noise_multiplier",))


@dataclass(frozen=True)
class DiscreteGaussian:
    """Discrete Gaussian noise on an integer vector, added up from shares.

    Args:
        deviation: parameter sigma of one share, in units of the lattice.
        shares: fewest that are in the sum and unknown to the adversary.
        l2: contribution of one unit in L2, in units of the lattice, rounding included.
        dimension: length of the vector.
        sampling: as in :class:`Gaussian`.
        count: how many times.
    """

    deviation: float
    shares: int
    l2: float
    dimension: int
    sampling: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(self, positive=("deviation", "l2"), whole=("shares", "dimension"))


@dataclass(frozen=True)
class Skellam:
    """Skellam noise on an integer vector; sums of shares are Skellam again.

    Args:
        variance: of the whole noise that is surely in the sum, in units of the lattice.
        l2: contribution of one unit in L2, in units of the lattice, rounding included.
        dimension: length of the vector.
        sampling: as in :class:`Gaussian`.
        count: how many times.
    """

    variance: float
    l2: float
    dimension: int
    sampling: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(self, positive=("variance", "l2"), whole=("dimension",))


@dataclass(frozen=True)
class MatrixGaussian:
    """Noise correlated over rounds, of one whole run of rounds; see :mod:`atoll.privacy.dp.matrix`.

    Args:
        mechanism: ``tree``, ``banded`` or ``blt``.
        deviation: standard deviation of the independent noise over one unit's contribution in L2.
        rounds: T, all that are planned.
        bands: b of ``banded``; 1 is independent noise.
        participations: k, most rounds that one unit takes part in.
        separation: fewest rounds from one participation to the next.
        count: how many such runs.
        decays: theta of each buffer of ``blt``, in (0, 1); empty elsewhere.
        scales: omega of each buffer of ``blt``, above 0 and in all at most 1; empty elsewhere.
    """

    mechanism: Literal["tree", "banded", "blt"]
    deviation: float
    rounds: int
    bands: int = 1
    participations: int = 1
    separation: int = 1
    count: int = 1
    decays: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("decays", "scales"):
            if isinstance(value := getattr(self, name), list):  # which JSON makes of it
                object.__setattr__(self, name, tuple(value))
        more = _unknown("mechanism", self.mechanism, ("tree", "banded", "blt"))
        if not more and self.mechanism == "banded" and self.bands > self.rounds:
            more.append(Fault("bands", f"{self.bands} bands in {self.rounds} rounds"))
        more += self._buffers()
        whole = ("rounds", "bands", "participations", "separation")
        _check(self, positive=("deviation",), whole=whole, more=more)

    def _buffers(self) -> list[Fault]:
        """Coefficients that rise, or fall below 0, have another sensitivity than we compute."""
        both = {"decays": self.decays, "scales": self.scales}
        found = [
            Fault(name, f"{values!r} is no list of numbers above 0 and below 1")
            for name, values in both.items()
            if type(values) is not tuple or not all(_real(v) and 0 < v <= 1 for v in values)
        ]
        if not found and (len(self.decays), bool(self.decays)) != (
            len(self.scales),
            self.mechanism == "blt",
        ):
            reason = (
                f"{len(self.decays)} decays and {len(self.scales)} scales of {self.mechanism!r}"
            )
            found.append(Fault("decays", reason))
        if not found and (1 in self.decays or math.fsum(self.scales) > 1):
            found.append(
                Fault("scales", f"{self.scales} are together more than 1, or a decay is 1")
            )
        return found

    @property
    def noise_multiplier(self) -> float:
        """The Gaussian mechanism that this run amounts to."""
        from atoll.privacy.dp.matrix import sensitivity

        return self.deviation / sensitivity(self)


@dataclass(frozen=True)
class Laplace:
    """Laplace noise on a sum.

    Args:
        noise_multiplier: its scale over one unit's contribution in L1.
        sampling: as in :class:`Gaussian`.
        count: how many times.
    """

    noise_multiplier: float
    sampling: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(self, positive=("noise_multiplier",))


@dataclass(frozen=True)
class Geometric:
    """Two-sided geometric (discrete Laplace) noise on counts.

    Args:
        scale: t of P(k) ~ exp(-abs(k) / t).
        l1: contribution of one unit in L1, a whole number.
        count: how many times.
    """

    scale: float
    l1: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(self, positive=("scale",), whole=("l1",))


@dataclass(frozen=True)
class Selection:
    """The best of several by the exponential mechanism, or noisy maximum with Gumbel noise.

    Args:
        epsilon: of one choice.
        count: how many times.
    """

    epsilon: float
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        _check(self, positive=("epsilon",))


@dataclass(frozen=True)
class Stated:
    """A release whose (epsilon, delta) somebody else accounts for.

    Args:
        epsilon: of one release, under the relation that the whole list is accounted for.
        delta: likewise.
        count: how many times.
    """

    epsilon: float
    delta: float = 0.0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        bad = [] if 0 <= self.delta < 1 else [Fault("delta", f"{self.delta} is not in [0, 1)")]
        _check(self, positive=("epsilon",), more=bad)


Event = (
    Gaussian
    | DiscreteGaussian
    | Skellam
    | MatrixGaussian
    | Laplace
    | Geometric
    | Selection
    | Stated
)
"""Anything an accountant can read."""

_KINDS: dict[str, type[Event]] = {
    "gaussian": Gaussian,
    "discrete_gaussian": DiscreteGaussian,
    "skellam": Skellam,
    "matrix_gaussian": MatrixGaussian,
    "laplace": Laplace,
    "geometric": Geometric,
    "selection": Selection,
    "stated": Stated,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def _check(
    event: Event,
    positive: tuple[str, ...],
    whole: tuple[str, ...] = (),
    more: Iterable[Fault] = (),
) -> None:
    found = list(more)
    for name in positive:
        value = getattr(event, name)
        if not (_real(value) and 0 < value < math.inf):
            found.append(Fault(name, f"{value!r} is not a finite number above 0"))
    for name in (*whole, "count"):
        value = getattr(event, name)
        if type(value) is not int or value < 1:
            found.append(Fault(name, f"{value!r} is not a whole number above 0"))
    rate = getattr(event, "sampling", 1.0)
    if not (_real(rate) and 0 < rate <= 1):
        found.append(Fault("sampling", f"{rate!r} is not a probability above 0"))
    raise_faults(JobError, f"no such {type(event).__name__} event", found)


def _real(value: object) -> bool:
    return type(value) in (int, float)


def to_plain(event: Event) -> dict[str, Any]:
    """The event as JSON values; :func:`from_plain` reads it back. What is empty is left out.

    >>> to_plain(Gaussian(1.0, 0.01, 1000))
    {'kind': 'gaussian', 'noise_multiplier': 1.0, 'sampling': 0.01, 'count': 1000}
    """
    return {"kind": _NAMES[type(event)], **{k: v for k, v in asdict(event).items() if v != ()}}


def from_plain(plain: Mapping[str, Any]) -> Event:
    """The event that :func:`to_plain` wrote.

    Raises:
        JobError: an unknown kind or field, a missing field, a value out of range.
    """
    kind = plain.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise JobError(f"unknown privacy event {kind!r}", remedy=suggest(str(kind), _KINDS))
    own = {field.name for field in fields(_KINDS[kind])}
    may = {field.name for field in fields(_KINDS[kind]) if field.default == ()}
    given = {name: value for name, value in plain.items() if name != "kind"}
    if not own - may <= set(given) <= own:
        wrong = ", ".join(sorted((set(given) - own) | (own - may - set(given))))
        raise JobError(f"a {kind} event with other fields than its own: {wrong}")
    return _KINDS[kind](**given)


def canonical(events: Iterable[Event]) -> bytes:
    """One byte string for a list of events, for hashes and signatures; the order counts.

    >>> canonical([Selection(0.5)])
    b'[{"count":1,"epsilon":0.5,"kind":"selection"}]'
    """
    plain = [{"kind": _NAMES[type(e)], **_numbers(e)} for e in events]
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _numbers(event: Event) -> dict[str, Any]:
    """The fields, real ones as floats: 1 and 1.0 must not give two hashes. What is empty is left out."""
    return {
        f.name: float(value) if f.type == "float" else value
        for f in fields(event)
        for value in (getattr(event, f.name),)
        if value != ()
    }
