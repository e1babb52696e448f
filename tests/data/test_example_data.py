"""The committed example tables are what their READMEs say."""

from pathlib import Path

import numpy as np
import pytest

from atoll.data.readers import read_table, sites_from_column
from atoll.data.schema import Column, check_sites, infer_schema

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_heart_has_four_hospitals_with_the_published_diagnoses():
    sites = sites_from_column(read_table(EXAMPLES / "heart" / "heart.csv"), "hospital")
    found = {name: (len(t), int((t["disease"] == "yes").sum())) for name, t in sites.items()}
    assert found == {
        "cleveland": (303, 139),
        "hungary": (294, 106),
        "switzerland": (123, 115),
        "va-long-beach": (200, 149),
    }
    schema = infer_schema(sites, "disease")
    assert schema.classes == ("no", "yes")
    assert {c.name for c in schema.features if c.type == "boolean"} == {"fbs", "exang"}
    typed, notes = check_sites(schema, sites)
    assert notes == ()
    assert np.isnan(typed["hungary"]["ca"]).sum() == 291


def test_no_cholesterol_was_measured_in_switzerland():
    sites = sites_from_column(read_table(EXAMPLES / "heart" / "heart.csv"), "hospital")
    column = Column("chol", unit="mg/dl", range=(80, 610), missing=(0,))
    schema = infer_schema(sites, "disease")
    declared = tuple(column if c.name == "chol" else c for c in schema.columns)
    _, notes = check_sites(
        type(schema)(declared, "disease", "classification", schema.classes), sites
    )
    assert notes == ("site 'switzerland': column 'chol' has no value in any of 123 rows",)


def test_houses_are_in_24_neighbourhoods_with_a_price():
    sites = sites_from_column(read_table(EXAMPLES / "house_prices" / "houses.csv"), "neighborhood")
    assert (len(sites), sum(map(len, sites.values()))) == (24, 2909)
    assert min(map(len, sites.values())) == 23
    schema = infer_schema(sites, "price")
    assert schema.task == "regression"
    typed, _ = check_sites(schema, sites)
    assert np.concatenate([t["price"] for t in typed.values()]).mean() == pytest.approx(
        180835.79, abs=0.01
    )
