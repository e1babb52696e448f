"""The example of statistics over sites works as it stands, and its numbers are those of pooled rows."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from atoll import stats

ROOT = Path(__file__).parents[2]


def test_the_demo_writes_its_page(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "statistics" / "run.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "runs" / "statistics.html").read_text(encoding="utf-8")
    for piece in ("Table 1: four hospitals", "odds ratio", "at risk at time", "hazard ratio"):
        assert piece.casefold() in page.casefold()
    assert "nan" not in page.replace("nance", "").split("</style>")[1]
    assert "arm=treatment" in done.stdout


def test_its_survival_curve_is_that_of_the_pooled_trial():
    trial = pd.read_csv(ROOT / "examples" / "statistics" / "trial.csv")
    federation = stats.Federation.of(trial, site="clinic", levels={"arm": ["placebo", "treatment"]})
    fit = stats.KaplanMeier("days", "died", stats.Axis(730.0), by="arm").fit(federation)
    for arm, curve in zip(fit.groups, fit.curves, strict=True):
        rows = trial[trial["arm"] == arm]
        theirs = sm.SurvfuncRight(rows["days"], rows["died"])
        for time, value in zip(curve.times, curve.survival, strict=True):
            place = np.searchsorted(theirs.surv_times, time, side="right") - 1
            assert value == pytest.approx(theirs.surv_prob[place], rel=1e-12)
