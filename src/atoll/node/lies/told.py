"""A server that lies to this node's code, and what comes of each lie.

Six sites are made in a folder, with keys of their own and the rules of this site's ``node.toml``. Each is the
code that a node runs: tasks and answers are frames, the book of rounds is on the disk. The server holds the
key that all sites believe and shows each of them what it likes. No site may release a share, or two sums, or
answer in clear what it adds up under masks only.

:data:`LIES` names them; :func:`told` tells one. Those about buffers of asynchronous runs are in
:mod:`atoll.node.lies.of_buffers`, those about what an answer costs in :mod:`atoll.node.lies.of_accounts`, those
about encrypted runs in :mod:`atoll.node.lies.of_ciphers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from atoll.job.summed import SUBJECTS
from atoll.node.lies.cast import LENGTH, NOW, SITES, Cast, remember
from atoll.node.lies.encrypted_stage import EncryptedStage
from atoll.node.lies.of_accounts import ACCOUNT_LIES
from atoll.node.lies.of_buffers import BUFFER_LIES, BUFFERED
from atoll.node.lies.of_ciphers import CIPHER_LIES
from atoll.node.lies.stage import Message, Stage, digest_of
from atoll.node.settings import Settings
from atoll.privacy.secagg.keys import Pair
from atoll.privacy.secagg.messages import Commitment, Opening, Pledge, Roster, Survivors
from atoll.privacy.secagg.terms import Terms

__all__ = ["LIES", "Told", "told"]

_ALL = tuple(range(1, len(SITES) + 1))


@dataclass(frozen=True)
class Told:
    """What came of a lie.

    Args:
        lie: its name.
        released: sites that released shares, opened a sum, or would answer in clear or without counting it when
            they should not have.
        refused: what each site said to it, by name.
    """

    lie: str
    released: tuple[str, ...]
    refused: Mapping[str, str]

    @property
    def withstood(self) -> bool:
        """Whether nothing was released and every site gave up."""
        return not self.released and len(self.refused) == len(SITES)


# The lies -------------------------------------------------------------------------------------------


def _both_lists(stage: Stage) -> None:
    """A site is alive when pledges are made and dead when shares are asked for."""

    def lie(index: int, message: Message) -> Message:
        return replace(message, members=_ALL[:5]) if isinstance(message, Opening) else message

    stage.play(lie)


def _split_survivors(stage: Stage) -> None:
    """Two sets, each shown to some; then everybody's pledges are shown to everybody."""

    def mine(index: int) -> tuple[int, ...]:
        return (1, 2, 3, 4, 5) if index < 4 else (1, 2, 3, 4, 6)

    def lie(index: int, message: Message) -> Message | None:
        if isinstance(message, Survivors):
            return Survivors(mine(index)) if index in mine(index) else None
        return message

    stage.play(lie)
    said = [w for words in stage.heard.values() for w in words if isinstance(w, Pledge)]
    for index, name in enumerate(SITES, 1):
        pledges = tuple(p for p in said if p.sender in mine(index))
        stage.show(name, Opening(mine(index), pledges))


def _repeated_site(stage: Stage) -> None:
    """One site is counted twice, to reach the threshold."""
    twice = Survivors((1, *_ALL))
    stage.play(lambda i, m: twice if isinstance(m, Survivors) else m)


def _own_death(stage: Stage) -> None:
    """Each site is told that its own input did not arrive."""

    def lie(index: int, message: Message) -> Message:
        others = tuple(i for i in _ALL if i != index)
        return Survivors(others) if isinstance(message, Survivors) else message

    stage.play(lie)


def _swapped_key(stage: Stage) -> None:
    """The server puts itself between one site and the others."""

    def lie(index: int, message: Message) -> Message:
        if not isinstance(message, Roster):
            return message
        first, *rest = message.commitments
        return Roster((replace(first, mask=Pair(b"m" * 32).public), *rest))

    stage.play(lie)


def _invited(stage: Stage, terms: Terms) -> None:
    for name in SITES:
        stage.show(name, stage.invitation(terms), terms.occasion.round)


def _small_threshold(stage: Stage) -> None:
    """Fewer sites shall be enough than the job says."""
    _invited(stage, stage.terms(threshold=4))


def _stale_terms(stage: Stage) -> None:
    """Yesterday's invitation, with the server's good signature."""
    _invited(stage, stage.terms(expiry=NOW - 1))


def _replayed_request(stage: Stage) -> None:
    """The request for shares of another round, signed by everybody at that time."""
    recorded = list[Opening]()

    def record(index: int, message: Message) -> Message:
        recorded.extend([message] if isinstance(message, Opening) else [])
        return message

    stage.play(record)
    stage.released.clear()
    stage.play(lambda i, m: recorded[0] if isinstance(m, Opening) else m, number=1)


def _another_model(stage: Stage) -> None:
    """One site starts from another model than the terms say to the others."""
    last = SITES[-1]
    told = stage.terms()
    theirs = replace(told, occasion=replace(told.occasion, model=digest_of(9.0)))
    early = stage.show(last, stage.invitation(theirs), model=9.0)

    def lie(index: int, message: Message) -> Message | None:
        if index == len(SITES):
            return None
        if isinstance(message, Roster):
            return Roster((*message.commitments, *cast(list[Commitment], early)))
        return message

    stage.play(lie)
    four = [cast(Commitment, stage.heard[name][0]) for name in SITES[:-1]]
    stage.show(last, Roster((*four, *cast(list[Commitment], early))))


def _cohort_of_two(stage: Stage) -> None:
    """One victim and one other."""
    terms = stage.terms()
    _invited(stage, replace(terms, cohort=terms.cohort[:2], threshold=2))


def _changed_bound(stage: Stage) -> None:
    """A range so wide that one site's input fills the ring."""
    terms = stage.terms()
    _invited(stage, replace(terms, lanes=(replace(terms.lanes[0], bound=2.0**31 - 1),)))


def _bound_as_question(stage: Stage) -> None:
    """Whoever refuses has a value above so many: by and by the server knows one site's largest, or its rows."""
    terms = stage.terms()
    stage.play(terms=replace(terms, lanes=(replace(terms.lanes[0], bound=float(LENGTH)),)))


def _second_unmask(stage: Stage) -> None:
    """After a good round: another set in the same attempt, and another attempt."""
    stage.play()
    stage.released.clear()
    for name in SITES:
        stage.show(name, Survivors(_ALL[:5]))
        stage.show(name, Opening(_ALL[:5], ()))
    stage.refused.clear()
    _invited(stage, stage.terms(attempt=1))


def _in_clear(stage: Stage) -> None:
    """The protocol is left out: sites are asked for their updates and figures as they are."""
    for name in SITES:
        for kind in SUBJECTS:
            stage.ask(name, kind)


def _fewer_sites(stage: Stage) -> None:
    """A run that was masked goes on as one of four sites, which masks would hide little in."""
    for name in SITES:
        stage.ask(name, "train")
    stage.refused.clear()
    for name in SITES:
        for kind in SUBJECTS:
            stage.ask(name, kind, SITES[:4])


def _told_apart(stage: Stage) -> None:
    """Half of the sites get other terms than the rest, each of them in order; then all are to share."""
    said = list[Commitment]()
    for name in SITES:
        said += cast(list[Commitment], stage.show(name, stage.invitation(stage.terms(site=name))))
    for name in SITES:
        stage.show(name, Roster(tuple(said)))


def _another_factor(stage: Stage) -> None:
    """In a synchronous run the updates of three sites are to count for next to nothing."""
    stage.scale = lambda name: 1.0 if name < SITES[3] else 1e-9
    _told_apart(stage)


def _larger_factor(stage: Stage) -> None:
    """All updates count a thousand times, behind the clip: the noise that sites add is made for one of them."""
    stage.scale = lambda name: 1000.0
    stage.play()


def _another_memory(stage: Stage) -> None:
    """A second sum from the same model, for which one site goes on from another of its own memories."""
    for name in SITES:
        remember(stage.nodes[name], "early", 1.0)
        remember(stage.nodes[name], "late", 2.0)
    stage.still, stage.kept = True, lambda name: "early"
    stage.play()
    stage.released.clear()
    stage.kept = lambda name: "late" if name == SITES[0] else "early"
    stage.play(number=1)


def _another_plan(stage: Stage) -> None:
    """Three sites are shown a plan with other sums of columns: their features come out as zeros."""
    honest, other = stage.cast.plan(), stage.cast.plan(schema={"x": 0})
    stage.plan = lambda name: honest if name < SITES[3] else other
    _told_apart(stage)


LIES: Mapping[str, Callable[[Stage], None]] = {
    "both lists": _both_lists,
    "split survivors": _split_survivors,
    "repeated site": _repeated_site,
    "own death": _own_death,
    "swapped key": _swapped_key,
    "small threshold": _small_threshold,
    "stale terms": _stale_terms,
    "replayed request": _replayed_request,
    "another model": _another_model,
    "cohort of two": _cohort_of_two,
    "changed bound": _changed_bound,
    "bound as question": _bound_as_question,
    "second unmask": _second_unmask,
    "in clear": _in_clear,
    "fewer sites": _fewer_sites,
    "another factor": _another_factor,
    "larger factor": _larger_factor,
    "another plan": _another_plan,
    "another memory": _another_memory,
    **BUFFER_LIES,
    **ACCOUNT_LIES,
}
"""What a server of masked runs may try, and of runs that cost privacy."""


def told(name: str, folder: Path, settings: Settings | None = None) -> Told:
    """Tell a lie to six sites with the rules of this one.

    Args:
        name: one of :data:`LIES`, or of :data:`~atoll.node.lies.of_ciphers.CIPHER_LIES`, which take TenSEAL.
        folder: an empty one.
        settings: of this site.
    """
    if name in CIPHER_LIES:
        ciphers = EncryptedStage(Cast(folder, settings or Settings(), "encrypted"))
        CIPHER_LIES[name](ciphers)
        return Told(name, tuple(ciphers.released), dict(ciphers.refused))
    stage = Stage(folder, settings or Settings(), BUFFERED if name in BUFFER_LIES else {})
    LIES[name](stage)
    return Told(name, tuple(stage.released), dict(stage.refused))
