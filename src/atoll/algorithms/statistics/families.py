"""Families of generalised linear models: what a row adds to the likelihood, and its derivatives.

Symbols are those of McCullagh and Nelder, Generalized Linear Models (1989):

========  ===========================================
eta       linear predictor, ``(n,)``
mu        mean, the inverse link of eta
phi       dispersion: variance is ``phi V(mu) / w``
kernel    log-likelihood times phi, without what does not depend on eta
========  ===========================================

Rows are additive and each family is a value, so a family runs at a site and nothing else is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atoll.algorithms.statistics.families_special import gammaln, xlogy
from atoll.core.errors import JobError, suggest
from atoll.core.layout import Array

__all__ = [
    "Binomial",
    "Family",
    "Gamma",
    "Gaussian",
    "NegativeBinomial",
    "Pieces",
    "Poisson",
    "family_of",
]


@dataclass(frozen=True)
class Pieces:
    """A family at given linear predictors; all ``(n,)``.

    Args:
        mean: mu.
        kernel: see the module.
        score: derivative of the kernel by eta.
        curvature: minus its second derivative, positive.
        valid: whether eta has a mean at all; None where it always has. Invalid rows hold zeros.
    """

    mean: Array
    kernel: Array
    score: Array
    curvature: Array
    valid: Array | None = None


class Family(Protocol):
    """One distribution with one link."""

    @property
    def name(self) -> str:
        """As options and results tell it."""
        ...

    @property
    def dispersed(self) -> bool:
        """Whether phi is estimated; it is 1 otherwise."""
        ...

    @property
    def canonical(self) -> bool:
        """Whether the curvature is the expected information as well."""
        ...

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest outcome; an outcome at a bound may drive eta to infinity."""
        ...

    def allows(self, y: Array) -> Array:
        """Which outcomes are possible."""
        ...

    def link(self, mean: float) -> float:
        """Eta of a mean."""
        ...

    def pieces(self, eta: Array, y: Array) -> Pieces:
        """Mean, kernel and derivatives."""
        ...

    def information(self, eta: Array) -> Array:
        """Expected curvature."""
        ...

    def variance(self, mean: Array) -> Array:
        """V(mu)."""
        ...

    def saturated(self, y: Array) -> Array:
        """The kernel at mu = y."""
        ...

    def likelihood(self, y: Array, eta: Array, w: Array, phi: float) -> Array:
        """Log-likelihood of each row, with all constants."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Normal outcomes, identity link."""

    name: str = "gaussian"
    dispersed: bool = True
    canonical: bool = True
    range: tuple[float, float] = (-math.inf, math.inf)

    def allows(self, y: Array) -> Array:
        """All."""
        return np.ones(y.shape, bool)

    def link(self, mean: float) -> float:
        """Identity."""
        return mean

    def pieces(self, eta: Array, y: Array) -> Pieces:
        """See :class:`Family`."""
        rest = y - eta
        return Pieces(eta, -0.5 * rest * rest, rest, np.ones_like(eta))

    def information(self, eta: Array) -> Array:
        """One."""
        return np.ones_like(eta)

    def variance(self, mean: Array) -> Array:
        """One."""
        return np.ones_like(mean)

    def saturated(self, y: Array) -> Array:
        """Zero."""
        return np.zeros_like(y)

    def likelihood(self, y: Array, eta: Array, w: Array, phi: float) -> Array:
        """See :class:`Family`."""
        result: Array = -0.5 * (w * (y - eta) ** 2 / phi + np.log(2 * math.pi * phi / w))
        return result


@dataclass(frozen=True)
class Binomial:
    """Zeros and ones, or proportions with numbers of trials as weights; logit link."""

    name: str = "binomial"
    dispersed: bool = False
    canonical: bool = True
    range: tuple[float, float] = (0.0, 1.0)

    def allows(self, y: Array) -> Array:
        """From 0 to 1."""
        result: Array = (y >= 0) & (y <= 1)
        return result

    def link(self, mean: float) -> float:
        """Logit."""
        return math.log(mean / (1 - mean))

    def pieces(self, eta: Array, y: Array) -> Pieces:
        """See :class:`Family`; no exponential overflows."""
        small = np.exp(-np.abs(eta))
        share = 1.0 / (1.0 + small)
        mean = np.where(eta >= 0, share, small * share)
        kernel = y * eta - np.maximum(eta, 0.0) - np.log1p(small)
        return Pieces(mean, kernel, y - mean, small * share * share)

    def information(self, eta: Array) -> Array:
        """Expected curvature: mu (1 - mu)."""
        small = np.exp(-np.abs(eta))
        result: Array = small / (1.0 + small) ** 2
        return result

    def variance(self, mean: Array) -> Array:
        """Variance: mu (1 - mu)."""
        result: Array = mean * (1 - mean)
        return result

    def saturated(self, y: Array) -> Array:
        """Minus the entropy."""
        result: Array = xlogy(y, y) + xlogy(1 - y, 1 - y)
        return result

    def likelihood(self, y: Array, eta: Array, w: Array, phi: float) -> Array:
        """The kernel: no constants for zeros and ones."""
        result: Array = w * self.pieces(eta, y).kernel
        return result


@dataclass(frozen=True)
class Poisson:
    """Counts, log link."""

    name: str = "poisson"
    dispersed: bool = False
    canonical: bool = True
    range: tuple[float, float] = (0.0, math.inf)

    def allows(self, y: Array) -> Array:
        """From 0."""
        result: Array = y >= 0
        return result

    def link(self, mean: float) -> float:
        """Logarithm."""
        return math.log(mean)

    def pieces(self, eta: Array, y: Array) -> Pieces:
        """See :class:`Family`; an eta above 50 is no mean of counts that exist."""
        valid = eta < 50.0
        mean = np.exp(np.where(valid, eta, 0.0))
        return Pieces(mean, y * eta - mean, y - mean, mean, valid)

    def information(self, eta: Array) -> Array:
        """Expected curvature: mu."""
        result: Array = np.exp(eta)
        return result

    def variance(self, mean: Array) -> Array:
        """Variance: mu."""
        return mean

    def saturated(self, y: Array) -> Array:
        """See :class:`Family`."""
        return xlogy(y, y) - y

    def likelihood(self, y: Array, eta: Array, w: Array, phi: float) -> Array:
        """See :class:`Family`."""
        result: Array = w * (self.pieces(eta, y).kernel - gammaln(y + 1))
        return result


@dataclass(frozen=True)
class NegativeBinomial:
    """Counts with variance ``mu + alpha mu^2``, log link.

    Args:
        alpha: dispersion of the counts, positive.
    """

    alpha: float = 1.0
    name: str = "negative_binomial"
    dispersed: bool = False
    canonical: bool = False
    range: tuple[float, float] = (0.0, math.inf)

    def allows(self, y: Array) -> Array:
        """From 0."""
        result: Array = y >= 0
        return result

    def link(self, mean: float) -> float:
        """Logarithm."""
        return math.log(mean)

    def pieces(self, eta: Array, y: Array) -> Pieces:
        """See :class:`Family`; the curvature is the observed one."""
        valid = eta < 50.0
        mean = np.exp(np.where(valid, eta, 0.0))
        wide = 1.0 + self.alpha * mean
        kernel = y * (eta + math.log(self.alpha)) - (y + 1 / self.alpha) * np.log(wide)
        curvature = mean * (1 + self.alpha * y) / (wide * wide)
        return Pieces(mean, kernel, (y - mean) / wide, curvature, valid)

    def information(self, eta: Array) -> Array:
        """Expected curvature: mu / (1 + alpha mu)."""
        mean = np.exp(eta)
        result: Array = mean / (1 + self.alpha * mean)
        return result

    def variance(self, mean: Array) -> Array:
        """Variance: mu + alpha mu^2."""
        return mean * (1 + self.alpha * mean)

    def saturated(self, y: Array) -> Array:
        """See :class:`Family`."""
        wide = 1.0 + self.alpha * y
        return xlogy(y, self.alpha * y) - (y + 1 / self.alpha) * np.log(wide)

    def likelihood(self, y: Array, eta: Array, w: Array, phi: float) -> Array:
        """See :class:`Family`."""
        size = 1.0 / self.alpha
        fixed = gammaln(y + size) - gammaln(np.array(size)) - gammaln(y + 1)
        result: Array = w * (self.pieces(eta, y).kernel + fixed)
        return result


@dataclass(frozen=True)
class Gamma:
    """Positive outcomes with variance ``phi mu^2``.

    Args:
        inverse: the link: ``1 / mu`` (canonical), or the logarithm.
    """

    inverse: bool = False
    name: str = "gamma"
    dispersed: bool = True
    range: tuple[float, float] = (0.0, math.inf)

    @property
    def canonical(self) -> bool:
        """With the inverse link."""
        return self.inverse

    def allows(self, y: Array) -> Array:
        """Above 0."""
        result: Array = y > 0
        return result

    def link(self, mean: float) -> float:
        """Inverse or logarithm."""
        return 1 / mean if self.inverse else math.log(mean)

    def pieces(self, eta: Array, y: Array) -> Pieces:
        """See :class:`Family`; with the log link the curvature is the observed one."""
        if self.inverse:
            valid = eta > 0
            safe = np.where(valid, eta, 1.0)
            mean = 1.0 / safe
            return Pieces(mean, np.log(safe) - y * safe, mean - y, mean * mean, valid)
        valid = np.abs(eta) < 300.0
        mean = np.exp(np.where(valid, eta, 0.0))
        ratio = y / mean
        return Pieces(mean, -ratio - eta, ratio - 1.0, ratio, valid)

    def information(self, eta: Array) -> Array:
        """Expected curvature: mu^2, or 1 with the log link."""
        result: Array = 1.0 / (eta * eta) if self.inverse else np.ones_like(eta)
        return result

    def variance(self, mean: Array) -> Array:
        """Variance: mu^2."""
        return mean * mean

    def saturated(self, y: Array) -> Array:
        """See :class:`Family`."""
        result: Array = -1.0 - np.log(y)
        return result

    def likelihood(self, y: Array, eta: Array, w: Array, phi: float) -> Array:
        """See :class:`Family`."""
        ratio = y / self.pieces(eta, y).mean
        shape = w / phi
        result: Array = shape * np.log(shape * ratio) - shape * ratio - gammaln(shape) - np.log(y)
        return result


def family_of(name: str, link: str = "", alpha: float = 1.0) -> Family:
    """The family called ``name``.

    Args:
        name: ``gaussian``, ``binomial``, ``poisson``, ``negative_binomial`` or ``gamma``.
        link: empty for the usual one; gamma alone has two, ``log`` and ``inverse``.
        alpha: of the negative binomial.

    Raises:
        JobError: no such family or link.
    """
    families: dict[str, tuple[Family, tuple[str, ...]]] = {
        "gaussian": (Gaussian(), ("identity",)),
        "binomial": (Binomial(), ("logit",)),
        "poisson": (Poisson(), ("log",)),
        "negative_binomial": (NegativeBinomial(alpha), ("log",)),
        "gamma": (Gamma(link == "inverse"), ("log", "inverse")),
    }
    if name not in families:
        raise JobError(f"there is no family {name!r}", remedy=suggest(name, families))
    family, links = families[name]
    if link and link not in links:
        raise JobError(f"family {name} has no link {link!r}", remedy=suggest(link, links))
    return family
