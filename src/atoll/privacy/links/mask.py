"""The last link: integers are added up under masks, so that the server learns their sum alone.

Here is only what a job declares and what it needs; masks and keys never come near the code of a job. In a
simulation :mod:`atoll.runtime.masked` runs the protocol, in a deployment the node's own process does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.core.chain import Passive, Setting
from atoll.core.errors import Fault
from atoll.privacy.secagg.terms import usual_threshold

__all__ = ["FEWEST", "Mask"]

FEWEST = 3
"""No fewer clients are ever masked: of two, each knows the other's input from the sum."""


@dataclass(frozen=True)
class Mask(Passive):
    """The link.

    Args:
        threshold: how many must stay to the end; 0 for two thirds and one.
        degree: neighbours of each client in a sparse graph; 0 for everybody.
    """

    threshold: int = 0
    degree: int = 0
    name: str = "mask"
    needs: frozenset[str] = frozenset({"integers"})
    gives: frozenset[str] = frozenset({"sums only"})

    def least(self, clients: int) -> int:
        """How many of ``clients`` must stay; always more than half, in a round larger than usual too."""
        return max(self.threshold, clients // 2 + 1) if self.threshold else usual_threshold(clients)

    def short(self, present: int, invited: int) -> str:
        """Why a sum over ``present`` of ``invited`` cannot be opened; empty when it can."""
        if invited < FEWEST:
            return f"masked aggregation: {invited} clients in the round, {FEWEST} are the fewest"
        least = self.least(invited)
        if present < least:
            return f"masked aggregation: {present} of {invited} clients stayed, threshold {least}"
        return ""

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Rules that need single updates, cohorts that are too small, thresholds that are none."""
        found = list(_unsummed(setting))
        n, least = setting.cohort, self.threshold or usual_threshold(setting.cohort)
        if setting.forms_cohorts and n < FEWEST:
            found.append(
                Fault(
                    "privacy.aggregation",
                    f"a cohort of {n} clients: masking hides nobody among fewer than {FEWEST}",
                    "enlarge the cohort, or privacy.aggregation = 'plain'",
                )
            )
        elif setting.forms_cohorts and not n // 2 < least <= n:
            found.append(
                Fault(
                    "privacy.threshold",
                    f"{least} of {n} clients; above {n // 2} and at most {n} are possible",
                    "set it to 0 for two thirds and one",
                )
            )
        elif 1 < setting.quorum < least:
            found.append(
                Fault(
                    "rounds.quorum",
                    f"{setting.quorum} updates are below the threshold {least} of masked "
                    "aggregation: such a round cannot be opened",
                    f"set it to {least}, or lower privacy.threshold",
                )
            )
        if self.degree % 2:
            found.append(Fault("privacy.degree", f"{self.degree} is odd", "give an even number"))
        return found


def _unsummed(setting: Setting) -> Sequence[Fault]:
    found = []
    if not setting.additive:
        found.append(
            Fault(
                "algorithm",
                "this rule looks at single updates, which masking hides",
                "use an algorithm that needs only sums, or privacy.aggregation = 'plain'",
            )
        )
    if not setting.forms_cohorts:
        found.append(
            Fault(
                "rounds.mode",
                "every update is a step of its own: there is no sum to hide it in",
                "use fedbuff with rounds.buffer of 3 or more, or rounds.mode = 'sync'",
            )
        )
    return found
