from __future__ import annotations

from typing import Any

import pytest

from atoll.report.compare import comparison_lines, comparison_table, main_metric, summary


def compared(
    metric: str, **sites: tuple[float | None, float | None, float | None]
) -> dict[str, Any]:
    ways = ("alone", "federated", "pooled")
    return {
        "comparison": {
            "metric": metric,
            "sites": {
                site: {way: {metric: value} for way, value in zip(ways, row, strict=True)}
                for site, row in sites.items()
            },
        }
    }


def test_each_site_gets_its_values_gain_and_verdict(manifest: dict[str, Any]) -> None:
    north, south, west, mean = comparison_table(manifest)
    assert north.site == "north"
    assert north.values["auc"] == {"alone": 0.80, "federated": 0.85, "pooled": 0.86}
    assert north.values["accuracy"]["alone"] == pytest.approx(0.70)
    assert north.gain == pytest.approx(0.05)
    assert (north.outcome, south.outcome, west.outcome) == ("better", "same", "worse")
    assert north.verdict == "Yes: better by 0.050; pooling the rows would be better by 0.010."
    assert (
        south.verdict == "No clear difference (+0.002); pooling the rows would be better by 0.048."
    )
    assert west.verdict == "No: training alone was better by 0.100."
    assert mean.site == "mean"


def test_a_mean_speaks_of_the_sites_where_every_way_has_a_value(manifest: dict[str, Any]) -> None:
    mean = comparison_table(manifest)[-1].values["auc"]
    assert mean["alone"] == pytest.approx((0.80 + 0.90) / 2)
    assert mean["federated"] == pytest.approx((0.85 + 0.902) / 2)
    assert mean["pooled"] == pytest.approx((0.86 + 0.95) / 2)


def test_without_pooled_anywhere_the_mean_is_over_the_others() -> None:
    rows = comparison_table(compared("auc", a=(0.6, 0.7, None), b=(0.8, 0.7, None)))
    assert rows[-1].values["auc"] == {
        "alone": pytest.approx(0.7),
        "federated": pytest.approx(0.7),
        "pooled": None,
    }


def test_for_a_loss_less_is_better() -> None:
    row = comparison_table(compared("log_loss", a=(0.50, 0.40, 0.45)))[0]
    assert row.gain == pytest.approx(0.10)
    assert row.verdict == "Yes: better by 0.100; pooling the rows would be worse."


def test_a_loss_is_compared_relatively() -> None:
    rows = comparison_table(compared("rmse", a=(1000.0, 995.0, None), b=(1000.0, 980.0, None)))
    assert [row.outcome for row in rows[:2]] == ["same", "better"]


@pytest.mark.parametrize(
    ("alone", "federated", "words"),
    [
        (None, 0.7, "undefined when trained alone"),
        (0.7, float("nan"), "undefined when federated"),
        (None, None, "undefined at this site"),
    ],
)
def test_what_is_undefined_is_said_and_not_judged(
    alone: float | None, federated: float | None, words: str
) -> None:
    row = comparison_table(compared("auc", a=(alone, federated, 0.8)))[0]
    assert (row.gain, row.outcome) == (None, "unknown")
    assert words in row.verdict


def test_a_site_with_few_rows_of_a_class_gets_a_caution(manifest: dict[str, Any]) -> None:
    north, south, _, mean = comparison_table(manifest)
    assert (north.caution, mean.caution) == ("", "")
    assert south.caution == "The site has only 15 rows of class '0', so this can be chance."
    manifest["cards"] = [{"site": "north", "rows": 19, "target": {"mean": 1.0}}]
    assert comparison_table(manifest)[0].caution == (
        "The site has only 19 rows, so this can be chance."
    )


def test_a_caution_counts_the_rows_that_were_held_out(manifest: dict[str, Any]) -> None:
    labels = {"0": 40, "1": 60}
    manifest["cards"] = [{"site": "north", "rows": 100, "labels": labels}]
    manifest["data"]["north"]["rows"] = 75
    assert comparison_table(manifest)[0].caution == (
        "The site has only about 10 test rows of class '0', so this can be chance."
    )
    manifest["data"]["north"]["rows"] = 40
    assert comparison_table(manifest)[0].caution == ""


def test_of_classes_that_are_held_back_none_is_said_to_be_small(manifest: dict[str, Any]) -> None:
    """A large one may be hidden beside a small one, so that the number of all rows does not tell."""
    labels = {"a": 400, "b": "suppressed", "c": "suppressed"}
    manifest["cards"] = [{"site": "north", "rows": 440, "labels": labels}]
    assert comparison_table(manifest)[0].caution == (
        "The site holds back how many rows of class 'b' or 'c' it has, "
        "for some of its counts are small, so this can be chance."
    )


def test_a_site_whose_number_of_rows_is_held_back_gets_a_caution(manifest: dict[str, Any]) -> None:
    manifest["cards"] = [{"site": "north", "rows": "suppressed", "target": {"mean": "suppressed"}}]
    assert comparison_table(manifest)[0].caution == (
        "The site holds back how many rows it has, for some of its counts are small, so this can be chance."
    )


def test_the_same_number_under_two_names_is_shown_once() -> None:
    sites = {"a": {"alone": {"confusion": 0.5, "accuracy": 0.5}, "federated": {"accuracy": 0.6}}}
    row = comparison_table({"comparison": {"metric": "accuracy", "sites": sites}})[0]
    assert list(row.values) == ["accuracy"]


def test_no_comparison_no_rows() -> None:
    assert comparison_table({}) == []
    assert comparison_table({"comparison": None}) == []
    assert comparison_lines({}) == []


def test_the_summary_counts_and_averages(manifest: dict[str, Any]) -> None:
    assert summary(comparison_table(manifest), "auc") == (
        "1 of 3 sites does better together than alone, 1 does worse together than alone, "
        "1 shows no clear difference. Mean AUC: alone 0.850, federated 0.876, pooled 0.905."
    )


def test_the_plain_table_is_aligned_with_the_mean_last(manifest: dict[str, Any]) -> None:
    lines = comparison_lines(manifest)
    assert lines[0].split() == [
        "site",
        "auc",
        "alone",
        "auc",
        "federated",
        "auc",
        "pooled",
        "accuracy",
        "alone",
        "accuracy",
        "federated",
        "accuracy",
        "pooled",
        "joining",
    ]
    assert lines[2].split() == [
        "north",
        "0.800",
        "0.850",
        "0.860",
        "0.700",
        "0.750",
        "0.760",
        "better",
    ]
    assert lines[4].split()[3] == "-"
    assert lines[4].endswith("  worse (few rows)")
    assert lines[-1].startswith("mean ")
    assert lines[1] == lines[-2]
    starts = {line.rindex("  ") for line in lines}
    assert len(starts) == 1


def test_the_main_metric_is_named_without_its_source() -> None:
    assert main_metric({"best": {"metric": "central.auc"}}) == "auc"
    assert main_metric({"best": None}) == "loss"
