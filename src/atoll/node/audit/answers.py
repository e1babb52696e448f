"""What a site's audit log tells of its answers, and when it is written.

An answer is described when its bytes are known and before they have their place in the spool; the disk takes
both at the same time. Before the first byte leaves, :meth:`Answers.leaving` waits for the line. What lies in
the spool without one, as a power failure may leave it, gets its line then, from its own frame.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from atoll.core.errors import AtollError, StorageError
from atoll.job.deployed import dataset_name
from atoll.node.audit.log import AuditLog
from atoll.node.plans import read_plan
from atoll.node.run_folder import Held
from atoll.wire.frames import Blob
from atoll.wire.messages import ResultBody, TaskBody, read_body

__all__ = ["Answers", "Form", "Named", "described"]

log = logging.getLogger("atoll.node")

Form = Literal["plain", "masked", "encrypted", "opened", "step"]
"""How numbers leave; ``opened`` is a sum over sites. A ``step`` of a masked or encrypted round holds none, but
keys, shares and signatures. What binds a site there is durable in its book of rounds, so nobody waits for the
lines of steps here."""

Named = Callable[[Blob], None]
"""Is told what a result's bytes are before they are kept."""

_OUTCOMES = {"done": "left", "failed": "failed", "refused": "refused"}
_MOST = 500
"""Characters of a reason."""
_PLANS = 64
"""What so many plans say is known by heart."""


def described(
    result: ResultBody, blob: Blob, form: Form = "plain", task: TaskBody | None = None
) -> dict[str, Any]:
    """An answer's line: nothing in it but names, sizes and hashes, and the words that leave with a refusal.

    ``outcome`` is ``left``, ``refused`` (a rule of the site forbids it) or ``failed``; of these two only the
    words of the ``reason`` leave. ``answer`` is the SHA-256 of the ``bytes`` that leave, ``model`` that of the
    model's file that the work started from.

    Args:
        result: the answer.
        blob: its bytes.
        form: see :data:`Form`.
        task: what was asked; None where that is not known any more, and only its id tells.
    """
    run, kind, number, *_ = [*result.task.split("."), "", "", ""]
    rows = result.answer.get("rows") if kind == "ready" else result.examples
    said = {
        "model": task.broadcast.sha256 if task is not None and task.broadcast else "",
        "rows": rows if type(rows) is int else 0,
        "reason": result.reason[:_MOST],
    }
    return {
        "what": "answer",
        "outcome": _OUTCOMES[result.status],
        "run": run if task is None else task.run,
        "task": result.task,
        "kind": kind if task is None else task.kind,
        "round": int(f"0{number.partition('-')[0]}") if task is None else task.number,
        "form": form,
        "bytes": blob.size,
        "answer": blob.sha256,
        **{key: value for key, value in said.items() if value},
    }


class Answers:
    """Writes a site's answers into its audit log.

    Args:
        log: the log.
        find: where a blob lies that has been fetched.
        charge: under which name an answer to a task is counted in the privacy ledger; empty where it is not.
        header: the body of a result in the spool.
    """

    def __init__(
        self,
        log: AuditLog,
        find: Callable[[Blob], Path],
        charge: Callable[[TaskBody], str],
        header: Callable[[Held], Mapping[str, Any]],
    ) -> None:
        self.log, self._find, self._charge, self._header = log, find, charge, header
        self._facts: dict[str, Mapping[str, Any]] = {}
        self._trouble = ""  # with the signed head, as it was said last

    def naming(self, task: TaskBody, result: ResultBody, form: Form = "plain") -> Named:
        """What is to be told the bytes of an answer, see :meth:`atoll.node.spool.Spool.finish`."""
        return partial(self._named, task, result, form)

    def _named(self, task: TaskBody, result: ResultBody, form: Form, blob: Blob) -> None:
        facts = self._of(task.plan.blob)
        if facts:
            self.log.run(task.run, facts)
        body = described(result, blob, form, task)
        if result.status == "done" and (charge := self._charge(task)):
            body["charge"] = charge
        self.log.answer(task.id, blob.sha256, body, durable=form != "step")

    def leaving(self, held: Held) -> None:
        """Wait until the line of an answer that is about to leave is there for good.

        Raises:
            StorageError: it may not be; nothing may leave. Trying again is safe.
            WireError: the result cannot be read.
        """
        if self.log.secured(held.task, held.blob.sha256):
            return
        result = read_body(ResultBody, dict(self._header(held)))
        self.log.answer(held.task, held.blob.sha256, described(result, held.blob))
        self.log.secured(held.task, held.blob.sha256)

    def withheld(self, held: Held, reason: str) -> None:
        """Note why an answer stays after all; while the disk takes nothing that is not noted."""
        body = {"what": "withheld", "run": held.run, "task": held.task}
        told = {**body, "answer": held.blob.sha256, "reason": reason[:_MOST]}
        try:
            self.log.withheld(held.task, held.blob.sha256, told)
        except StorageError as error:
            log.warning("%s", error)

    def anchor(self) -> None:
        """Move the signed head; the next try does it where the disk takes nothing now."""
        trouble = ""
        try:
            self.log.anchor()
        except StorageError as error:
            trouble = str(error)
        if trouble not in ("", self._trouble):  # it is tried every few seconds, and said once
            log.warning("%s", trouble)
        self._trouble = trouble

    def end(self, run: str) -> None:
        """A run is over."""
        self.log.end(run)
        self.anchor()

    def _of(self, plan: Blob) -> Mapping[str, Any]:
        """What a plan says of its run; nothing where it cannot be read."""
        if (known := self._facts.get(plan.sha256)) is not None:
            return known
        try:
            read = read_plan(self._find(plan))
            made = {
                "job": read.job,
                "name": read.spec.name,
                "by": read.by,
                "dataset": dataset_name(read.spec.data),
                "aggregation": read.settled.kind,
            }
        except (AtollError, OSError):
            return {}
        # In one step: runs have threads of their own, and another may do the same now.
        self._facts = dict([*self._facts.items(), (plan.sha256, made)][-_PLANS:])
        return made
