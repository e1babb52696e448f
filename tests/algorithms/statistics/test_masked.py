"""Through masked aggregation, with real cryptography, a statistic has the bits it has without.

Digits are whole numbers below 2^32, so a lane of the 64-bit ring with step 1 rounds nothing.
"""

import os

import numpy as np

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.digits import BITS, COUNT, decode, encode
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.moments import Moments
from atoll.algorithms.statistics.survival import KaplanMeier
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.privacy.secagg.inprocess import Guest, Identity, play
from atoll.privacy.secagg.policy import Approved, Policy
from atoll.privacy.secagg.site import Site
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms, usual_threshold


def masked_total(number, vectors):
    """The sum of one digit vector a site, of which nobody sees one."""
    keys = {name: Identity(os.urandom(32)) for name in vectors}
    server = Identity(os.urandom(32))
    size = len(next(iter(vectors.values())))
    lanes = (Lane("digits", size, bound=2.0**BITS, bits=64, step=1.0, excess="refuse"),)
    pinned = {name: key.public_bytes for name, key in keys.items()}
    policy = Policy("study", server.public_bytes, pinned, smallest=3)
    terms = Terms(
        Occasion("study", "job", number, 0, "model"),
        tuple(Member(name, key.public_bytes) for name, key in keys.items()),
        usual_threshold(len(keys)),
        lanes,
        expiry=1.0,
    )
    guests = {
        name: Guest(
            Site(name, key, policy),
            Approved("job", "model", lanes),
            {"digits": vectors[name]},
            os.urandom(32),
        )
        for name, key in keys.items()
    }
    result = play(terms, server.sign, guests)
    assert result.total is not None, result.failure
    assert set(result.members) == set(vectors)
    return result.total.totals()["digits"]


def masked_solve(analysis, sites):
    names, state, rounds = sorted(sites), analysis.start(), 0
    while (question := analysis.ask(state)) is not None:
        answers = {
            name: analysis.sums(question, sites[name], site=i, sites=len(names))
            for i, name in enumerate(names)
        }
        shapes = {n: np.shape(v) for n, v in answers[names[0]].items()}
        vectors = {
            name: np.concatenate([encode(np.ravel(own[n]).astype(float)).ravel() for n in shapes])
            for name, own in answers.items()
        }
        whole, start, totals = masked_total(rounds, vectors), 0, {}
        for name, shape in shapes.items():
            size = COUNT * int(np.prod(shape, dtype=int))
            digits = whole[start : start + size].reshape(COUNT, -1)
            totals[name], start = decode(digits).reshape(shape), start + size
        state, rounds = analysis.learn(state, totals), rounds + 1
    return analysis.result(state)


def test_moments_through_masks_have_the_same_bits(clinics):
    analysis = Moments(("age", "weight"), "group", ("a", "b"))
    plain, masked = solve(analysis, clinics), masked_solve(analysis, clinics)
    assert masked.variance.tobytes() == plain.variance.tobytes()
    assert masked.mean.tobytes() == plain.mean.tobytes()


def test_a_logistic_regression_through_masks_has_the_same_bits(clinics):
    analysis = GLM("sick", ("age", "group", "weight"), "binomial")
    plain, masked = solve(analysis, clinics), masked_solve(analysis, clinics)
    assert masked.table.values.tobytes() == plain.table.values.tobytes()
    assert masked.table.standard_errors.tobytes() == plain.table.standard_errors.tobytes()
    assert masked.log_likelihood == plain.log_likelihood


def test_survival_curves_through_masks_have_the_same_bits(clinics):
    analysis = KaplanMeier("days", "sick", Axis(60.0), "group", (0.0, 1.0))
    plain, masked = solve(analysis, clinics), masked_solve(analysis, clinics)
    for one, other in zip(plain.curves, masked.curves, strict=True):
        assert other.survival.tobytes() == one.survival.tobytes()
