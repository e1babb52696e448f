"""What a run of statistics found: tables as CSV and JSON, and a page that opens offline.

::

    results.json        every analysis: its table, figures and notes
    tables/NAME.csv     each table by itself
    models/NAME.json    a model that predicts: trees in XGBoost's format
    report.html         the page

Numbers are written so that reading them gives the same bits. A suppressed number is empty in CSV and null
in JSON; a zero is 0.

Every run imports this module, and few are of statistics: what knows all kinds of results is imported on use.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.algorithms.statistics.running import Statistic
from atoll.core.errors import AtollError, StateError
from atoll.core.values import State
from atoll.job.build import Job
from atoll.job.inquiries.inquiry import Finding, Findings, not_shown
from atoll.job.study import Agreed
from atoll.report.folder import RunFolder, plain, write_atomic
from atoll.report.markup import Safe, tag
from atoll.report.statistics import page, plain_table

__all__ = ["Answer", "answers_of", "findings_of", "write_findings"]


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one analysis of a job.

    Args:
        name: of the analysis in the job.
        finding: what it found; None where disclosure control, or the analysis, refuses to show it.
        refused: why.
    """

    name: str
    finding: Finding | None
    refused: AtollError | None = None

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        if self.finding is None:
            code = self.refused.code if self.refused else ""
            return {"name": self.name, "refused": str(self.refused), "code": code}
        from atoll.job.inquiries.results import result_to_plain

        found = self.finding
        table = [{k: _number(v) for k, v in record.items()} for record in found.records()]
        facts = {name: _number(value) for name, value in found.facts().items()}
        notes = list(found.notes)
        return {
            "name": self.name,
            "title": found.title,
            "table": table,
            "index": found.index,
            "facts": facts,
            "notes": notes,
            "result": result_to_plain(found.result),
        }


def answers_of(job: Job, state: State) -> tuple[Answer, ...]:
    """What a finished run of statistics found, in the order of the job.

    Raises:
        StateError: the job has no statistics, or the run has not finished.
    """
    study = job.study
    if study is None or study.agreed is None:
        raise StateError("this run is none of statistics", remedy="see run.model")
    algorithm = job.algorithm
    if not isinstance(algorithm, Statistic):
        raise StateError("this run is none of statistics", remedy="see run.model")
    parts = algorithm.parts_of(state)
    answers = []
    for name, inquiry in study.inquiries.items():
        try:
            result = parts[name]()
            answers.append(Answer(name, inquiry.finding(study.agreed.book, result)))
        except AtollError as error:
            answers.append(Answer(name, None, error))
    return tuple(answers)


def findings_of(job: Job, state: State) -> Findings[Finding]:
    """The analyses of a finished run that may be shown, and why the others may not.

    Raises:
        StateError: as :func:`answers_of`.
    """
    answers = answers_of(job, state)
    return Findings(
        {one.name: one.finding for one in answers if one.finding is not None},
        {one.name: not_shown(one.name, one.refused) for one in answers if one.refused is not None},
        job.study.agreed.notes if job.study and job.study.agreed else (),
    )


def write_findings(folder: RunFolder, job: Job, state: State, manifest: Mapping[str, Any]) -> None:
    """Write the tables and the page of a finished run; nothing of one that was interrupted.

    Raises:
        StorageError: the folder cannot be written.
    """
    study = job.study
    if study is None or study.agreed is None:
        return
    if str(manifest["status"]).startswith("interrupted"):
        return
    answers = answers_of(job, state)
    rule = study.agreed.to_plain()["rule"]
    told = {
        "name": job.name,
        "job_hash": job.hash(),
        "sites": list(study.agreed.sites),
        "rule": rule,
        "notes": list(study.agreed.notes),
        "analyses": [answer.to_plain() for answer in answers],
    }
    content = json.dumps(plain(told), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(folder.results, (content + "\n").encode())
    folder.tables.mkdir(exist_ok=True)
    for answer in answers:
        if answer.finding is not None:
            text = _csv(answer.finding.records())
            write_atomic(folder.tables / f"{answer.name}.csv", text.encode())
            exported = answer.finding.exported()
            if exported is not None:
                folder.models.mkdir(exist_ok=True)
                model = json.dumps(exported, allow_nan=False)
                write_atomic(folder.models / f"{answer.name}.json", model.encode())
    sections = [(answer.name, _section(answer)) for answer in answers]
    sections.append(("About these numbers", _about(study.agreed, manifest)))
    write_atomic(folder.report, page(job.name, sections).encode("utf-8", "replace"))


def _number(value: Any) -> Any:
    """A plain number; what is not finite is nothing."""
    item = value.item() if hasattr(value, "item") else value
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return item


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    heads = list(dict.fromkeys(head for record in records for head in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for record in records:
        cells = [_number(record.get(head)) for head in heads]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def _section(answer: Answer) -> list[Safe]:
    if answer.finding is None:
        return [tag("p", f"Not shown: {answer.refused}")]
    from atoll.job.inquiries.page import shown

    return shown(answer.finding)


def _about(agreed: Agreed, manifest: Mapping[str, Any]) -> list[Safe]:
    rule = agreed.book.rule
    lines = [
        ("sites", ", ".join(agreed.sites)),
        ("rounds", str(manifest.get("rounds", ""))),
        ("smallest number of persons", str(rule.minimum)),
        ("a person is", f"a value of {rule.person!r}" if rule.person else "a row"),
        ("smallest and largest values", "allowed" if rule.extremes else "not shown"),
        ("sums of single sites", _seen(rule.masked, str(manifest.get("executor", "")))),
        ("job", str(manifest.get("job_hash", ""))),
        ("Atoll", str(manifest.get("atoll", ""))),
    ]
    return [
        plain_table(("", ""), lines),
        *(tag("p", f"Note: {note}.") for note in agreed.notes),
    ]


def _seen(masked: bool, executor: str) -> str:
    if executor not in ("remote", "deployed"):
        return "on one machine: a simulation"
    return "seen by nobody: masked" if masked else "seen by the server"
