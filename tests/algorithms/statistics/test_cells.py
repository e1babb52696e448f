"""Counts of few persons that a site's answer to a regression would show in the clear."""

import numpy as np
import pytest

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.cells import small_counts
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.glm_multinomial import Multinomial
from atoll.algorithms.statistics.glm_negative import NegativeBinomialRegression
from atoll.algorithms.statistics.harmonise_combat import ComBat
from atoll.algorithms.statistics.mixed import MixedModel
from atoll.algorithms.statistics.together import Together

KINDS = {"kind": (0.0, 1.0, 2.0)}
MODELS = {
    "linear": GLM("y", ["x", "kind"], categories=KINDS),
    "logistic": GLM("ill", ["x", "kind"], family="binomial", categories=KINDS),
    "negative": NegativeBinomialRegression("n", ["kind", "x"], KINDS),
    "multinomial": Multinomial("class", [0.0, 1.0], ["x", "kind"], KINDS),
    "mixed": MixedModel("y", ["kind"], categories=KINDS),
    "combat": ComBat(["x", "y"], ["kind"], KINDS),
}


def site(kinds=(20, 20, 20), missing=0, events=30):
    """Rows with so many of each kind, so many without ``x``, and so many events."""
    n = sum(kinds)
    i = np.arange(n)
    x = np.sin(i * 1.7)
    x[:missing] = np.nan
    ill = (i % n < events) * 1.0
    y = np.cos(i) + x
    kind = np.random.default_rng(1).permutation(np.repeat([0.0, 1.0, 2.0], kinds))
    return {"x": x, "y": y, "ill": ill, "class": ill, "n": (i % 5) * 1.0, "kind": kind}


def first(analysis, data):
    return small_counts(
        analysis, analysis.sums(analysis.ask(analysis.start()), data, site=0, sites=2), 11
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_the_rows_that_a_regression_counts_is_looked_at(name):
    model = MODELS[name]
    assert first(model, site()) == []
    for small in (site((30, 27, 3)), site((5, 30, 25)), site(missing=4)):
        (found,) = first(model, small)
        assert found == "1 count of fewer than 11 persons"
    assert first(model, site((30, 30, 0))) == []
    assert "k: 1 count" in first(Together({"k": model}), site((30, 27, 3)))[0]


@pytest.mark.parametrize("name", ["logistic", "multinomial"])
def test_few_events_and_few_without_one_are_counts_too(name):
    assert first(MODELS[name], site(events=7)) == ["1 count of fewer than 11 persons"]
    assert first(MODELS[name], site(events=55)) == ["1 count of fewer than 11 persons"]


def test_later_rounds_of_a_regression_hold_no_counts_by_name():
    asked = []

    class Watched(GLM):
        def sums(self, question, data, *, site, sites):
            answer = super().sums(question, data, site=site, sites=sites)
            asked.append(small_counts(self, answer, 11))
            return answer

    solve(Watched("y", ["x", "kind"], categories=KINDS), {"a": site((30, 27, 3)), "b": site()})
    assert [bool(found) for found in asked[:2]] == [True, False]
    assert not any(asked[2:])
