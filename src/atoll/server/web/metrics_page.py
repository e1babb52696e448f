"""What Prometheus reads at ``/v1/metrics``: counters of requests and gauges of the moment."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Gauge", "Meters", "Values", "page"]

EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
"""Upper edges of the histogram of seconds."""


Values = Mapping[tuple[tuple[str, str], ...], float]
"""Values by their labels, such as ``(("status", "open"),)``."""


@dataclass(frozen=True)
class Gauge:
    """One family of values of the moment."""

    name: str
    help: str
    values: Values


@dataclass
class Meters:
    """What the server counts while it runs; written by the event loop's thread alone."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0
    waiting: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request; for one that waits for news ``seconds`` hold the waiting too."""
        self.requests[route, status] += 1
        row = self.seconds.setdefault(route, [0.0] * (len(EDGES) + 2))
        row[bisect_left(EDGES, seconds)] += 1
        row[-1] += seconds


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    escaped = (
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
        for name, value in pairs
    )
    text = ",".join(f'{name}="{value}"' for name, value in escaped)
    return f"{{{text}}}" if text else ""


def _family(name: str, help: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]


def _histogram(meters: Meters) -> list[str]:
    name = "atoll_request_seconds"
    lines = _family(name, "Seconds from the headers to the end of the answer.", "histogram")
    for route, row in sorted(meters.seconds.items()):
        total = 0
        for edge, count in zip((*map(str, EDGES), "+Inf"), row, strict=False):
            total += int(count)
            lines.append(f"{name}_bucket{_labels([('route', route), ('le', edge)])} {total}")
        lines.append(f"{name}_sum{_labels([('route', route)])} {row[-1]:.6f}")
        lines.append(f"{name}_count{_labels([('route', route)])} {total}")
    return lines


def page(meters: Meters, gauges: Iterable[Gauge]) -> str:
    """All of it in Prometheus' text format 0.0.4."""
    lines = _family("atoll_requests_total", "Requests by route and status.", "counter")
    for (route, status), count in sorted(meters.requests.items()):
        labels = _labels([("route", route), ("status", str(status))])
        lines.append(f"atoll_requests_total{labels} {count}")
    lines += _family("atoll_refused_total", "Requests refused, by code.", "counter")
    for code, count in sorted(meters.refused.items()):
        lines.append(f"atoll_refused_total{_labels([('code', code)])} {count}")
    for name, what, value in (
        ("atoll_received_bytes_total", "Bytes of bodies read.", meters.received),
        ("atoll_sent_bytes_total", "Bytes of bodies sent.", meters.sent),
    ):
        lines += [*_family(name, what, "counter"), f"{name} {value}"]
    lines += _histogram(meters)
    waiting: Values = {(): float(meters.waiting)}
    for gauge in (Gauge("atoll_waiting", "Requests waiting for news.", waiting), *gauges):
        lines += _family(gauge.name, gauge.help, "gauge")
        lines += [f"{gauge.name}{_labels(k)} {v:g}" for k, v in gauge.values.items()]
    return "\n".join(lines) + "\n"
