"""The plot of the page: a panel per workload, a dot per contestant, time on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.table import Row, milliseconds

__all__ = ["draw"]

OURS, BASE, PEER, FAINT = "#1b6ca8", "#8a8f98", "#c2571a", "#d9dce1"


def _colour(row: Row) -> str:
    if row.peer == "atoll":
        return OURS
    return BASE if row.peer in ("plain", "central") else PEER


def draw(tables: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Save a picture.

    Args:
        tables: rows by workload.
        path: of the SVG file.
    """
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "atoll",
            "font.family": "sans-serif",
            "font.size": 9,
        }
    )
    from matplotlib import pyplot

    sized = {w: [r for r in made if not math.isnan(r.round)] for w, made in tables.items()}
    sized = {w: made for w, made in sized.items() if made}
    heights = [len(made) + 1.5 for made in sized.values()]
    figure, axes = pyplot.subplots(
        len(sized),
        figsize=(8, 0.24 * sum(heights) + 0.4),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for (workload, made), axis in zip(sized.items(), axes[:, 0], strict=True):
        ordered = sorted(made, key=lambda r: -r.round)
        least = min(r.round for r in ordered)
        most = max(r.round for r in ordered)
        names = [f"{r.name}, {r.workers}" for r in ordered]
        for place, row in enumerate(ordered):
            colour = _colour(row)
            axis.axhline(place, color=FAINT, lw=0.8, zorder=1)
            axis.plot(row.round, place, "o", color=colour, ms=5, zorder=2)
            label = milliseconds(row.round)
            axis.annotate(
                label, (row.round, place), (6, -3), textcoords="offset points", color=colour
            )
        axis.set_xscale("log")
        axis.set_xlim(least / 2, most * 4)
        axis.set_ylim(-0.7, len(ordered) - 0.3)
        axis.set_yticks(range(len(ordered)), names)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
        for side in ("top", "right", "bottom"):
            axis.spines[side].set_visible(False)
        axis.spines["left"].set_color(FAINT)
        axis.set_title(
            f"{workload}: time of a round, logarithmic; after a name, the workers",
            loc="left",
            fontsize=9,
            weight="bold",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    pyplot.close(figure)
