"""A server that lies: twelve ways, and no site gives a share for any of them.

The server here holds the real server's key and shows every site what it likes. Each lie is told to a
cohort of five; the sites must give up and release nothing.
"""

from dataclasses import replace

import pytest
from cohorts import SERVER, Cohort, Key, released

from atoll.privacy.secagg import session as sessions
from atoll.privacy.secagg.inprocess import play
from atoll.privacy.secagg.keys import Pair
from atoll.privacy.secagg.messages import (
    Commitment,
    Invitation,
    Opening,
    Pledge,
    Roster,
    Survivors,
    roster_hash,
)
from atoll.privacy.secagg.server import Server
from atoll.privacy.secagg.site import Invite
from atoll.privacy.secagg.terms import Lane

ALL = (1, 2, 3, 4, 5)


def told(cohort, lie, terms=None, now=0.0):
    """Play a round in which every message to a site passes through ``lie(index, message)``."""
    terms = terms or cohort.terms()
    guests = cohort.guests(terms)

    def relay(name, message):
        return lie(terms.index(name), message)

    result = play(terms, SERVER.sign, guests, relay, now)
    return guests, result


def invited(cohort, terms, now=0.0, **approved):
    """Send ``terms``, signed, to every site and return the sites."""
    guests = cohort.guests(cohort.terms(), **approved)
    bare = Invitation(terms)
    signed = replace(bare, signature=SERVER.sign(bare.signed()))
    for guest in guests.values():
        guest.hear(Invite(signed, guest.approved, guest.entropy, now), terms)
    return guests


def both_lists():
    """A victim is alive when pledges are made and dead when shares are asked for."""

    def lie(index, message):
        return replace(message, members=ALL[:4]) if isinstance(message, Opening) else message

    return told(Cohort(), lie)[0]


def split_survivors():
    """Two sets, each shown to some; then everybody's pledges are shown to everybody."""
    pledges = {}

    def lie(index, message):
        if isinstance(message, Survivors):
            return Survivors((1, 2, 3, 4) if index < 5 else (1, 2, 3, 5))
        if isinstance(message, Pledge):
            pledges[index] = message
        return message

    cohort = Cohort()
    guests, _ = told(cohort, lie)
    for index, guest in enumerate(guests.values(), 1):
        mine = (1, 2, 3, 4) if index < 5 else (1, 2, 3, 5)
        shown = tuple(pledges[i] for i in (1, 2, 3, 5))
        guest.hear(Opening(mine, shown), cohort.terms())
    return guests


def repeated_id():
    """One site counted twice, to reach the threshold."""

    def lie(index, message):
        return Survivors((1, 1, 2, 3, 4, 5)) if isinstance(message, Survivors) else message

    return told(Cohort(), lie)[0]


def own_death():
    """Each site is told that its own input did not arrive."""

    def lie(index, message):
        others = tuple(i for i in ALL if i != index)
        return Survivors(others) if isinstance(message, Survivors) else message

    return told(Cohort(), lie)[0]


def swapped_key():
    """The server puts itself between site 1 and the others."""

    def lie(index, message):
        if not isinstance(message, Roster):
            return message
        first, *rest = message.commitments
        return Roster((replace(first, mask=Pair(b"m" * 32).public), *rest))

    return told(Cohort(), lie)[0]


def small_threshold():
    """Three sites shall be enough, which is below what the sites' policy asks of five."""
    cohort = Cohort()
    cohort.policy = replace(cohort.policy, share=0.6)
    return invited(cohort, cohort.terms(threshold=3))


def stale_terms():
    """Yesterday's invitation, with the server's good signature."""
    cohort = Cohort()
    return invited(cohort, cohort.terms(), now=100.5)


def replayed_request():
    """The share request of another round, signed by everybody at that time."""
    cohort, recorded = Cohort(), []

    def record(index, message):
        recorded.extend([message] if isinstance(message, Opening) else [])
        return message

    assert told(cohort, record)[1].total is not None

    def lie(index, message):
        return recorded[0] if isinstance(message, Opening) else message

    other = cohort.terms(occasion={"round": 2, "model": "model 2"})
    return told(cohort, lie, other)[0]


def another_model():
    """Site 5 starts from another model; its keys are made to pass as keys for the common one."""
    cohort, early = Cohort(), {}
    theirs = cohort.terms(occasion={"model": "model for site 5"})
    fifth = invited(cohort, theirs, model="model for site 5")["site005"]
    early[5] = next(word for word in fifth.said if isinstance(word, Commitment))
    for book in cohort.books.values():
        book.records.clear()

    def lie(index, message):
        if index == 5 and isinstance(message, Invitation):
            return None
        if isinstance(message, Roster):
            return Roster((*message.commitments, early[5]))
        return message

    guests, _ = told(cohort, lie)
    four = Roster(tuple(guests[name].said[0] for name in sorted(guests)[:4]))
    fifth.hear(Roster((*four.commitments, early[5])), theirs)
    return {**guests, "site005": fifth}


def cohort_of_two():
    """One victim and one other."""
    cohort = Cohort()
    terms = cohort.terms()
    return invited(cohort, replace(terms, cohort=terms.cohort[:2], threshold=2))


def changed_clip():
    """A bound so wide that one site's input fills the ring."""
    cohort = Cohort()
    first, *rest = cohort.lanes
    return invited(cohort, cohort.terms(lanes=(replace(first, bound=100.0), *rest)))


def second_unmask():
    """After a good round: another set, in the same attempt and in a next one."""
    cohort = Cohort()
    guests, result = told(cohort, lambda index, message: message)
    assert result.total is not None
    for guest in guests.values():
        guest.said.clear()
        guest.hear(Survivors((1, 2, 3, 4)), cohort.terms())
        guest.hear(Opening((1, 2, 3, 4), ()), cohort.terms())
    again = invited(cohort, cohort.terms(occasion={"attempt": 1}))
    assert all(guest.aborted and not guest.said for guest in again.values())
    return guests


LIES = (
    both_lists,
    split_survivors,
    repeated_id,
    own_death,
    swapped_key,
    small_threshold,
    stale_terms,
    replayed_request,
    another_model,
    cohort_of_two,
    changed_clip,
    second_unmask,
)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_every_site_gives_up_and_releases_nothing(lie):
    guests = lie()
    assert [name for name, guest in guests.items() if not guest.aborted] == []
    assert released(guests) == []


def test_there_are_twelve_lies():
    assert len(LIES) == 12


@pytest.mark.parametrize(
    ("lie", "name"),
    [
        (both_lists, "check"),
        (split_survivors, "check"),
        (repeated_id, "_quorum"),
        (own_death, "_quorum"),
        (replayed_request, "check"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_harness_notices_a_site_that_does_not_check(lie, name, monkeypatch):
    monkeypatch.setattr(sessions.Session, name, lambda self, *arguments: None)
    guests = lie()
    assert released(guests) or any(not guest.aborted for guest in guests.values())


def test_harness_notices_a_site_that_takes_unsigned_keys(monkeypatch):
    monkeypatch.setattr(sessions, "signed_by", lambda *arguments: True)
    monkeypatch.setattr(sessions.Session, "_quorum", lambda self, *arguments: None)
    guests = swapped_key()
    assert any(not guest.aborted for guest in guests.values()) or released(guests)


def test_forged_invitation_and_a_stranger_s_key_are_refused():
    cohort = Cohort()
    terms = cohort.terms()
    guest = cohort.guests(terms)["site001"]
    bare = Invitation(terms)
    forged = replace(bare, signature=Key("somebody").sign(bare.signed()))
    guest.hear(Invite(forged, guest.approved, guest.entropy, 0.0), terms)
    assert "signature" in guest.aborted
    strange = replace(terms.cohort[4], key=Key("stranger").public_bytes)
    guests = invited(cohort, cohort.terms(cohort=(*terms.cohort[:4], strange)))
    assert all("pinned" in guest.aborted for guest in guests.values())


def test_all_faults_of_terms_are_told_at_once():
    cohort = Cohort()
    terms = cohort.terms(threshold=9, degree=3, lanes=(Lane("w", 0), Lane("w", 1, -1.0)))
    places = [fault.place for fault in terms.faults()]
    assert places == ["threshold", "degree", "lanes", "lane w", "lane w"]


def test_graph_follows_the_sites_keys_and_not_the_server():
    cohort = Cohort(30, degree=4)
    terms = cohort.terms()
    one = play(terms, SERVER.sign, cohort.guests(terms, seed=1)).server
    two = play(terms, SERVER.sign, Cohort(30, degree=4).guests(terms, seed=2)).server
    assert isinstance(one, Server)
    assert one.circles != two.circles
    assert one.roster == roster_hash(tuple(one.of("committing").values()), terms.context)
