"""Lies that asynchronous runs make possible: about who is in a buffer, from where, and what each counts.

Part of :mod:`atoll.node.lies.told`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from atoll.job.buffered import Starts
from atoll.node.lies.cast import SITES
from atoll.node.lies.stage import Stage, digest_of
from atoll.privacy.secagg.messages import Commitment, Roster

__all__ = ["BUFFERED", "BUFFER_LIES"]

BUFFERED: Mapping[str, Any] = {
    "algorithm": {"name": "fedbuff", "exponent": 1.0},
    "rounds": {"mode": "async", "buffer": 6, "max_staleness": 9},
}
"""Tables of a job whose updates count 1 / (1 + tau) times, in buffers of six."""


def _starts(newest: int, *versions: int) -> Starts:
    """A buffer whose sites started from these versions."""
    models = {version: digest_of(version) for version in versions}
    return Starts(newest, models, dict(zip(SITES, versions, strict=True)))


def _factor(starts: Starts) -> Callable[[str], float]:
    """What the job has each site's update count."""
    return lambda name: 1.0 / (1 + starts.tau(name))


def _always(starts: Starts, name: str) -> Starts:
    return starts


def _played(stage: Stage, starts: Starts, number: int = 0) -> None:
    stage.buffer, stage.scale = partial(_always, starts), _factor(starts)
    stage.play(number=number)


def _small_buffer(stage: Stage) -> None:
    """Four of the six sites that the job asks for."""
    four = SITES[:4]
    starts = Starts(0, {0: digest_of(0)}, dict.fromkeys(four, 0))
    stage.buffer = partial(_always, starts)
    terms = stage.terms(cohort=stage.members[:4], threshold=3)
    for name in SITES:
        stage.show(name, stage.invitation(terms))


def _own_version(stage: Stage) -> None:
    """One site starts from a version of its own; what the others have may be a model that teaches nothing."""
    _played(stage, _starts(1, 0, 0, 0, 0, 0, 1))


def _faded_others(stage: Stage) -> None:
    """Three sites are said to be so old that their updates count for next to nothing."""
    _played(stage, _starts(9, 9, 9, 9, 0, 0, 0))


def _another_weight(stage: Stage) -> None:
    """All are told to count for nothing, and for very much."""
    starts = _starts(0, 0, 0, 0, 0, 0, 0)
    stage.buffer = partial(_always, starts)
    stage.scale = lambda name: 1e-6 if name < SITES[3] else 1e6
    stage.play()


def _split_buffer(stage: Stage) -> None:
    """Half of the sites is shown one age of the updates, half another."""
    young, old = _starts(1, 1, 1, 1, 0, 0, 0), _starts(2, 1, 1, 1, 0, 0, 0)

    def mine(name: str) -> Starts:
        return young if name < SITES[3] else old

    stage.scale = lambda name: _factor(mine(name))(name)
    said = list[Commitment]()
    for name in SITES:
        stage.buffer = partial(_always, mine(name))
        said += cast(list[Commitment], stage.show(name, stage.invitation(stage.terms())))
    for name in SITES:
        stage.show(name, Roster(tuple(said)))


def _update_in_two_sums(stage: Stage) -> None:
    """After a good buffer: the same updates in the next one, each older by a version."""
    _played(stage, _starts(0, 0, 0, 0, 0, 0, 0))
    stage.released.clear()
    _played(stage, _starts(1, 0, 0, 0, 0, 0, 0), number=1)


BUFFER_LIES: Mapping[str, Callable[[Stage], None]] = {
    "small buffer": _small_buffer,
    "version of its own": _own_version,
    "faded others": _faded_others,
    "another weight": _another_weight,
    "split buffer": _split_buffer,
    "update in two sums": _update_in_two_sums,
}
"""What a server of asynchronous runs may try."""
