"""Integers in slots, so that an encrypted sum is exact.

CKKS adds real numbers and is off by a little. Integers that are cut into digits so short that a sum of
them is off by less than a half come back as they were: rounding makes the sum exact, and an encrypted run
ends in the same bits as a masked one. Updates of 32-bit lanes need one digit, counts of 64 bits three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.secagg.terms import Lane

__all__ = ["digits_of", "packed", "slots_of", "unpacked"]

_SLACK = 0.3
"""A slot farther from a whole number than this was opened by another key, or is no sum of integers."""


def digits_of(lane: Lane, parameters: Parameters) -> int:
    """How many digits a value of ``lane``, whose values are whole, is cut into."""
    bits = round(lane.bound).bit_length()
    return max(1, -(-bits // parameters.digit_bits))


def slots_of(lanes: Sequence[Lane], parameters: Parameters) -> int:
    """How many slots the values of all lanes take."""
    return sum(lane.length * digits_of(lane, parameters) for lane in lanes)


def packed(lanes: Sequence[Lane], values: Mapping[str, Array], parameters: Parameters) -> Array:
    """The slots of one site: digits of all lanes one after the other, in [-1, 1], float64.

    Args:
        lanes: of whole numbers.
        values: integers of each lane.
        parameters: of the key.

    Raises:
        UpdateRefused: another length, or a value beyond its lane's bound.
    """
    slots, base = list[Array](), 2.0**parameters.digit_bits
    for lane in lanes:
        whole = np.ravel(values[lane.name]).astype(np.int64)
        if len(whole) != lane.length:
            raise UpdateRefused(f"lane {lane.name!r} has {len(whole)} values, not {lane.length}")
        if (worst := int(np.abs(whole).max(initial=0))) > lane.bound:
            raise UpdateRefused(f"lane {lane.name!r} holds {worst}, declared were {lane.bound:g}")
        count = digits_of(lane, parameters)
        for k in range(count):
            digit = whole >> (parameters.digit_bits * k)
            if k < count - 1:  # the highest digit keeps the sign
                digit = digit & ((1 << parameters.digit_bits) - 1)
            slots.append(digit / base)
    return np.concatenate(slots)


def unpacked(
    lanes: Sequence[Lane], slots: Array, parameters: Parameters, present: int
) -> dict[str, Array]:
    """The sums of all lanes, int64, from the opened slots.

    Args:
        lanes: as they were packed.
        slots: the opened sum.
        parameters: of the key.
        present: how many sites are in it.

    Raises:
        UpdateRefused: the slots are no sum of so many sites' integers.
    """
    scaled = slots * 2.0**parameters.digit_bits
    whole = np.rint(scaled)
    off = float(np.abs(scaled - whole).max(initial=0.0))
    if not off < _SLACK:
        raise UpdateRefused(
            f"a sum that is off a whole number by {off:.2f}: another key, or tampered"
        )
    digits, at, found = whole.astype(np.int64), 0, dict[str, Array]()
    for lane in lanes:
        total = np.zeros(lane.length, np.int64)
        for k in range(digits_of(lane, parameters)):
            total += digits[at : at + lane.length] << (parameters.digit_bits * k)
            at += lane.length
        # In whole numbers: a float64 does not hold the product of a bound of 53 bits.
        if int(np.abs(total).max(initial=0)) > present * round(lane.bound):
            raise UpdateRefused(f"the sum of lane {lane.name!r} is beyond {present} sites' range")
        found[lane.name] = total
    return found
