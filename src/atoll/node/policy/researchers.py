"""Whose jobs a site works on: those that a researcher whose key it knows has signed, just as they stand there.

A server tells a site what to do. That somebody has asked for it is not the server's to say: the researcher's
signature comes with each plan (:mod:`atoll.wire.submissions`), and the node checks it against the job, the code
and the sites of the very task that is at hand. So a server can neither change a job nor make one up, nor
play one a second time as another run: each submission has a number of its own, and the site writes down for
which run it was first used. The signature is checked once for a plan, the key for each task::

    researchers.json        fingerprints that the steward has pinned, by name
    researchers_seen.json   those that were the first to be seen under a name
    submissions.json        the run of each submission
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Literal

from atoll.core.errors import AuthError, PolicyError
from atoll.job.package import spec_digest
from atoll.job.schema import JobSpec
from atoll.node.home import Home, write_text
from atoll.node.peers import Peers
from atoll.wire.identity import fingerprint_of
from atoll.wire.messages import SignedBody, TaskBody
from atoll.wire.submissions import Submission

__all__ = ["Researchers"]

log = logging.getLogger("atoll.node")

_KEPT = 256
"""Answers that are known by heart: a task of a run asks the same as the one before."""


class Researchers:
    """The researchers that a site knows, and what they have asked it for.

    Args:
        home: of the node.
        federation: id of the one that the site has joined.
        site: its name there.
        rule: whether a key has to be ``pinned``, or may be the first that was ``seen`` under a name.
    """

    def __init__(
        self, home: Home, federation: str, site: str, rule: Literal["seen", "pinned"] = "seen"
    ) -> None:
        self._federation, self._site, self._rule = federation, site, rule
        self._pinned, self._seen = Peers(home.researchers), Peers(home.researchers_seen)
        self._path, self._home = home.submissions, home
        self._lock = threading.Lock()
        self._passed: dict[tuple[object, ...], None] = {}

    def check(
        self,
        task: TaskBody,
        spec: JobSpec,
        by: str,
        sites: tuple[str, ...],
        signed: SignedBody | None,
    ) -> None:
        """Let a task pass whose job was signed.

        Args:
            task: the server's.
            spec: the job, as its plan has it.
            by: who has submitted it, as the server says.
            sites: who takes part, as the server says.
            signed: what came with the plan.

        Raises:
            PolicyError: it was not; or by a key that this site does not know, for others, or for another run.
            StorageError: what this site knows cannot be read, or not be added to.
        """
        files = {name: ref.sha256 for name, ref in task.code.items()}
        this = task.run, task.plan.sha256, *sorted(files.items())
        with self._lock:
            if signed is None:
                raise PolicyError(
                    "nobody has signed this job", remedy="submit it with this version of Atoll"
                )
            new = this not in self._passed
            if new:
                told = self._federation, by, spec_digest(spec), files, tuple(signed.sites)
                self._verify(Submission(*told, signed.nonce), signed, sites)
            self._know(by, fingerprint_of(bytes.fromhex(signed.key)))
            if new:
                self._use(signed.nonce, task.run, by)
            self._passed[this] = None
            while len(self._passed) > _KEPT:
                del self._passed[next(iter(self._passed))]

    def _verify(self, told: Submission, signed: SignedBody, sites: tuple[str, ...]) -> None:
        """Refuse what is not what was signed, or was signed for others."""
        try:
            told.check(signed)
        except AuthError as error:
            raise PolicyError(
                f"this is not what {told.by or 'its researcher'} has signed: job, code, sites or name is "
                "another one",
                remedy="do server and site run the same version of Atoll? else the server has changed it",
            ) from error
        if signed.sites and (self._site not in signed.sites or set(sites) != set(signed.sites)):
            raise PolicyError(
                f"{told.by} has asked {', '.join(signed.sites)[:500]} for this, and nobody else",
                remedy="ask the server's operator how it came here",
            )

    def _know(self, by: str, shown: str) -> None:
        """Refuse a key that is not this researcher's."""
        known: Mapping[str, str] = self._pinned.all()
        if self._rule == "seen":
            known = {**self._seen.all(), **known}
            if by not in known:
                self._seen.pin({by: shown})
                log.info("%s asks this site for the first time, with the key %s", by, shown)
                return
        if by not in known:
            raise PolicyError(
                f"the key of {by} is not pinned here",
                remedy="its steward compares fingerprints with them, then: atoll node peers --pin",
            )
        if known[by] != shown:
            raise PolicyError(
                f"{by} has signed with another key than the one this site knows",
                remedy="its steward asks them by telephone; if it is theirs: atoll node peers --repin NAME",
            )

    def _use(self, nonce: str, run: str, by: str) -> None:
        """Write down, durably, which run a submission has become, or refuse a second one."""
        used = self._home.read(self._path)
        if nonce not in used:
            write_text(self._path, json.dumps({**used, nonce: run}, indent=0) + "\n")
        elif used[nonce] != run:
            raise PolicyError(
                f"{by} has submitted this once, and it was run {used[nonce]}",
                remedy="submit it again",
            )
