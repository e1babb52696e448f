import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from atoll.algorithms.statistics import distributions as d

degrees = st.floats(0.5, 5000)


def near(mine, theirs):
    assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-300)


@given(st.floats(-30, 30))
def test_the_normal_tail_is_scipy_s(z):
    near(d.normal_tail(z), stats.norm.sf(z))


@given(st.floats(0, 50), degrees)
def test_the_t_tail_is_scipy_s(t, df):
    near(d.t_tail(t, df), stats.t.sf(t, df))


@given(st.floats(0, 2000), degrees)
def test_the_chi_squared_tail_is_scipy_s(x, df):
    mine, theirs = d.chi2_tail(x, df), stats.chi2.sf(x, df)
    assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-13)


@given(st.floats(0, 100), degrees, degrees)
def test_the_f_tail_is_scipy_s(f, df1, df2):
    mine, theirs = d.f_tail(f, df1, df2), stats.f.sf(f, df1, df2)
    assert mine == pytest.approx(theirs, rel=1e-8, abs=1e-12)


@given(st.floats(0.001, 0.999), st.floats(1, 1000))
def test_quantiles_are_scipy_s(p, df):
    assert d.normal_quantile(p) == pytest.approx(stats.norm.ppf(p), rel=1e-9, abs=1e-12)
    assert d.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-12)


@given(*[st.integers(0, 60)] * 4)
def test_fisher_s_p_is_scipy_s(a, b, c, e):
    theirs = stats.fisher_exact(np.array([[a, b], [c, e]])).pvalue
    assert d.fisher_p(a, b, c, e) == pytest.approx(theirs, rel=1e-8)


def test_tails_without_meaning_are_nan():
    for tail in (d.t_tail(1.0, 0), d.chi2_tail(math.nan, 2), d.normal_quantile(0.0)):
        assert math.isnan(tail)
    assert d.f_tail(-1.0, 2, 3) == 1.0
    assert d.t_tail(1.0, math.inf) == d.normal_tail(1.0)
