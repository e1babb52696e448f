"""The server together with c sites learns nothing of the others' inputs, up to c = t - 1.

The attackers know everything that the server and c sites ever saw: all messages, the c sites' own keys,
and the shares that were dealt to them. They take every mask off a victim's input that they can compute,
and guess the victim's own mask from the shares they hold.
"""

import numpy as np
import pytest
from cohorts import SERVER, Cohort, secret
from hypothesis import given
from hypothesis import strategies as st

from atoll.privacy.secagg.inprocess import play
from atoll.privacy.secagg.keys import Pair
from atoll.privacy.secagg.masks import MaskPlan, RingSum
from atoll.privacy.secagg.messages import Survivors
from atoll.privacy.secagg.session import pair_key, stream_key
from atoll.privacy.secagg.shamir import PRIME, split, weights_at_zero
from atoll.privacy.secagg.terms import Lane

VICTIM, TRIALS, VALUES = 1, 20, 500  # 10,000 guesses: 0.05 is five standard errors


def attack(trial, colluders):
    """What is guessed of the victim's input, and what it was."""
    cohort = Cohort(5, (Lane("w", VALUES),))
    terms = cohort.terms(occasion={"round": trial})
    guests, seen, captured = cohort.guests(terms, seed=trial), {}, {}

    def relay(name, message):
        index = terms.index(name)
        if isinstance(message, Survivors):
            return None
        seen[index] = guests[name].site.session
        if type(message).__name__ == "Vector" and index == VICTIM:
            captured["y"] = [bytes(chunk) for chunk in guests[name].chunks]
            captured["root"] = message.root
        return message

    play(terms, SERVER.sign, guests, relay)
    stripped = RingSum(terms)
    stripped.add(captured["y"], captured["root"])
    plan = known_masks(terms, {i: seen[i] for i in colluders})
    stripped.unmask(plan)
    (words,) = stripped.integers().values()
    return words, guests[f"site{VICTIM:03d}"].values["w"]


def known_masks(terms, sessions):
    """Every mask of the victim that the colluders compute, and the best guess of those they can not."""
    added, subtracted = [], []
    for index, session in sessions.items():
        pair = Pair(session._secret("mask"))
        key = pair_key(pair, session.peers[VICTIM].mask, terms.context, index, VICTIM)
        (added if index > VICTIM else subtracted).append(key)
    seed, mask = (guess({i: s.held[VICTIM][kind] for i, s in sessions.items()}) for kind in (0, 1))
    added.append(stream_key(seed, terms.context, VICTIM))
    some = next(iter(sessions.values()))
    for index in set(some.peers) - set(sessions) - {VICTIM}:
        pair = Pair(mask)
        key = pair_key(pair, some.peers[index].mask, terms.context, index, VICTIM)
        (added if index > VICTIM else subtracted).append(key)
    return MaskPlan(tuple(added), tuple(subtracted))


def guess(shares):
    """What these shares would open, were they enough."""
    weights = weights_at_zero(sorted(shares))
    total = sum(int.from_bytes(share, "big") * weights[x] for x, share in shares.items()) % PRIME
    return (total % 2**256).to_bytes(32, "big")


def correlation(colluders):
    pairs = [attack(trial, colluders) for trial in range(1, TRIALS + 1)]
    guessed, true = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
    assert len(true) == TRIALS * VALUES >= 1000
    return abs(np.corrcoef(guessed.astype(np.float64), np.clip(true, -1, 1))[0, 1])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_server_and_fewer_sites_than_the_threshold_learn_nothing(count):
    assert correlation(tuple(range(2, 2 + count))) < 0.05


def test_the_attack_works_with_as_many_sites_as_the_threshold():
    assert correlation((2, 3, 4, 5)) > 0.999


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(2, 7))
def test_any_secret_fits_to_fewer_shares_than_the_threshold(one, other, threshold):
    points = range(1, threshold + 2)
    drawn = b"".join(secret(threshold, i) for i in range(2 * (threshold - 1)))
    shares = dict(zip(points, split(one, threshold, points, drawn), strict=True))
    few = {x: int.from_bytes(shares[x], "big") for x in list(points)[: threshold - 1]}
    few[0] = int.from_bytes(other, "big")  # a polynomial of the right degree through all of these
    at_last = interpolate(few, threshold + 1)
    forged = {x: few[x] for x in few if x} | {threshold + 1: at_last}
    assert interpolate(forged, 0) == int.from_bytes(other, "big")


def interpolate(points, at):
    total = 0
    for x, y in points.items():
        above = below = 1
        for z in points:
            if z != x:
                above, below = above * (at - z) % PRIME, below * (x - z) % PRIME
        total += y * above * pow(below, -1, PRIME)
    return total % PRIME
