"""Every example runs as its README says, and comes to the result it is there to show."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atoll.cli.main import main
from atoll.data.idx import FASHION_MNIST
from atoll.report.folder import RunFolder

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def atoll(capsys, *arguments):
    """The JSON that ``atoll run ARGUMENTS --json`` prints."""
    status = main(["run", *map(str, arguments), "--quiet", "--json"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return json.loads(captured.out)


def means(result, metric):
    """Mean over the sites of each way of training, where the metric is defined."""
    sites = result["comparison"]["sites"].values()
    return {
        way: float(np.nanmean([np.nan if (v := s[way][metric]) is None else v for s in sites]))
        for way in ("alone", "federated", "pooled")
    }


def assert_self_contained(report):
    """The page is there and names nothing that a browser would fetch."""
    page = Path(report).read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r"<(script|img|link|iframe)\b|\bsrc=|@import|url\(", page)
    assert not re.search(r'href="(?!#)', page)
    return page


@pytest.fixture(scope="module")
def heart(tmp_path_factory):
    """The folder and printed result of the main example."""
    out = tmp_path_factory.mktemp("heart")
    command = [sys.executable, "-c", "from atoll.cli.main import app; app()", "run"]
    done = subprocess.run(
        [*command, EXAMPLES / "heart" / "job.toml", "--out", out, "--quiet", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_heart_is_within_two_hundredths_of_pooling(heart):
    mean = means(heart, "auc")
    assert abs(mean["federated"] - mean["pooled"]) <= 0.02
    assert set(heart["comparison"]["sites"]) == {
        "cleveland",
        "hungary",
        "switzerland",
        "va-long-beach",
    }
    assert heart["federated"]["auc"] > 0.84
    assert heart["status"] == "completed"


def test_heart_with_masks_and_noise_keeps_its_epsilon_and_still_tells_the_sick(tmp_path, capsys):
    result = atoll(capsys, EXAMPLES / "heart" / "private.toml", "--out", tmp_path / "run")
    assert result["status"] == "completed"
    said = json.loads((tmp_path / "run" / "manifest.json").read_text())["privacy"]
    assert said["masking"].startswith("on: the server learns sums alone, of at least 3 of 4")
    assert 19 < said["epsilon"] <= 20
    assert (said["unit"], said["delta"]) == ("site", 1e-5)
    assert said["outside"] == ["sums of the columns for preprocessing"]
    assert result["central"]["auc"] > 0.7  # 0.84 to 0.87; noise is not repeatable
    page = assert_self_contained(tmp_path / "run" / "report.html")
    assert "for one site (add or remove)" in page
    rounds = [json.loads(r) for r in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(set(r["contributed"].values()) == {0} for r in rounds)


def test_long_beach_gains_by_joining(heart):
    auc = {way: m["auc"] for way, m in heart["comparison"]["sites"]["va-long-beach"].items()}
    assert auc["federated"] - auc["alone"] > 0.05


def test_the_heart_report_is_one_offline_page_with_every_hospital(heart):
    page = assert_self_contained(heart["report"])
    for site, result in heart["comparison"]["sites"].items():
        assert site in page
        assert f"{result['federated']['auc']:.3f}" in page
    assert "column &#x27;chol&#x27; has no value in any of 123 rows" in page
    assert RunFolder.open(heart["folder"]).read_manifest()["job_hash"] in page


def test_heart_has_the_same_bits_in_two_processes(heart, tmp_path, capsys):
    job = EXAMPLES / "heart" / "job.toml"
    again = atoll(capsys, job, "--out", tmp_path / "run", "--executor", "processes", "--workers", 2)
    assert again["model_hash"] == heart["model_hash"]


def test_neighbourhoods_together_find_what_pooling_finds(tmp_path, capsys):
    job = EXAMPLES / "house_prices" / "job.toml"
    result = atoll(capsys, job, "--out", tmp_path / "run")
    mean = means(result, "r2")
    assert len(result["comparison"]["sites"]) == 24
    assert abs(mean["federated"] - mean["pooled"]) <= 0.02
    assert result["federated"]["r2"] > 0.74
    assert mean["alone"] > mean["federated"]  # the location is no column: see the README
    assert_self_contained(result["report"])


def test_a_price_level_per_neighbourhood_makes_the_common_slopes_better(tmp_path, capsys):
    job = EXAMPLES / "house_prices" / "job.toml"
    personal = ["--set", 'model.personal=["intercept"]', "--set", "evaluation.compare=false"]
    result = atoll(capsys, job, "--out", tmp_path / "run", *personal)
    assert result["federated"]["r2"] > 0.8


def test_sites_of_one_two_and_three_rows_are_trained_on_and_named(tmp_path, capsys):
    rows = ["site,x,y"]
    for site, count in {"one": 1, "two": 2, "three": 3, "many": 60}.items():
        rows += [f"{site},{0.1 * i},{0.3 * i + 1}" for i in range(count)]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "job.toml").write_text(
        '[data]\nsource = "rows.csv"\nsite_column = "site"\ntarget = "y"\ntask = "regression"\n'
        '[model]\nkind = "linear"\n'
    )
    result = atoll(capsys, tmp_path / "job.toml", "--out", tmp_path / "run")
    manifest = RunFolder.open(tmp_path / "run").read_manifest()
    assert {c: d["rows"] for c, d in manifest["data"].items()}["one"] == 1
    assert manifest["notes"] == ["trained on, but without rows to test on: one (1 row)"]
    assert result["comparison"]["sites"]["two"]["federated"]["r2"] is None
    assert "one (1 row)" in assert_self_contained(result["report"])


def load(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_coefficients_are_recovered(capsys):
    found = load(EXAMPLES / "linear_regression" / "run.py").main()
    assert found["x1"] == pytest.approx(2, abs=0.02)
    assert found["x2"] == pytest.approx(3, abs=0.02)
    assert f"x1         found {found['x1']:7.4f}   true 2" in capsys.readouterr().out


def test_the_clients_of_the_regression_live_in_different_places():
    clients = load(EXAMPLES / "linear_regression" / "run.py").make_clients()
    centres = np.array([c.features.mean(0) for c in clients.values()])
    np.testing.assert_allclose(centres[:, 0], [-2, -1, 0, 1, 2], atol=0.3)


def test_the_api_script_runs_cell_by_cell(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "python_api.py", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    losses = dict(re.findall(r"^(fedavg|fedprox|scaffold|mlp|newton) +(0\.\d+)", done.stdout, re.M))
    finals = re.findall(r"^(\w+) +(0\.\d+) +(0\.\d+)$", done.stdout, re.M)
    losses = {name: float(loss) for name, loss, _ in finals if name in losses or name == "mlp"}
    assert set(losses) == {"fedavg", "fedprox", "scaffold", "mlp", "newton"}
    assert all(loss < 0.5 for loss in losses.values())
    virtual = dict(re.findall(r"^(\w+) +\d+ steps, +([\d.]+) virtual s", done.stdout, re.M))
    assert float(virtual["asynchronous"]) < float(virtual["synchronous"])
    assert "without" not in done.stdout  # nobody is lost by still being at work
    assert_self_contained(tmp_path / "run" / "report.html")


needs_images = pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason=f"Fashion-MNIST is not in {FASHION_MNIST}"
)
FEW = [
    *("--set", "rounds.count=2", "--set", "rounds.size=3", "--set", "evaluation.every=2"),
    *("--set", "data.partition.clients=100", "--executor", "serial"),
]


@needs_images
@pytest.mark.parametrize(
    ("name", "size", "at_least"),
    [("mlp", 784 * 128 + 128 + 1290, 0.3), ("cnn", 80_202, 0.15), ("own_model", 55_050, 0.3)],
)
def test_fashion_mnist_learns_in_two_small_rounds(name, size, at_least, tmp_path, capsys):
    job = EXAMPLES / "fashion_mnist" / f"{name}.toml"
    result = atoll(capsys, job, "--out", tmp_path / "run", *FEW)
    manifest = RunFolder.open(tmp_path / "run").read_manifest()
    assert manifest["parameters"] == size
    assert len(manifest["data"]) == 100
    assert sum(d["rows"] for d in manifest["data"].values()) == 60_000
    assert result["central"]["accuracy"] > at_least


@pytest.mark.parametrize("name", ["mlp", "cnn", "own_model"])
def test_missing_images_say_where_to_get_them(name, tmp_path, capsys):
    job = EXAMPLES / "fashion_mnist" / f"{name}.toml"
    setting = f"data.options={{ folder = '{tmp_path}' }}"
    status = main(["run", str(job), "--out", str(tmp_path / "run"), "--set", setting, "--quiet"])
    assert status == 3
    assert "apt install dataset-fashion-mnist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def fenced(language):
    """The fenced blocks of that language in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def patients(folder, *hospitals):
    """The table that the README describes, in ``folder``."""
    rng = np.random.default_rng(0)
    rows = ["hospital,age,sex,pressure,ill"]
    for hospital in hospitals:
        for age in rng.integers(30, 80, 60):
            ill = "yes" if rng.random() < 1 / (1 + np.exp(-(age - 55) / 8)) else "no"
            rows.append(f"{hospital},{age},{rng.choice(['f', 'm'])},{rng.integers(90, 180)},{ill}")
    (folder / "patients.csv").write_text("\n".join(rows) + "\n")


def test_the_first_job_of_the_readme_runs_on_a_table_like_the_one_it_describes(tmp_path, capsys):
    patients(tmp_path, "north", "south", "west")
    job = fenced("toml")[0]
    assert len([line for line in job.splitlines() if line]) <= 15
    (tmp_path / "job.toml").write_text(job)
    result = atoll(capsys, tmp_path / "job.toml", "--out", tmp_path / "run")
    assert set(result["comparison"]["sites"]) == {"north", "south", "west"}
    assert result["federated"]["auc"] > 0.7


def test_the_first_job_of_the_readme_can_be_made_private_as_it_says(tmp_path, capsys):
    patients(tmp_path, "north", "south", "west", "east", "centre")
    job, private = fenced("toml")
    (tmp_path / "job.toml").write_text(job + private)
    atoll(capsys, tmp_path / "job.toml", "--out", tmp_path / "run")
    told = RunFolder.open(tmp_path / "run").read_manifest()["privacy"]
    assert told["masking"]
    assert 0 < told["epsilon"] <= 8


def test_the_python_of_the_readme_finds_its_coefficients(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(fenced("python")[0], "README.md", "exec"), names)
    np.testing.assert_allclose(names["run"].parameters["weight"], [2, 3], atol=0.02)
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_the_statistics_of_the_readme_print_a_table(capsys):
    rng = np.random.default_rng(1)
    clinics, sexes = rng.choice(["bern", "lyon", "turin"], 600), rng.choice(["female", "male"], 600)
    age = rng.normal(60, 9, 600).round()
    relapse = (rng.random(600) < 1 / (1 + np.exp(-0.05 * (age - 60)))).astype(int)
    frame = pd.DataFrame({"clinic": clinics, "age": age, "sex": sexes, "relapse": relapse})
    exec(compile(fenced("python")[1], "README.md", "exec"), {"frame": frame})
    assert re.search(r"^age +0\.0[3-7]", capsys.readouterr().out, re.M)


def test_every_file_that_the_readmes_link_to_exists():
    for page in [ROOT / "README.md", *EXAMPLES.glob("**/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"
