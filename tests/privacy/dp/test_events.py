import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import JobError
from atoll.privacy.dp.events import (
    DiscreteGaussian,
    Gaussian,
    Geometric,
    Guarantee,
    Laplace,
    MatrixGaussian,
    Selection,
    Skellam,
    Stated,
    canonical,
    from_plain,
    to_plain,
)

EVENTS = [
    Gaussian(1.1, 0.01, 100),
    DiscreteGaussian(50.0, 7, 1000.0, 12),
    Skellam(1e6, 100.0, 12, 0.5),
    MatrixGaussian("banded", 3.0, 100, 8, 4, 25),
    MatrixGaussian("tree", 3.0, 100),
    MatrixGaussian("blt", 3.0, 100, decays=(0.9, 0.5), scales=(0.1, 0.4)),
    Laplace(2.0),
    Geometric(2.0, 3),
    Selection(0.1, 5),
    Stated(0.5, 1e-7),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_survives_json(event):
    assert from_plain(json.loads(json.dumps(to_plain(event)))) == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_cannot_be_changed(event):
    with pytest.raises(FrozenInstanceError):
        event.count = 1


def test_what_is_empty_is_left_out_so_that_old_ledgers_are_read():
    old = {"mechanism": "tree", "deviation": 5.0, "rounds": 8, "bands": 1, "participations": 2}
    old |= {"kind": "matrix_gaussian", "separation": 3, "count": 1}
    event = from_plain(old)
    assert event == MatrixGaussian("tree", 5.0, rounds=8, participations=2, separation=3)
    assert to_plain(event) == old
    assert b"decays" not in canonical([event])


@pytest.mark.parametrize(
    "buffers",
    [
        {},
        {"decays": (0.5,)},
        {"decays": (0.5,), "scales": (0.2, 0.2)},
        {"decays": (1.0,), "scales": (0.2,)},
        {"decays": (0.5, 0.4), "scales": (0.6, 0.5)},
        {"decays": (0.5,), "scales": (-0.1,)},
        {"decays": 0.5, "scales": 0.5},
        {"decays": ("a",), "scales": (0.5,)},
    ],
)
def test_buffers_whose_coefficients_would_rise_or_that_are_none_are_refused(buffers):
    with pytest.raises(JobError):
        MatrixGaussian("blt", 1.0, 10, **buffers)
    with pytest.raises(JobError):
        MatrixGaussian("tree", 1.0, 10, decays=(0.5,), scales=(0.5,))


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(JobError, match="gausian") as refused:
        from_plain({"kind": "gausian", "noise_multiplier": 1.0})
    assert "'gaussian'" in refused.value.remedy


@pytest.mark.parametrize(
    "change", [{"extra": 1}, {"count": None}, {"sampling": 0.0}, {"count": True}]
)
def test_other_fields_or_values_are_refused(change):
    plain = {**to_plain(Gaussian(1.0)), **change}
    with pytest.raises(JobError):
        from_plain(plain)
    with pytest.raises(JobError, match="sampling"):
        from_plain({k: v for k, v in plain.items() if k not in ("sampling", "extra")})


def test_all_faults_of_an_event_are_named_at_once():
    with pytest.raises(JobError) as refused:
        Gaussian(float("nan"), 1.5, 0)
    assert {f.place for f in refused.value.faults} == {"noise_multiplier", "sampling", "count"}
    with pytest.raises(JobError, match="bands"):
        MatrixGaussian("banded", 1.0, rounds=3, bands=4)


def test_a_guarantee_says_what_it_is_about_and_rounds_up():
    text = str(Guarantee(1.001, 1e-6, "person", "replace"))
    assert text == "epsilon 1.01 at delta 1e-06 for one person (replace)"
    with pytest.raises(JobError) as refused:
        Guarantee(-1.0, 1.0, "patient", "swap")
    assert len(refused.value.faults) == 4


def test_the_canonical_form_does_not_see_how_a_number_was_written_but_sees_the_order():
    assert canonical([Gaussian(1, 1)]) == canonical([Gaussian(1.0, 1.0)])
    assert canonical([Laplace(1.0), Gaussian(1.0)]) != canonical([Gaussian(1.0), Laplace(1.0)])


@given(st.floats(1e-3, 1e3), st.floats(1e-6, 1.0), st.integers(1, 10**6))
def test_every_number_is_kept_to_the_bit(z, q, count):
    event = Gaussian(z, q, count)
    assert from_plain(json.loads(canonical([event]))[0]) == event
