"""What a site never does twice, whatever crashes, older copies and servers there are."""

from collections import defaultdict

import pytest
from cohorts import SERVER, Cohort, integers, plain_sum
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import StateError
from atoll.privacy.secagg import inprocess, ledger
from atoll.privacy.secagg.inprocess import play
from atoll.privacy.secagg.ledger import Book, Record, objection
from atoll.privacy.secagg.messages import Opening, Pledge, Release, Survivors, Vector
from atoll.privacy.secagg.site import Keep, Say, Site, step
from atoll.privacy.secagg.terms import Occasion

AT = Occasion("lagoon", "job", 1, 0, "model 1")
NEXT = Occasion("lagoon", "job", 1, 1, "model 1")
NAMES = ("a", "b", "c", "d", "e")


def written(*kinds, at=AT, members=NAMES):
    """A book with these steps of one attempt."""
    book = Book()
    for kind in kinds:
        value = b"set" if kind in ("pledge", "release") else kind.encode()
        book.keep(Record(kind, at, value, members if value == b"set" else ()))
    return book


def test_steps_are_written_in_order_and_the_same_one_again_changes_nothing():
    book = written("join", "input", "pledge", "release")
    book.keep(Record("pledge", AT, b"set", NAMES))
    assert [record.kind for record in book.records] == ["join", "input", "pledge", "release"]


@pytest.mark.parametrize(
    ("before", "record", "reason"),
    [
        (("join",), Record("join", AT, b"other keys"), "joined already"),
        (("join", "input"), Record("input", AT, b"other root"), "another input"),
        (("join", "input", "pledge"), Record("pledge", AT, b"other", NAMES), "another pledge"),
        (("join", "input", "pledge"), Record("release", AT, b"other", NAMES), "another set"),
        (("join",), Record("pledge", AT, b"set", NAMES), "no input before"),
        ((), Record("input", AT, b"input"), "attempt -1"),
        (("join", "input", "pledge", "release"), Record("join", NEXT, b"join"), "released"),
        (
            ("join", "input", "pledge", "release"),
            Record("release", AT, b"other", NAMES),
            "released",
        ),
    ],
)
def test_what_was_done_once_is_not_done_again(before, record, reason):
    with pytest.raises(StateError, match=reason):
        written(*before).keep(record)


def buffered(job, round, mark, source="v7", members=NAMES):
    """A book in which an update from ``source`` is in one sum."""
    at = Occasion("lagoon", job, round, 0, mark)
    steps = (("join", ()), ("input", ()), ("pledge", members), ("release", members))
    return [
        Record(kind, at, b"set" if named else kind.encode(), named, source) for kind, named in steps
    ]


def test_an_update_is_in_the_sum_of_one_buffer_of_a_run():
    book = Book()
    for record in buffered("job", 1, "mark 1"):
        book.keep(record, 3)
    with pytest.raises(StateError, match="in the sum of round 1 already"):
        book.keep(buffered("job", 2, "mark 2")[0], 3)
    for record in buffered("job", 2, "mark 2", source="v8"):
        book.keep(record, 3)


@pytest.mark.parametrize(
    ("mark", "members", "near"),
    [
        ("mark 1", NAMES, False),  # the same sum once more
        ("mark 2", NAMES, True),  # the same sites, and some from other models
        ("mark 2", ("a", "b", "c", "d", "f"), True),
        ("mark 2", ("a", "f", "g", "h", "i"), False),
        ("v7", ("a", "b", "c", "d", "f"), True),  # a round in which all started from that model
    ],
)
def test_over_runs_sums_that_hold_one_update_are_apart_as_others_are(mark, members, near):
    book = Book()
    for record in buffered("job", 1, "mark 1"):
        book.keep(record, 3)
    *before, pledge, _ = buffered("other job", 1, mark, "" if mark == "v7" else "v7", members)
    for record in before:
        book.keep(record, 3)
    if near:
        with pytest.raises(StateError, match="could be told from the sum"):
            book.keep(pledge, 3)
    else:
        book.keep(pledge, 3)


def test_a_new_attempt_ends_the_one_before_it():
    book = written("join", "input", "pledge")
    book.keep(Record("join", NEXT, b"join"))
    with pytest.raises(StateError, match="taken the place"):
        book.keep(Record("release", AT, b"set", NAMES))
    with pytest.raises(StateError, match="joined already"):
        book.keep(Record("join", AT, b"older"))


@pytest.mark.parametrize(
    ("members", "model", "refused"),
    [
        (NAMES, "model 1", False),
        (("a", "b", "c", "d"), "model 1", True),
        (("a", "b", "c", "d", "f"), "model 1", True),
        (("a", "b", "f", "g"), "model 1", False),
        (("a", "b", "c", "d"), "model 2", False),
    ],
)
def test_a_sum_from_which_few_sites_could_be_subtracted_is_refused(members, model, refused):
    book = written("join", "input", "pledge", "release")
    later = Occasion("lagoon", "other job", 1, 0, model)
    for kind in ("join", "input"):
        book.keep(Record(kind, later, kind.encode()))
    reason = objection(book.records, Record("pledge", later, b"p", members), apart=3)
    assert bool(reason) is refused


def test_a_cohort_without_one_site_on_the_same_model_gets_no_sum():
    cohort = Cohort()
    terms = cohort.terms()
    assert play(terms, SERVER.sign, cohort.guests(terms)).total is not None
    other = cohort.terms(occasion={"round": 2})
    guests = cohort.guests(other)
    result = play(other, SERVER.sign, {n: g for n, g in guests.items() if n != "site005"})
    assert result.total is None
    assert all("told from the sum" in guests[name].aborted for name in sorted(guests)[:4])


SETS = ((1, 2, 3, 4, 5), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 4, 5))


class Haunted:
    """Site 1, whose shell may bring back any older copy of the machine, and a server with all pledges.

    The other four sites pledge to whatever the server wishes: only site 1 itself stands in its way.
    """

    def __init__(self):
        self.cohort = Cohort()
        self.terms = self.cohort.terms()
        self.guests = self.cohort.guests(self.terms)
        self.copies, self.said = [], []
        guest = self.guests["site001"]
        spied = guest.hear

        def hear(event, terms):
            self.copies.append(guest.site)
            words = spied(event, terms)
            self.said += words
            self.copies.append(guest.site)
            return words

        guest.hear = hear
        self.guest = guest
        stop = play(self.terms, SERVER.sign, self.guests, self._until_survivors)
        self.server = stop.server

    def _until_survivors(self, name, message):
        return None if isinstance(message, Survivors) else message

    def forged(self, members):
        """An opening with good pledges of all members to this set, site 1 not asked."""
        server, keys = self.server, list(self.cohort.keys.values())
        signed = Pledge.signed(self.terms.context, server.roster, server.dealers, members)
        pledges = tuple(Pledge(i, keys[i - 1].sign(signed)) for i in members)
        return Opening(members, pledges)

    def act(self, action):
        kind, number = action
        if kind == "restore":
            self.guest.site = self.copies[number % len(self.copies)]
        elif kind == "survivors":
            self.guest.hear(Survivors(SETS[number % len(SETS)]), self.terms)
        elif kind == "opening":
            self.guest.hear(self.forged(SETS[number % len(SETS)]), self.terms)
        else:  # another input under what masks there are
            self.guest.values = self.cohort.values("site001", number)
            self.guest.hear(self.dealt(), self.terms)

    def dealt(self):
        return next(m for c in self.copies for m in (*c.past, c.heard) if "Dealt" in str(type(m)))

    def violations(self):
        """Dealers of whom both kinds of share went out; pairs of inputs or pledges that differ."""
        kinds = defaultdict(set)
        for word in self.said:
            for share in word.shares if isinstance(word, Release) else ():
                kinds[share.dealer].add(share.kind)
        found = [dealer for dealer, both in kinds.items() if len(both) > 1]
        for kind in (Vector, Pledge):
            different = {word for word in self.said if isinstance(word, kind)}
            found += [kind.__name__] if len(different) > 1 else []
        return found


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["restore", "survivors", "opening", "input"]), st.integers(0, 40)),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(ACTIONS)
def test_one_kind_of_share_one_input_one_pledge_across_any_crashes(actions):
    site = Haunted()
    for action in actions:
        site.act(action)
    assert site.violations() == []


SPLIT = [
    ("survivors", 0),
    ("opening", 0),
    ("restore", -1),
    ("survivors", 1),
    ("opening", 1),
]


def attacked():
    """A copy from before the pledge is brought back after the release, and shown another set."""
    site = Haunted()
    given_at = len(site.copies) - 1
    for kind, number in SPLIT:
        site.act((kind, given_at if kind == "restore" else number))
    assert any(isinstance(word, Release) for word in site.said)
    return site


def test_an_older_copy_is_stopped_by_the_ledger_alone(monkeypatch):
    assert attacked().violations() == []
    monkeypatch.setattr(ledger, "objection", lambda *arguments: "")  # a ledger that forgets
    assert attacked().violations() != []


def test_nothing_is_said_before_its_record_is_durable():
    """The machine by hand: after each Keep it says nothing until it hears Kept for that record."""
    cohort = Cohort()
    terms = cohort.terms()
    guests = cohort.guests(terms)
    order = []

    def watched(site, event):
        moved, effects = step(site, event)
        if site.name == "site001":
            order.extend(
                type(e.message if isinstance(e, Say) else e.record).__name__
                + ("" if isinstance(e, Say) else f" {e.record.kind}")
                for e in effects
                if isinstance(e, Say | Keep)
            )
        return moved, effects

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess.at_site, "step", watched)
        result = play(terms, SERVER.sign, guests)
    assert order == [
        *("Record join", "Commitment", "Deal", "Record input", "Vector"),
        *("Record pledge", "Pledge", "Record release", "Release"),
    ]
    assert integers(result.total) == plain_sum(terms, guests, result.members)


def test_a_disk_that_fails_lets_nothing_out():
    cohort = Cohort()
    terms = cohort.terms()
    guests = cohort.guests(terms)

    class Full(Book):
        def keep(self, record, apart=0):
            if record.kind == "release":
                raise StateError("no space left")
            super().keep(record, apart)

    for guest in guests.values():
        guest.book = Full()
    result = play(terms, SERVER.sign, guests)
    assert result.total is None
    assert not any(isinstance(w, Release) for g in guests.values() for w in g.said)
    assert all(g.aborted == "no space left" for g in guests.values())


def test_secrets_are_not_shown_and_are_forgotten_at_the_end():
    cohort = Cohort()
    terms = cohort.terms()
    guests = cohort.guests(terms)
    play(terms, SERVER.sign, guests)
    site = guests["site001"].site
    assert isinstance(site, Site)
    assert (site.phase, site.session) == ("released", None)
    assert guests["site001"].entropy.hex() not in repr(guests["site001"])
    assert repr(guests["site001"].entropy) not in repr(guests["site001"])
