"""What an audit found, in sentences: for the screen and for the report.

What was protected and what was attacked stand side by side: masking is no differential privacy, and a low
risk in one audit is no promise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atoll.report.markup import Safe, join, tag

__all__ = ["audit_lines", "audit_section"]


def audit_section(found: Mapping[str, Any]) -> Safe:
    """The report's paragraph on an audit.

    Args:
        found: the content of ``audit.json``.
    """
    lines = [tag("li", line) for line in audit_lines(found)]
    note = (
        "The attacker knows the job, all other rows and the final model. A low figure says that these "
        "attacks failed, not that none can succeed; only an epsilon promises that."
    )
    return join(tag("h3", "Audit"), tag("ul", *lines), tag("p", note, class_="note"))


def audit_lines(found: Mapping[str, Any]) -> Sequence[str]:
    """What was found, in sentences for people.

    Args:
        found: the content of ``audit.json``.
    """
    by_ratio, by_loss = found["membership"]["lira"], found["membership"]["loss"]
    bound = found["one_run"]
    lines = [
        *_protection(found.get("protection") or {}),
        f"{found['models']} runs on random halves of {found['rows']} candidate rows",
        f"membership by likelihood ratio: {_percent(by_ratio['tpr'])} of the members found at "
        f"{_percent(by_ratio['fpr'])} false alarms (guessing finds {_percent(by_ratio['fpr'])}), "
        f"AUC {by_ratio['auc']:.3f}",
        f"membership by loss alone: {_percent(by_loss['tpr'])}, AUC {by_loss['auc']:.3f}",
        f"one run proves epsilon >= {bound['epsilon']:.2f} for one row "
        f"({100 * bound['confidence']:.0f} % confidence, delta {bound['delta']:g})",
    ]
    if bound["reported"] is None:
        lines.append("no differential privacy for single rows was promised")
    else:
        verdict = "is not contradicted" if bound["holds"] else "IS CONTRADICTED"
        lines.append(f"the promised epsilon {bound['reported']:.2f} {verdict}")
    return lines


def _protection(said: Mapping[str, Any]) -> Sequence[str]:
    """What was on in the run that is audited."""
    if not said:
        return []
    words = {
        "plain": "the server saw every update",
        "quantised": "the server saw every update, as integers",
        "masked": "updates were masked: the server saw sums alone",
        "encrypted": "updates were encrypted: the server by itself saw nothing",
    }
    lines = [words.get(str(said.get("aggregation")), "")]
    stated = said.get("statement") or {}
    if stated.get("epsilon") is not None:
        lines.append(
            f"epsilon {stated['epsilon']:.2f} at delta {stated['delta']:g} for one {stated['unit']}"
        )
    return [line for line in lines if line]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
