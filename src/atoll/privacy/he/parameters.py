"""Modulus and scale for a number of sites and a precision.

Only additions are made, so one prime carries the ciphertext; a second one is used while a value is
encrypted, and divides the noise of encryption away. What is left is the rounding of that division: with
ring degree N and a ternary secret each coefficient is off by a variable of variance (1 + 2N/3) / 12, and each
slot, a sum of N coefficients turned in the plane, by N/2 times that on average. Most of it is multiplied by
the secret's value at the slot, whose square is exponentially distributed over slots: a slot in e^21 has 21
times the mean variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from atoll.core.errors import JobError

__all__ = ["Parameters"]

_MOST_BITS = 109
"""Largest modulus, both primes together, at degree 4096 for 128 bits of security
(homomorphicencryption.org, security standard of 2018, table 1, ternary secret)."""
_SPARE = 2
"""Bits above the largest sum: one for the sign, one for noise."""


@dataclass(frozen=True)
class Parameters:
    """What both sides agree on before a key is made.

    Args:
        sites: the most that are added up.
        scale_bits: values are multiplied by 2 to this power and rounded.
        degree: N of the ring; N / 2 values go into one ciphertext.

    >>> Parameters(100).modulus_bits, Parameters(100).slots
    (49, 2048)
    """

    sites: int
    scale_bits: int = 40
    degree: int = 4096

    def __post_init__(self) -> None:
        """Refuse what could overflow or is not secure.

        Raises:
            JobError: naming the number that is out of range.
        """
        if self.degree != 4096:
            raise JobError(f"ring degree {self.degree}", remedy="4096 is what additions need")
        if self.sites < 1 or not self.scale_bits >= 20:
            raise JobError(f"{self.sites} sites at a scale of {self.scale_bits} bits")
        if 2 * self.modulus_bits > _MOST_BITS:
            raise JobError(
                f"a sum of {self.sites} sites at a scale of {self.scale_bits} bits needs a modulus of "
                f"{2 * self.modulus_bits} bits, more than {_MOST_BITS}",
                remedy="take fewer bits for the scale",
            )

    @classmethod
    def for_error(cls, sites: int, error: float) -> Parameters:
        """The smallest ciphertexts with which a sum of values in [-1, 1] is off by ``error`` at most.

        Args:
            sites: the most that are added up.
            error: absolute, of the sum.

        Raises:
            JobError: no secure parameters are that exact.

        >>> Parameters.for_error(16, 1e-6).scale_bits
        37
        """
        most = _MOST_BITS // 2 - _SPARE - math.ceil(math.log2(max(1, sites)))
        for bits in range(20, most + 1):
            fitting = cls(sites, bits)
            if fitting.error <= error:
                return fitting
        raise JobError(f"a sum off by {error:g} at most", remedy="allow a larger error")

    @classmethod
    def exact(cls, sites: int) -> Parameters:
        """The finest scale that is secure, for sums of integers that are rounded back to what they were.

        Args:
            sites: the most that are added up.

        >>> Parameters.exact(16).scale_bits, Parameters.exact(16).digit_bits
        (48, 29)
        """
        return cls(sites, _MOST_BITS // 2 - _SPARE - math.ceil(math.log2(max(1, sites))))

    @property
    def digit_bits(self) -> int:
        """Bits of an integer that one slot carries so that its sum is off by a fifth at most."""
        return int(math.log2(0.2 / self.error))

    @property
    def modulus_bits(self) -> int:
        """Bits of each of the two primes."""
        return self.scale_bits + math.ceil(math.log2(self.sites)) + _SPARE

    @property
    def slots(self) -> int:
        """Values in one ciphertext."""
        return self.degree // 2

    @property
    def error(self) -> float:
        """A bound on the error of one value of a sum over all sites, of values in [-1, 1].

        Six standard deviations of the worst slot in e^21 (1.3 10^9): sqrt(21) * 6 of the mean one.
        """
        coefficient = math.sqrt((1 + 2 * self.degree / 3) / 12)
        one = coefficient * math.sqrt(self.degree / 2) / 2.0**self.scale_bits
        return 27.5 * one * math.sqrt(self.sites)
