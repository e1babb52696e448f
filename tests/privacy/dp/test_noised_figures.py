"""Figures with noise: each row counts for so much and no more, and the noise is what is accounted for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import JobError
from atoll.core.metrics import Mean, merge_all
from atoll.privacy.dp import figures
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.figures import NoisedFigures

ROWS = {"accuracy": np.array([1.0, 0.0, 1.0, 1.0]), "loss": np.array([0.5, 3.0, 0.25, 9.0])}


def sums(told: NoisedFigures, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Sums and count in units of the bounds."""
    found = told.of(rows)
    unit = {"loss": told.loss}
    each = [float(found[n].total) / unit.get(n, 1.0) for n in sorted(found)]  # type: ignore[attr-defined]
    return np.array([*each, float(found["loss"].weight)])  # type: ignore[attr-defined]


@pytest.mark.parametrize("z", [0.5, 4.0])
def test_the_noise_of_every_sum_has_the_deviation_that_is_accounted_for(z: float) -> None:
    """Two figures and a count: z sqrt(3). 3,000 draws tell 8 percent from it (six standard errors)."""
    told = NoisedFigures(z, loss=4.0)
    drawn = np.array([sums(told, ROWS) for _ in range(1000)])
    exact = np.array([3.0, (0.5 + 3.0 + 0.25 + 4.0) / 4, 4.0])
    noise = (drawn - exact) / (z * math.sqrt(3))
    assert noise.std() == pytest.approx(1.0, rel=0.08)
    assert np.abs(noise.mean(axis=0)).max() < 6 / math.sqrt(1000)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.2  # each sum has noise of its own
    assert told.event(7) == Gaussian(z, 1.0, 7)


def test_figures_without_their_noise_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would say of a source that is not asked."""
    monkeypatch.setattr(figures, "noised", lambda source, whole, bound, z: whole)
    told = NoisedFigures(4.0)
    assert np.array([sums(told, ROWS) for _ in range(10)]).std(axis=0).max() == 0.0


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True, width=32),
            st.floats(allow_nan=True, allow_infinity=True, width=32),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_a_row_more_changes_the_sums_by_no_more_than_the_bound(
    rows: list[tuple[float, float]],
) -> None:
    """Whatever it gives, nothing that is a number included."""

    def exact(some: list[tuple[float, float]]) -> np.ndarray:
        held: list[np.ndarray] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "noised", lambda s, whole, bound, z: held.append(whole) or whole)
            right, loss = (np.array([r[i] for r in some]) for i in (0, 1))
            NoisedFigures(1.0, loss=4.0).of({"accuracy": right, "loss": loss})
        return held[0]

    moved = exact(rows) - exact(rows[:-1])
    assert np.linalg.norm(moved) <= math.sqrt(3) * (1 + 1e-12)


def test_the_standard_error_is_that_of_the_figures_that_are_told() -> None:
    """Five clients of 400 rows, their noise in one sum; 400 sums tell 15 percent (four standard errors)."""
    told = NoisedFigures(3.0, loss=2.0)
    right, loss = np.repeat([1.0, 0.0], [300, 100]), np.full(400, 0.5)
    merged = [
        merge_all(told.of({"accuracy": right, "loss": loss}) for _ in range(5)) for _ in range(400)
    ]
    errors = told.errors(merged[0], 5)
    for name, value in (("accuracy", 0.75), ("loss", 0.5)):
        found = np.array([one[name].value for one in merged])
        assert abs(found.mean() - value) < 4.5 * errors[f"{name}_error"] / math.sqrt(400)
        assert found.std() == pytest.approx(errors[f"{name}_error"], rel=0.15)


def test_a_figure_over_nothing_is_off_without_bound() -> None:
    told = NoisedFigures(1.0)
    assert told.errors({"loss": Mean.of(0.0, 0.0)}, 1) == {"loss_error": math.inf}


@pytest.mark.parametrize(("z", "loss"), [(0.0, 1.0), (math.inf, 1.0), (1.0, 0.0), (math.nan, 1.0)])
def test_noise_that_hides_nothing_is_refused(z: float, loss: float) -> None:
    with pytest.raises(JobError, match="figures with noise"):
        NoisedFigures(z, loss)
