"""The clock that deadlines stand on."""

from atoll.server import steps
from atoll.server.steps import steady


def test_a_wall_clock_that_is_set_moves_no_deadline(monkeypatch):
    wall, ticks = [1_000_000.0], [50.0]
    monkeypatch.setattr(steps.time, "time", lambda: wall[0])
    monkeypatch.setattr(steps.time, "monotonic", lambda: ticks[0])
    now = steady()
    assert now() == 1_000_000.0
    wall[0] -= 3600.0
    ticks[0] += 7.0
    assert now() == 1_000_007.0
