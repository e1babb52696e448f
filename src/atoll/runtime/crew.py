"""Who of those that are ready makes up a buffer under masks.

A sum hides its parts if there are enough of them, and if they did not each start from a model of their own. So
a buffer takes K clients, and of each version that it takes at all it takes several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Crew"]


@dataclass(frozen=True)
class Crew:
    """How a buffer is made up.

    Args:
        size: K, clients of a buffer.
        apart: fewest clients that start from one version.
        least: so many do where no more can come.
        noted: ids of those who were chosen for this step before the server was stopped.
    """

    size: int
    apart: int = 1
    least: int = 0
    noted: tuple[str, ...] = ()

    def chosen(self, ready: Sequence[tuple[str, int]], over: bool = False) -> tuple[str, ...]:
        """Ids of a buffer, as early as there is one; empty while there is none.

        Args:
            ready: (id, version) of those who are ready, as they came.
            over: whether nobody else will be ready in this step.

        >>> two = [("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 0)]
        >>> Crew(3, 2).chosen(two[:4]), Crew(4, 2).chosen(two), Crew(3, 3).chosen(two)
        ((), ('a', 'b', 'c', 'd'), ('a', 'b', 'e'))
        """
        if self.noted:
            here = {name for name, _ in ready}
            if here.issuperset(self.noted):
                return self.noted
            if not over:
                return ()
        fewest = min(self.least or self.size, self.size) if over else self.size
        sizes = range(self.size, max(fewest, 1) - 1, -1)
        return next((found for size in sizes if (found := self._of(size, ready))), ())

    def _of(self, size: int, ready: Sequence[tuple[str, int]]) -> tuple[str, ...]:
        """A buffer of ``size``: of as few versions as it takes, of each the earliest."""
        found = Counter(version for _, version in ready)
        groups = [version for version, count in found.most_common() if count >= self.apart]
        versions = list[int]()
        for version in groups[: size // self.apart]:
            if sum(found[v] for v in versions) < size:
                versions.append(version)
        whole = {name for v in versions for name in _of_version(ready, v)[: self.apart]}
        rest = [name for name, v in ready if v in versions and name not in whole]
        whole.update(rest[: max(0, size - len(whole))])
        return tuple(name for name, _ in ready if name in whole) if len(whole) == size else ()

    def lonely(self, versions: Sequence[int]) -> set[int]:
        """Versions from which too few have started to be in any buffer.

        Args:
            versions: of all that are at work or ready.

        >>> sorted(Crew(6, 3).lonely([0, 0, 1, 1, 1])), sorted(Crew(5, 3).lonely([1, 1, 1]))
        ([0], [1])
        """
        together = self.apart if self.size >= 2 * self.apart else self.size
        return {version for version, count in Counter(versions).items() if count < together}


def _of_version(ready: Sequence[tuple[str, int]], version: int) -> list[str]:
    return [name for name, v in ready if v == version]
