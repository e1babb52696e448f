"""A job file becomes objects: the one place where names become things.

Reading job files takes pydantic, and a job that is made in Python does without: so each of the two is imported
when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.job.build import Job
    from atoll.job.load import load_job

__all__ = ["Job", "load_job"]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for."""
    if name == "Job":
        from atoll.job.build import Job

        return Job
    if name == "load_job":
        from atoll.job.load import load_job

        return load_job
    raise AttributeError(f"module 'atoll.job' has no attribute {name!r}")
