"""What an audit found, in sentences that keep what is promised apart from what was tried."""

from atoll.report.audit import audit_lines, audit_section
from atoll.report.html import render

RISK = {"tpr": 0.143, "fpr": 0.01, "auc": 0.77, "members": 100, "others": 100}
BOUND = {
    "epsilon": 1.25,
    "delta": 1e-5,
    "confidence": 0.95,
    "canaries": 400,
    "guesses": 80,
    "right": 70,
    "reported": None,
    "holds": None,
}
FOUND = {
    "models": 16,
    "rows": 400,
    "seconds": 3.0,
    "membership": {"lira": RISK, "loss": {**RISK, "tpr": 0.02}},
    "one_run": BOUND,
    "protection": {"aggregation": "masked", "statement": {}},
}


def test_each_finding_is_a_sentence():
    lines = audit_lines(FOUND)
    assert lines[0] == "updates were masked: the server saw sums alone"
    assert "14.3 % of the members found at 1.0 % false alarms" in lines[2]
    assert lines[-1] == "no differential privacy for single rows was promised"


def test_a_promise_and_its_contradiction_are_said_aloud():
    kept = {**FOUND, "one_run": {**BOUND, "reported": 3.0, "holds": True}}
    assert audit_lines(kept)[-1] == "the promised epsilon 3.00 is not contradicted"
    broken = {**FOUND, "one_run": {**BOUND, "reported": 1.0, "holds": False}}
    assert audit_lines(broken)[-1] == "the promised epsilon 1.00 IS CONTRADICTED"


def test_another_unit_is_told_as_what_it_is():
    statement = {"epsilon": 3.0, "delta": 1e-5, "unit": "site"}
    lines = audit_lines({**FOUND, "protection": {"aggregation": "plain", "statement": statement}})
    assert lines[:2] == ["the server saw every update", "epsilon 3.00 at delta 1e-05 for one site"]


def test_the_report_has_a_section_only_where_there_was_an_audit():
    assert "Audit" in str(audit_section(FOUND))
    assert "likelihood ratio" in render({}, [], FOUND)
    assert "likelihood ratio" not in render({}, [])
