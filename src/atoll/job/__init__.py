"""A job file becomes objects: the one place where names become things."""

from __future__ import annotations

from atoll.job.build import Job
from atoll.job.load import load_job

__all__ = ["Job", "load_job"]
