"""A buffer of an asynchronous run as the cohort of a masked round: what its sites must agree on.

Sites of a buffer did not all start from one model. So that a server cannot show each of them another world,
the terms of their round hold one hash over :class:`Starts`: who is in it, from which version each started, the
digest of each version, and which version is the newest. From these follows how much each update counts
(s(tau), applied by the site itself before it masks), and whether too little hides the others:

* *Models.* Whoever starts alone from a model made for it can be told from the sum, if all others are given
  models from which nothing is learned. So of each version at least :data:`APART` sites are in a buffer.
* *Weights.* Whoever is the only one that counts for anything can be told from the sum. So nobody counts less
  than :data:`FADED` times as much as another; a job sets ``rounds.max_staleness`` accordingly.
* *Size.* At most the job's buffer, and at least as many as would open a round of it.

Server and nodes ask this module the same questions; a node asks them of what the server shows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll.core.errors import Fault, WireError
from atoll.core.values import ClientId
from atoll.privacy.secagg.terms import usual_threshold
from atoll.runtime.schedule import Asynchronous

if TYPE_CHECKING:
    from atoll.job.schema import JobSpec

__all__ = ["APART", "FADED", "Starts", "against", "buffer_faults", "starts_faults"]

APART = 3
"""So many sites of a buffer start from one version at least; what sites refuse by default, too."""
FADED = 0.2
"""The least that an update may count beside another one of its buffer."""


@dataclass(frozen=True)
class Starts:
    """What the updates of a buffer started from.

    Args:
        newest: version of the server's model.
        models: digest of each version that a site started from (see
            :func:`~atoll.privacy.secagg.terms.model_digest`).
        sites: the version from which each site of the buffer started.

    >>> Starts(3, {2: "aa", 3: "bb"}, {"a": 2, "b": 3}).tau("a")
    1
    """

    newest: int
    models: Mapping[int, str]
    sites: Mapping[ClientId, int]

    def tau(self, site: ClientId) -> int:
        """Staleness: how many versions lie between the start of ``site`` and the newest."""
        return self.newest - self.sites[site]

    @property
    def mark(self) -> str:
        """One hash over all of it, in the place of a model's in the terms of the round."""
        text = json.dumps(self.to_plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"buffer " + text.encode()).hexdigest()

    def to_plain(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "newest": self.newest,
            "models": {str(version): digest for version, digest in self.models.items()},
            "sites": dict(self.sites),
        }

    @classmethod
    def from_plain(cls, raw: Any) -> Starts:
        """Read what :meth:`to_plain` gave.

        Raises:
            WireError: it is something else.
        """
        try:
            models = {int(version): digest for version, digest in raw["models"].items()}
            found = cls(raw["newest"], models, dict(raw["sites"]))
            versions = [found.newest, *found.models, *found.sites.values()]
            if not all(type(v) is int and 0 <= v < 2**53 for v in versions):
                raise ValueError("versions")
            if not all(isinstance(text, str) for text in (*models.values(), *found.sites)):
                raise ValueError("digests")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WireError("a masked round came without what its buffer started from") from error
        return found


def against(schedule: Asynchronous, staleness: Callable[[int], float]) -> Iterator[str]:
    """Why buffers of this schedule cannot be masked between institutions.

    Args:
        schedule: of the job.
        staleness: s(tau) of its algorithm.
    """
    if schedule.max_staleness is None:
        yield "rounds.max_staleness is not set: updates that count for nothing would hide nobody"
    elif staleness(schedule.max_staleness) < FADED * staleness(0):
        yield (
            f"updates of {schedule.max_staleness} versions' age (rounds.max_staleness) count less "
            f"than {FADED:g} times a new one, and would hide nobody"
        )


def buffer_faults(spec: JobSpec) -> Iterator[Fault]:
    """The same of a job that says that it is masked."""
    from atoll.job.registry import algorithm_named  # reads job files, as these objects need not
    from atoll.job.tables import schedule_of

    schedule = schedule_of(spec)
    if spec.privacy.aggregation == "masked" and isinstance(schedule, Asynchronous):
        for reason in against(schedule, algorithm_named(spec.algorithm).staleness):
            yield Fault("rounds.max_staleness", reason, "set it lower, or rounds.mode = 'sync'")


def starts_faults(
    starts: Starts,
    cohort: Collection[ClientId],
    schedule: Asynchronous,
    staleness: Callable[[int], float],
    apart: int = APART,
) -> list[Fault]:
    """Everything for which a site refuses a buffer.

    Args:
        starts: what the server shows.
        cohort: names of the sites in the terms.
        schedule: of the job.
        staleness: s(tau) of its algorithm.
        apart: fewest sites that start from one version.
    """
    if set(starts.sites) != set(cohort) or set(starts.models) != set(starts.sites.values()):
        return [Fault("buffer", "is not that of the cohort in the terms")]
    found, most = [], schedule.buffer
    if not usual_threshold(most) <= len(cohort) <= most:
        low = f"has {len(cohort)} sites, and rounds.buffer is {most}"
        found.append(Fault("buffer", low, f"{usual_threshold(most)} at least"))
    ages = [starts.tau(site) for site in starts.sites]
    limit = schedule.max_staleness
    if min(ages) < 0 or (limit is not None and max(ages) > limit):
        return [*found, Fault("staleness", f"from {min(ages)} to {max(ages)}, at most {limit}")]
    counts = [staleness(tau) for tau in ages]
    if min(counts) < FADED * max(counts):
        text = f"from {min(counts):.3g} to {max(counts):.3g}: the others would hide nobody"
        found.append(Fault("weights", text, "lower rounds.max_staleness"))
    for version, count in sorted(Counter(starts.sites.values()).items()):
        if count < apart:
            text = f"{count} sites of the buffer started from version {version}"
            found.append(Fault("models", text, f"{apart} at least"))
    return found
