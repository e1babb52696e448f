"""The last link of an encrypted job: integers are added up as ciphertexts.

Here is only what a job declares and needs; keys never come near the code of a job.
In a simulation :mod:`atoll.runtime.encrypted` encrypts, adds and opens; in a deployment the node's own process
and the server do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.core.chain import Passive, Setting
from atoll.core.errors import Fault

__all__ = ["Encrypt"]

_MOST = 1000
"""Sites of one sum; the modulus has no room for more at this precision."""


@dataclass(frozen=True)
class Encrypt(Passive):
    """The link."""

    name: str = "encrypt"
    needs: frozenset[str] = frozenset({"integers"})
    gives: frozenset[str] = frozenset({"sums only"})

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Rules that need single updates, steps of one update, cohorts too large for the modulus."""
        found = []
        if not setting.additive:
            found.append(
                Fault(
                    "algorithm",
                    "this rule looks at single updates, which encryption hides",
                    "use an algorithm that needs only sums, or privacy.aggregation = 'plain'",
                )
            )
        if not setting.forms_cohorts:
            found.append(
                Fault(
                    "rounds.mode",
                    "every update is a step of its own: its sum, once opened, is the update",
                    "use fedbuff with a rounds.buffer, or rounds.mode = 'sync'",
                )
            )
        if setting.cohort > _MOST:
            found.append(
                Fault(
                    "privacy.aggregation",
                    f"a cohort of {setting.cohort:,}; encrypted sums hold {_MOST:,}",
                    "mask, or invite fewer",
                )
            )
        return found
