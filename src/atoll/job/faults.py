"""Errors of independent checks, gathered so that a person sees all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from atoll.core.errors import AtollError, Fault, JobError, raise_faults

__all__ = ["Gathering"]


class Gathering:
    """What several checks raise, as one error.

    >>> found = Gathering()
    >>> with found.attempt("clock"):
    ...     raise JobError("no such file")
    >>> with found.attempt("model"):
    ...     raise JobError("unknown kind")
    >>> [str(fault) for fault in found.faults]
    ['clock: no such file', 'model: unknown kind']
    """

    def __init__(self) -> None:
        self._errors: list[AtollError] = []
        self._faults: dict[Fault, None] = {}

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults in the order they were found, each once."""
        return tuple(self._faults)

    @contextmanager
    def attempt(self, place: str) -> Iterator[None]:
        """Run one check; what it raises is kept, at ``place`` when it names none itself."""
        try:
            yield
        except AtollError as error:
            self._errors.append(error)
            here = f"{place}, site {error.site!r}" if error.site else place
            own = error.faults or (Fault(here, error.message, error.remedy),)
            self._faults |= dict.fromkeys(own)

    def raise_all(self, what: str) -> None:
        """Raise everything gathered; nothing when all checks passed.

        Raises:
            AtollError: of the class that all faults share; else a :class:`JobError` when one of them
                is the job's, else of the class that was found first.
        """
        if not self._errors:
            return
        kinds = [type(error) for error in self._errors]
        kind = kinds[0]
        if len(set(kinds)) > 1 and any(issubclass(k, JobError) for k in kinds):
            kind = JobError
        raise_faults(kind, what, self.faults)
