"""Table 1, a logistic regression and survival curves over sites, as one offline page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from atoll import stats

HERE = Path(__file__).parent
OUT = Path("runs") / "statistics.html"


def heart() -> stats.Federation:
    """Four hospitals and their patients' hearts; the same 860 patients for every analysis."""
    frame = pd.read_csv(HERE.parent / "heart" / "heart.csv")
    frame["trestbps"] = frame["trestbps"].replace(0, float("nan"))
    frame["exang"] = frame["exang"].map({True: "yes", False: "no"})
    names = ["hospital", "age", "sex", "cp", "trestbps", "thalach", "exang", "disease"]
    whole = frame[names].dropna()
    return stats.Federation.of(whole, site="hospital", levels={"disease": ["no", "yes"]})


def trial() -> stats.Federation:
    """A made-up trial at six clinics: treatment halves the hazard; times are whole days."""
    frame = pd.read_csv(HERE / "trial.csv")
    return stats.Federation.of(frame, site="clinic", levels={"arm": ["placebo", "treatment"]})


def main() -> None:
    """Print the results and write the page."""
    hospitals, clinics = heart(), trial()
    axis = stats.Axis(horizon=730.0)
    table = stats.table_one(hospitals, by="disease")
    features = ["age", "sex", "cp", "trestbps", "thalach", "exang"]
    logistic = stats.LogisticRegression("disease", features, intercept="site").fit(hospitals)
    curves = stats.KaplanMeier("days", "died", axis, by="arm").fit(clinics)
    cox = stats.CoxRegression("days", "died", ["arm", "age"], axis, strata="site").fit(clinics)
    test = stats.log_rank(clinics, "days", "died", "arm", axis)
    print(table.to_string(), logistic.summary(), cox.summary(), sep="\n\n")
    page = stats.write_page(
        OUT,
        "Statistics over sites",
        {
            "Table 1: four hospitals": table,
            "Who has heart disease?": logistic,
            "Survival at six clinics": curves,
            "Do the arms differ?": f"Log-rank test: chi-squared {test.statistic:.3f}, p {test.p_value:.3g}.",
            "Hazard ratios": cox,
        },
    )
    print(f"\nwrote {page}")


if __name__ == "__main__":
    main()
