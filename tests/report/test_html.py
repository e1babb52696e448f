from __future__ import annotations

import html
import math
import random
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.core.errors import StorageError
from atoll.report import RunFolder, render, write_report

Maker = Callable[..., dict[str, Any]]
VOID = {"meta", "br", "hr"}
WORDS = """
html head meta title style body main header footer section div span p b i h1 h2 h3
ul li dl dt dd table caption thead tbody tr th td details summary pre code
figure figcaption svg g line path circle rect text
"""
ALLOWED = set(WORDS.split())


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order; collects what the tests ask about."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.stack, f"<{tag}/> closes itself in SVG only"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "style":
            self.style += data
        elif data.strip():
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def safe(self) -> bool:
        for tag, attributes in self.tags:
            assert tag in ALLOWED, tag
            for name in attributes:
                assert not name.startswith("on"), name
                assert name not in {"src", "href", "xlink:href", "action", "srcdoc", "data"}, name
        return True


def test_the_page_is_well_formed_and_has_its_parts_in_order(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    page = Page(render(manifest, rounds))
    titles = [
        "Was it worth joining?",
        "To keep in mind",
        "How the model learned",
        "Who took part",
        "How the data are spread over the clients",
        "Data cards",
        "Where the time went",
        "Privacy",
        "How to get the same again",
    ]
    assert [word for word in page.words if word in titles] == titles
    assert page.safe()
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    for expected in (
        "three hospitals",
        "completed",
        "All 3 sites contributed in each of the 6 rounds.",
        "Yes: better by 0.050; pooling the rows would be better by 0.010.",
        "No masking, no differential privacy was on in this run.",
        "west holds few rows",
        "ab" * 32,
        "python 3.11.2, numpy 2.0",
        "50 %",
    ):
        assert expected in page.text


def test_the_same_input_gives_the_same_page(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    assert render(manifest, rounds) == render(manifest, rounds)


def test_nothing_is_loaded_from_anywhere(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    source = render(manifest, rounds)
    page = Page(source)
    assert "//" not in source
    assert not re.search(r"@import|url\(|expression\(|javascript:", source)
    policy = [
        a.get("content") for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy
    assert str(policy[0]).startswith("default-src 'none'")


def test_pictures_have_names_and_tables_have_heads(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    page = Page(render(manifest, rounds))
    pictures = [a for t, a in page.tags if t == "svg" and "aria-hidden" not in a]
    assert len(pictures) >= 8
    assert all(a.get("role") == "img" and a.get("aria-label") for a in pictures)
    captions = sum(tag == "figcaption" for tag, _ in page.tags)
    assert captions == len(pictures)
    heads = [a for t, a in page.tags if t == "th"]
    assert heads
    assert all(a.get("scope") in ("row", "col") for a in heads)


def test_light_dark_and_paper_are_styled(manifest: dict[str, Any]) -> None:
    style = Page(render(manifest, [])).style
    assert "prefers-color-scheme:dark" in style
    assert "@media print" in style
    assert style.count("{") == style.count("}")
    used = set(re.findall(r"var\((--[\w-]+)", style))
    assert used - {"--k", "--t"} <= set(re.findall(r"(--[\w-]+):", style))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</title></style></pre><iframe src=//evil.example>",
    "--><b>x</b><!--",
    "&lt;script&gt;",
    "\x00\x1b[31m\u202e",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text_wherever_they_appear(
    manifest: dict[str, Any], make_record: Maker, name: str
) -> None:
    site, metric = manifest["comparison"]["sites"], {"loss": 0.5, name: 0.4, "auc": 0.5}
    manifest |= {
        **dict.fromkeys(
            ("name", "status", "started", "executor", "model_hash", "privacy", "atoll"), name
        ),
        "data": {name: {"rows": 3, "fingerprint": name}},
        "cards": [{"site": name, "rows": 3, "missing": {name: 1}, "labels": {name: 3}, name: name}],
        "versions": {name: name},
        "comparison": {"metric": "auc", "sites": {name: site["north"]}},
        "best": {"metric": name, "round": name, "value": 0.1},
        "notes": [name],
        "job": {name: [name]},
    }
    rounds = [
        make_record(i, invited=[name, "b"], contributed={name: 3}, missing={"b": name}, reason=name,
                    train=metric, central=metric, sites={name: metric})
        for i in (1, 2)
    ]  # fmt: skip
    page = Page(render(manifest, rounds))
    assert page.safe()
    visible = re.sub("[\x00\x1b]", "\ufffd", name)
    assert page.text.count(visible) >= 8


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.text(max_size=30))
def test_any_text_as_a_name_gives_a_well_formed_page(make_record: Maker, name: str) -> None:
    record = make_record(1, invited=[name], contributed={}, missing={name: name})
    page = render({"name": name, "status": name, "data": {name: {"rows": 1}}}, [record])
    assert Page(page).safe()
    page.encode("utf-8")


def test_an_empty_run_still_gives_a_page() -> None:
    page = Page(render({}, []))
    assert "No round was run, so nobody took part." in page.text
    assert "not finished" in page.text
    assert "Not compared in this run" in page.text


def test_a_failed_run_says_why_and_shows_what_there_is(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    manifest |= {
        "status": "failed: at west: every update was refused",
        "comparison": None,
        "best": None,
    }
    page = Page(render(manifest, rounds[:2]))
    assert "This run failed" in page.text
    assert page.text.count("at west: every update was refused") >= 2
    assert "0.8" in page.text


@pytest.mark.parametrize(
    ("status", "mood"),
    [
        ("completed", "good"),
        ("completed without hospital-c from round 7", "fair"),
        ("stopped early: no gain", "info"),
        ("interrupted", "fair"),
        ("failed: disk full", "bad"),
    ],
)
def test_a_status_looks_as_it_is(status: str, mood: str) -> None:
    assert f'<span class="status {mood}">{status}</span>' in render({"status": status}, [])


def test_any_key_of_the_manifest_and_of_a_record_may_be_missing_or_null(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    pages = []
    for key in manifest:
        pages.append(render({k: v for k, v in manifest.items() if k != key}, rounds))
        pages.append(render({**manifest, key: None}, rounds))
    for key in rounds[0]:
        pages.append(render(manifest, [{k: v for k, v in r.items() if k != key} for r in rounds]))
        pages.append(render(manifest, [{**r, key: None} for r in rounds]))
    for page in pages:
        Page(page)  # refuses what is not well formed
        assert page.rstrip().endswith("</html>"), "the page is not whole"


def test_numbers_that_are_not_finite_are_gaps_and_dashes(
    manifest: dict[str, Any], make_record: Maker
) -> None:
    manifest["comparison"]["sites"]["north"]["alone"]["auc"] = math.nan
    manifest["best"]["value"] = math.nan
    manifest["cards"] = [{"site": "north", "rows": 3, "target": {"mean": math.nan, "sd": math.inf}}]
    bad = {"loss": math.nan, "auc": None, "accuracy": math.inf}
    for rounds in (
        [make_record(1), make_record(2, central=bad, train=bad, seconds=math.nan), make_record(3)],
        [make_record(1, central=bad, train=bad, federated=bad, sites={"north": bad})],
    ):
        source = render(manifest, rounds)
        page = Page(source)
        numbers = [v for _, attributes in page.tags for v in attributes.values() if v]
        assert not [v for v in numbers if re.search(r"\b(nan|inf)\b", v)]
        assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
        assert "Cannot be said: AUC is undefined when trained alone." in page.text


def test_virtual_time_is_shown_only_when_it_tells_something(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    assert "over virtual time" not in render(manifest, rounds)
    for record, clock in zip(rounds, (0.5, 0.7, 2.0, 2.1, 5.0, 9.0), strict=True):
        record["clock"] = clock
    assert "Loss over virtual time" in render(manifest, rounds)


def test_the_best_value_is_named_by_its_own_metric(manifest: dict[str, Any]) -> None:
    manifest["best"] = {"round": 4, "metric": "federated.loss", "value": 0.47}
    assert "<b>0.47</b><span>best Loss, round 4</span>" in render(manifest, [])


def test_training_metrics_are_drawn_beside_those_of_the_same_name(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    for record in rounds:
        record["train"] = {"train_loss": 0.75}
        record["central"]["confusion"] = 0.5
    page = render(manifest, rounds)
    assert "training: 0.75 at 1" in page
    assert "onfusion" not in page.replace("manifest", "")


def test_the_columns_of_each_site_are_told(manifest: dict[str, Any]) -> None:
    age = {"type": "number", "unit": "years", "missing": 0, "mean": 54.44, "sd": 9.02}
    sex = {"type": "category", "missing": 2, "counts": {"f": 3, "m": 5, "x": 1, "y": 1}}
    manifest["cards"] = [
        {"site": "a", "rows": 10, "missing": {"sex": 2}, "columns": {"age": age, "sex": sex}},
        {"site": "b", "rows": 10, "missing": {}, "columns": {"sex": {**sex, "missing": 0}}},
    ]
    text = Page(render(manifest, [])).text
    assert "54.4 (sd 9.02) years" in text
    assert "m 5, f 3, x 1, ..." in text
    assert "a 20 % b 0 %" in text


def test_privacy_is_told_in_sentences_and_not_in_records(manifest: dict[str, Any]) -> None:
    said = {
        "masking": "on",
        "differential privacy": "epsilon 2 at delta 1e-05 for one site",
        "not counted in it": "nothing",
        "epsilon": 1.998,
        "unit": "site",
        "target": 2.0,
        "outside": [],
        "events": [{"kind": "gaussian", "noise_multiplier": 3.5}],
    }
    text = Page(render({**manifest, "privacy": said}, [])).text
    told = text[text.index("Privacy") : text.index("How to get the same again")]
    assert "differential privacy: epsilon 2 at delta 1e-05 for one site" in told
    assert "not counted in it: nothing" in told
    assert "events" not in told
    assert "1.998" not in told


def test_privacy_is_what_the_manifest_says(manifest: dict[str, Any]) -> None:
    text = Page(render({**manifest, "privacy": "Masked aggregation was on."}, [])).text
    assert "Masked aggregation was on." in text
    assert "No masking" not in text


def test_a_regression_shows_its_targets(manifest: dict[str, Any]) -> None:
    manifest["cards"] = [
        {"site": "a", "rows": 5, "missing": {}, "target": {"mean": 10.0, "sd": 2.0}},
        {"site": "b", "rows": 5, "missing": {}, "target": {"mean": 20.0, "sd": 1.0}},
    ]
    page = Page(render(manifest, []))
    assert "a, one sd below the mean: 8" in page.text
    assert "mean 20, sd 1" in page.text
    assert "No value is missing at any site." in page.text


def test_rare_classes_are_taken_together(manifest: dict[str, Any]) -> None:
    labels = {str(k): 100 - k for k in range(30)}
    manifest["cards"] = [{"site": "a", "rows": sum(labels.values()), "labels": labels}]
    text = Page(render(manifest, [])).text
    rest = sum(labels.values()) - sum(labels[str(k)] for k in range(9))
    assert f"a, other: {rest:,}" in text
    assert "a, 8: 92" in text


@pytest.mark.timeout(60)
def test_a_run_of_a_thousand_clients_is_small_and_quick(make_record: Maker) -> None:
    rng = random.Random(0)
    names = [f"client-{i:04d}" for i in range(1000)]
    rounds = [
        make_record(
            number,
            invited=names,
            contributed=dict.fromkeys(names[:900], 60),
            missing=dict.fromkeys(names[900:], "dropped: left in the middle"),
            sites={name: {"auc": rng.random()} for name in names} if number % 10 == 0 else None,
        )
        for number in range(1, 101)
    ]
    manifest = {
        "status": "completed",
        "data": {name: {"rows": 60, "fingerprint": "a" * 64} for name in names},
        "cards": [
            {
                "site": name,
                "rows": rng.randint(10, 500),
                "missing": {"age": 3},
                "labels": {str(k): rng.randint(0, 20) for k in range(10)},
            }
            for name in names
        ],
        "comparison": {
            "metric": "auc",
            "sites": {n: {w: {"auc": rng.random()} for w in ("alone", "federated")} for n in names},
        },
    }
    began = time.process_time()
    source = render(manifest, rounds)
    assert time.process_time() - began < 3
    assert len(source.encode()) < 2_000_000
    page = Page(source)
    assert page.safe()
    assert "900 of 1,000 clients contributed at least once." in page.text
    assert "60 of 1,000 clients, from large to small." in page.text


def test_a_page_of_thousands_of_columns_is_small_and_says_where_all_of_them_are(manifest) -> None:
    names = [f"gene_{i}" for i in range(5000)]
    column = {"type": "number", "unit": "", "missing": 1, "mean": 0.123456789, "sd": 1.0}
    card = {"rows": 10, "missing": dict.fromkeys(names, 1), "columns": dict.fromkeys(names, column)}
    manifest["cards"] = [{"site": site, **card} for site in ("a", "b")]
    manifest["job"] = {"data": {"features": names, "target": "ill"}}
    source = render(manifest, [])
    page = Page(source)
    assert len(source.encode()) < 200_000
    assert "The first 60 of 5,000 columns; all are in manifest.json." in page.text
    assert "The first 30 of 5,000; all are in manifest.json." in page.text
    assert '"features": "5000 entries, see manifest.json"' in page.text
    assert '"target": "ill"' in page.text


def test_one_missing_value_of_very_many_is_a_missing_value(manifest) -> None:
    manifest["cards"] = [{"site": "a", "rows": 1_000_000, "missing": {"age": 1}}]
    text = Page(render(manifest, [])).text
    assert "No value is missing" not in text
    assert "<1 %" in text


def test_a_long_run_of_sixty_clients_is_small(make_record: Maker) -> None:
    names = [f"c{i}" for i in range(60)]
    rounds = [
        make_record(i, invited=names, contributed=dict.fromkeys(names, 5)) for i in range(1, 2001)
    ]
    assert len(render({}, rounds).encode()) < 2_000_000


def test_the_report_is_written_into_the_folder(
    tmp_path: Path, manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_manifest(manifest)
    for record in rounds:
        run.append(record)
    path = write_report(tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == render(run.read_manifest(), run.read_rounds())
    assert write_report(run) == path


def test_without_a_run_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run in"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_site_suppresses_is_shown_as_that_word_and_never_as_zero(manifest, rounds):
    manifest["cards"] = [
        {
            "site": "north",
            "rows": 100,
            "labels": {"no": "suppressed", "yes": "suppressed"},
            "missing": {"age": "suppressed"},
            "columns": {
                "age": {"type": "number", "missing": "suppressed", "mean": "suppressed", "sd": 1},
                "clan": {"type": "category", "missing": 0, "counts": {"a": 60, "b": "suppressed"}},
            },
        }
    ]
    page = render(manifest, rounds)
    assert "no: suppressed, yes: suppressed" in page
    assert "a 60, b suppressed" in page
    assert "0, and 1 suppressed" in page
    assert "No value is missing" not in page
    assert "suppressed: 100" in page  # what is drawn in the place of the classes
    assert "holds back how many rows of class 'no' or 'yes' it has" in html.unescape(page)


def test_a_site_that_suppresses_nothing_has_no_such_word_in_its_report(manifest, rounds):
    assert "suppressed" not in render(manifest, rounds)
