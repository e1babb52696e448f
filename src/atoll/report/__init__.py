"""What a run leaves behind: its folder, its report, its progress, and who gained by joining.

Everything here reads plain records (a manifest and one record per round) and nothing else, so a run can
be reported on any machine, long after it ended.
"""

from __future__ import annotations

from atoll.report.compare import ComparisonRow, comparison_lines, comparison_table
from atoll.report.folder import RunFolder, read_model, write_model
from atoll.report.html import render, write_report
from atoll.report.progress import ProgressBar, ProgressLines, progress, progress_line
from atoll.report.tensorboard import TensorBoard

__all__ = [
    "ComparisonRow",
    "ProgressBar",
    "ProgressLines",
    "RunFolder",
    "TensorBoard",
    "comparison_lines",
    "comparison_table",
    "progress",
    "progress_line",
    "read_model",
    "render",
    "write_model",
    "write_report",
]
