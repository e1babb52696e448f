"""Lies about encrypted runs: to have something else opened than a sum, or to have the key.

Part of :mod:`atoll.node.lies.told`; docs/adr/0028 says what stands against each.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from typing import Any, cast

import numpy as np

from atoll.core.errors import AtollError
from atoll.core.layout import Array
from atoll.job.summed import SUBJECTS, model_mark
from atoll.node.lies.cast import NOW, SITES, remember, vectors_of
from atoll.node.lies.encrypted_stage import Ask, EncryptedStage
from atoll.node.run_keys import RunKeys
from atoll.privacy.he.contexts import new_key
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.rounds import Included, joined, key_lane
from atoll.privacy.he.sealed import Sealed, loaded, seal
from atoll.privacy.he.sharing import greeting, parcel
from atoll.privacy.secagg.keys import Pair
from atoll.privacy.secagg.terms import Member, model_digest, usual_threshold
from atoll.wire.identity import Identity

__all__ = ["CIPHER_LIES"]

_VICTIM = SITES[0]
Arrays = Mapping[str, Array]


def _opened(stage: EncryptedStage, change: Callable[[Arrays], Arrays], number: int = 0) -> None:
    """A round in which something else is to be opened."""

    def lie(name: str, ask: Ask) -> Ask:
        changed = change(ask.arrays) if ask.kind == "open" else {}
        return replace(ask, arrays={**ask.arrays, **changed})

    stage.round(lie, number)


def _sum(stage: EncryptedStage, vectors: Sequence[Sealed]) -> Arrays:
    """What the server can always make: a sum of any ciphertexts, each as often as it likes."""
    pieces = zip(*(loaded(stage.public, vector) for vector in vectors), strict=True)
    added = tuple(reduce(operator.add, piece).serialize() for piece in pieces)
    return joined(Sealed(vectors[0].length, added))


def _all(stage: EncryptedStage, *without: str) -> list[Sealed]:
    return [stage.at.sealed(name, stage.public) for name in SITES if name not in without]


def _bytes(raw: bytes) -> Array:
    return np.frombuffer(raw, np.uint8)


# Another ciphertext ---------------------------------------------------------------------------------


def _one_for_the_sum(stage: EncryptedStage) -> None:
    """One site's ciphertext is shown as the sum of all."""
    stage.agree()
    _opened(stage, lambda arrays: joined(stage.at.sealed(_VICTIM, stage.public)))


def _sum_of_a_subset(stage: EncryptedStage) -> None:
    """The sum of five is shown as that of six: with the true one it would show the sixth."""
    stage.agree()
    _opened(stage, lambda arrays: _sum(stage, _all(stage, _VICTIM)))


def _scaled_sum(stage: EncryptedStage) -> None:
    """All others are added twice, and their tags too: the last digit of each value is the victim's."""

    def change(arrays: Arrays) -> Arrays:
        tags = np.frombuffer(arrays["tags"].tobytes(), "<u8").reshape(len(SITES), -1).copy()
        tags[1:] *= np.uint64(2)
        others = _all(stage, _VICTIM)
        twice = _sum(stage, [*others, *others, *_all(stage, *SITES[1:])])
        return {**twice, "tags": _bytes(tags.tobytes())}

    stage.agree()
    _opened(stage, change)


def _ciphertext_of_its_own(stage: EncryptedStage) -> None:
    """To the sum the server adds what it has encrypted itself."""

    def change(arrays: Arrays) -> Arrays:
        mine = seal(stage.public, np.full(_all(stage)[0].length, 2.0**-20))
        return _sum(stage, [*_all(stage), mine])

    stage.agree()
    _opened(stage, change)


def _forged_tags(stage: EncryptedStage) -> None:
    """The victim is left out of the sum, and a tag of the server's own stands for it."""

    def change(arrays: Arrays) -> Arrays:
        tags = np.array(arrays["tags"])
        tags[:16] = _bytes(os.urandom(16))
        return {**_sum(stage, _all(stage, _VICTIM)), "tags": tags}

    stage.agree()
    _opened(stage, change)


def _another_round(stage: EncryptedStage) -> None:
    """In the second round the sum of the first is shown, with its tags."""
    stage.agree()
    stage.round()
    stage.released.clear()
    old = {name: stage.at.opening[name] for name in ("pieces", "sizes", "tags")}
    _opened(stage, lambda arrays: old, number=1)


def _another_run(stage: EncryptedStage) -> None:
    """All that was said in another run of the same sites is said again in this one."""
    other = EncryptedStage(stage.cast, "another")
    stage.agree()
    other.agree()
    other.round()
    for name in SITES:
        arrays = other.at.opening
        stage.show(name, Ask("open", other.terms(name), stage.plan(name), arrays))


def _another_subject(stage: EncryptedStage) -> None:
    """Updates are to be opened as though they were figures of held-out rows."""
    stage.agree()
    stage.round(lambda name, ask: ask if ask.kind == "train" else None)
    for kind in ("pledge", "open"):
        for name in SITES:
            terms = stage.terms(name, about="evaluate")
            told = Ask(kind, terms, stage.plan(name), stage.at.opening, about="evaluate")
            stage.show(name, told)


# Another set ----------------------------------------------------------------------------------------


def _only(stage: EncryptedStage, sites: Sequence[str]) -> Arrays:
    """What stands in messages about the true sum over some of the sites."""
    sent = [stage.at.sent[name] for name in sites]
    entries = zip(
        (SITES.index(n) + 1 for n in sites), (a["root"].tobytes() for a in sent), strict=True
    )
    some = [stage.at.sealed(name, stage.public) for name in sites]
    tags = np.concatenate([arrays["tag"] for arrays in sent])
    return {**Included(tuple(entries)).arrays(), "tags": tags, **_sum(stage, some)}


def _all_but_one(stage: EncryptedStage) -> None:
    """Everybody but the victim is said to have dropped out."""
    stage.agree()
    stage.round(lambda name, ask: ask if ask.kind == "train" else None)
    signatures = dict[str, Array]()
    for kind in ("pledge", "open"):
        for name in SITES:
            told = {**_only(stage, [name]), **signatures}
            ask = Ask(kind, stage.terms(name), stage.plan(name), told)
            stage.show(name, ask)
        signatures = {"pledgers": np.zeros(0, np.int64), "pledges": np.zeros(0, np.uint8)}


def _too_few_pledges(stage: EncryptedStage) -> None:
    """One site's pledge to a sum of five stands there for everybody's."""

    def lie(name: str, ask: Ask) -> Ask | None:
        if ask.kind == "train":
            return ask
        told = dict(_only(stage, SITES[:5]))
        if ask.kind == "open":
            told["pledgers"] = np.repeat(ask.arrays["pledgers"][:1], 5)
            told["pledges"] = np.tile(ask.arrays["pledges"][:64], 5)
        elif name == SITES[5]:
            return None
        return replace(ask, arrays=told)

    stage.agree()
    stage.round(lie)


def _split_pledges(stage: EncryptedStage) -> None:
    """Two sums of five sites each, and each is shown to some: their difference would be that of two sites."""

    def mine(name: str) -> Sequence[str]:
        return SITES[:5] if name < SITES[3] else (*SITES[:4], SITES[5])

    def lie(name: str, ask: Ask) -> Ask | None:
        if ask.kind == "train":
            return ask
        if name not in mine(name):
            return replace(ask, arrays={**ask.arrays, **_only(stage, SITES[:4])})
        return replace(ask, arrays={**ask.arrays, **_only(stage, mine(name))})

    stage.agree()
    stage.round(lie)


def _again(stage: EncryptedStage) -> None:
    """After a good round: the sum of five of the six, with pledges asked for anew."""
    stage.released.clear()
    told = dict(_only(stage, SITES[1:]))
    pledges = dict[str, Array]()
    for kind in ("pledge", "open"):
        for name in SITES:
            if kind == "open":
                told["pledgers"] = np.array([SITES.index(n) + 1 for n in pledges], np.int64)
                told["pledges"] = np.concatenate([*pledges.values(), np.zeros(0, np.uint8)])
            ask = Ask(kind, stage.terms(name), stage.plan(name), told, name="-again")
            if (said := stage.show(name, ask)) and kind == "pledge":
                pledges[name] = said["signature"]


def _asked_twice(stage: EncryptedStage) -> None:
    """Two sums of one round, which differ by one site."""
    stage.agree()
    stage.round()
    _again(stage)


def _rolled_back(stage: EncryptedStage) -> None:
    """The same from a server that was set back, to nodes that have been started anew."""
    stage.agree()
    stage.round()
    for name in SITES:
        stage.restart(name)
    _again(stage)


def _another_update(stage: EncryptedStage) -> None:
    """A server that was set back begins the round anew with another model: one site twice, in two sums."""
    stage.agree()
    stage.round()
    stage.released.clear()
    stage.model = lambda name: 9.0

    def again(name: str, ask: Ask) -> Ask:
        return replace(ask, name="-again")

    stage.round(again)


def _another_memory(stage: EncryptedStage) -> None:
    """A second sum from the same model, for which one site goes on from another of its own memories."""
    for name in SITES:
        remember(stage.nodes[name], "early", 1.0, stage.run)
        remember(stage.nodes[name], "late", 2.0, stage.run)
    stage.agree()
    stage.kept = lambda name: "early"
    stage.round()
    stage.released.clear()
    stage.kept = lambda name: "late" if name == _VICTIM else "early"
    stage.round(number=1)


# Other terms ----------------------------------------------------------------------------------------


def _shown(stage: EncryptedStage, **changes: Any) -> None:
    stage.agree()
    for name in SITES:
        stage.show(name, Ask("train", stage.terms(name, **changes), stage.plan(name)))


def _cohort_of_two(stage: EncryptedStage) -> None:
    """One victim and one other."""
    _shown(stage, cohort=stage.cast.members[:2], threshold=2)


def _small_threshold(stage: EncryptedStage) -> None:
    """Fewer sites shall be enough than two thirds and one."""
    _shown(stage, threshold=4)


def _stale_terms(stage: EncryptedStage) -> None:
    """Terms that are over, with the server's good signature."""
    _shown(stage, expiry=NOW - 1)


def _in_clear(stage: EncryptedStage) -> None:
    """The protocol is left out: sites are asked for what they add up as it is."""
    stage.agree()
    for name in SITES:
        for about in SUBJECTS:
            ask = Ask(about, stage.terms(name), stage.plan(name))
            bare = stage.task(name, ask).model_copy(update={"said": None, "kind": about})
            try:
                if stage.sites[name].concerns(bare, stage.cast.find):
                    stage.sites[name].held(bare, stage.cast.find)
                stage.released.append(name)
            except AtollError as error:
                stage.refused[name] = error.message


# Sites told different things ------------------------------------------------------------------------


def _another_model(stage: EncryptedStage) -> None:
    """All but the victim start from a model that teaches nothing; each gets terms that say so."""
    stage.agree()
    stage.model = lambda name: 0.0 if name == _VICTIM else 9.0
    stage.round()


def _begun_with_another_model(stage: EncryptedStage) -> None:
    """While the workers are at it, the task comes again with the model that the terms then name."""
    stage.agree()
    mark = model_mark("train", model_digest(vectors_of(9.0)))
    for name in SITES:
        terms = stage.terms(name)
        terms = replace(terms, occasion=replace(terms.occasion, model=mark))
        body = stage.task(name, Ask("train", terms, stage.plan(name), model=9.0))
        stage.sites[name].held(body, stage.cast.find)
        stage.work(name, body)
    stage.round()


def _another_factor(stage: EncryptedStage) -> None:
    """All but the victim are told that their updates count for next to nothing."""
    stage.agree()
    stage.scale = lambda name: 1.0 if name == _VICTIM else 1e-9
    stage.round()


def _another_plan(stage: EncryptedStage) -> None:
    """All but the victim are shown other sums of columns: their features come out as zeros."""
    stage.agree()
    true, other = stage.cast.plan(stage.run), stage.cast.plan(stage.run, schema={"x": 0})
    stage.plan = lambda name: true if name == _VICTIM else other
    stage.round()


def _last_digits(stage: EncryptedStage) -> None:
    """All but the victim are told of more sites, and cut what they send into shorter digits.

    In the sum their values count twice, then, and its last bit is the victim's.
    """
    stage.agree()
    more = stage.cast.plan(stage.run, sites=[*SITES, "site-7", "site-8"])
    true = stage.cast.plan(stage.run)
    stage.plan = lambda name: true if name == _VICTIM else more
    stage.round()


# Keys -----------------------------------------------------------------------------------------------


def _key_of_its_own(stage: EncryptedStage) -> None:
    """The server deals a key that it has made, from a channel that it says is the first site's."""
    raw, seed = new_key(Parameters.exact(len(SITES))), os.urandom(32)
    own = Identity.create(stage.cast.folder / "own.pem")

    def lie(name: str, ask: Ask) -> Ask:
        if ask.kind != "take":
            return ask
        mine = greeting(ask.terms, 1, seed, own.sign)
        channels, signatures = np.array(ask.arrays["channels"]), np.array(ask.arrays["signatures"])
        channels[:32], signatures[:64] = _bytes(mine.channel), _bytes(mine.signature)
        changed = {"channels": channels, "signatures": signatures}
        said = [replace(mine, channel=channels[i : i + 32].tobytes()) for i in range(0, 192, 32)]
        with suppress(AtollError):  # the other signatures are not in this list, and not needed
            dealt = parcel(ask.terms, 1, seed, said, raw, own.sign)
            changed |= {"sealed": _bytes(dealt.sealed), "wraps": _bytes(b"".join(dealt.wraps))}
            changed["dealt"] = _bytes(dealt.signature)
        return replace(ask, arrays={**ask.arrays, **changed})

    stage.agree(lie)
    for name in SITES:
        keys = RunKeys(stage.cast.folder / name / "keys")
        if keys.has(stage.run) and keys.key(stage.run) == raw:
            stage.released.append(name)


def _party_of_its_own(stage: EncryptedStage) -> None:
    """A seventh site, of the server's invention, is to have the key too."""
    own, members = Identity.create(stage.cast.folder / "own.pem"), stage.cast.members
    cohort, seed = (*members, Member("site-7", own.public_bytes)), os.urandom(32)
    plan = stage.cast.plan(stage.run, sites=[m.name for m in cohort])
    stage.plan = lambda name: plan
    terms = stage.terms(
        _VICTIM, about="key", cohort=cohort, threshold=usual_threshold(7), lanes=(key_lane(7),)
    )
    said = [stage.show(name, Ask("greet", terms, plan)) for name in SITES]
    if None in said:
        return
    mine = greeting(terms, 7, seed, own.sign)
    heard = cast(list[Arrays], said)
    told = {
        "channels": np.concatenate([*(a["channel"] for a in heard), _bytes(mine.channel)]),
        "signatures": np.concatenate([*(a["signature"] for a in heard), _bytes(mine.signature)]),
    }
    if stage.show(_VICTIM, Ask("deal", terms, plan, told)):
        stage.released.append(_VICTIM)


def _swapped_channel(stage: EncryptedStage) -> None:
    """The first site is to seal the key for the server, in the second one's place."""

    def lie(name: str, ask: Ask) -> Ask:
        if ask.kind != "deal":
            return ask
        channels = np.array(ask.arrays["channels"])
        channels[32:64] = _bytes(Pair(os.urandom(32)).public)
        return replace(ask, arrays={**ask.arrays, "channels": channels})

    stage.agree(lie)
    if stage.dealt:
        stage.released.append(_VICTIM)


CIPHER_LIES: Mapping[str, Callable[[EncryptedStage], None]] = {
    "one for the sum": _one_for_the_sum,
    "sum of a subset": _sum_of_a_subset,
    "scaled sum": _scaled_sum,
    "ciphertext of its own": _ciphertext_of_its_own,
    "forged tags": _forged_tags,
    "another round's sum": _another_round,
    "another run's sum": _another_run,
    "updates as figures": _another_subject,
    "all but one": _all_but_one,
    "too few pledges": _too_few_pledges,
    "split pledges": _split_pledges,
    "asked twice": _asked_twice,
    "rolled back": _rolled_back,
    "another update": _another_update,
    "memory of its own": _another_memory,
    "two at an opening": _cohort_of_two,
    "few at an opening": _small_threshold,
    "stale invitation": _stale_terms,
    "without ciphertexts": _in_clear,
    "one other model": _another_model,
    "begun with another model": _begun_with_another_model,
    "faded ciphertexts": _another_factor,
    "plan of its own": _another_plan,
    "last digits": _last_digits,
    "key of its own": _key_of_its_own,
    "party of its own": _party_of_its_own,
    "swapped channel": _swapped_channel,
}
"""What a server of encrypted runs may try."""
