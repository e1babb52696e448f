"""Both machines: every phase at every event; sites that do not keep to the protocol; wire capture."""

from dataclasses import replace

import numpy as np
import pytest
from cohorts import SERVER, Cohort, integers, plain_sum
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import JobError
from atoll.privacy.secagg import server as at_server
from atoll.privacy.secagg import session as sessions
from atoll.privacy.secagg import site as at_site
from atoll.privacy.secagg.inprocess import play
from atoll.privacy.secagg.masks import MaskPlan, masked_chunks
from atoll.privacy.secagg.messages import (
    Commitment,
    Deal,
    Dealt,
    Invitation,
    Opening,
    Pledge,
    Release,
    Roster,
    Survivors,
    Vector,
)
from atoll.privacy.secagg.terms import Lane

SITE_EVENTS = (
    at_site.Invite,
    Roster,
    Dealt,
    Survivors,
    Opening,
    at_site.Kept,
    at_site.Denied,
    at_site.Masked,
    at_site.Tick,
    at_site.Cancel,
)
SERVER_EVENTS = (
    *(Commitment, Deal, Vector, Pledge, Release),
    *(at_server.Folded, at_server.Spoiled, at_server.Left, at_server.Close, at_server.Cancel),
)


def test_tables_have_a_rule_for_every_phase_at_every_event():
    assert set(at_site.RULES) == {(p, e) for p in at_site.PHASES for e in SITE_EVENTS}
    assert set(at_server.RULES) == {(p, e) for p in at_server.PHASES for e in SERVER_EVENTS}


def recorded():
    """All messages of one good round, and the machines at every moment of it."""
    cohort = Cohort()
    terms = cohort.terms()
    guests, messages, copies = cohort.guests(terms), [], []

    def relay(name, message):
        if name == "site001":
            copies.append(guests[name].site)
        messages.append((name, message))
        return message

    play(terms, SERVER.sign, guests, relay)
    copies.append(guests["site001"].site)
    return terms, messages, copies


TERMS, MESSAGES, COPIES = recorded()
TO_FIRST = [
    message
    for name, message in MESSAGES
    if name == "site001" and isinstance(message, Roster | Dealt | Survivors | Opening)
]


@pytest.mark.parametrize("copy", COPIES, ids=lambda site: site.phase)
@pytest.mark.parametrize("message", TO_FIRST, ids=lambda m: type(m).__name__)
def test_a_message_at_the_wrong_time_ends_the_attempt_and_a_copy_does_not(copy, message):
    fits = {"committed": Roster, "shared": Dealt, "given": Survivors, "pledged": Opening}
    moved, effects = at_site.step(copy, message)
    if message == copy.heard:
        assert (moved, effects) == (copy, copy.said)
    elif message in copy.past:
        assert (moved, effects) == (copy, ())
    elif fits.get(copy.phase) is type(message):
        assert moved.phase != "aborted"
    elif copy.phase == "aborted":
        assert effects == ()
    else:
        assert moved.phase == "aborted"
        assert moved.session is None
        assert [type(effect) for effect in effects] == [at_site.Abort]


@pytest.mark.parametrize("copy", COPIES[1:], ids=lambda site: site.phase)
def test_expiry_ends_what_has_not_ended(copy):
    before, _ = at_site.step(copy, at_site.Tick(99.0))
    after, _ = at_site.step(copy, at_site.Tick(100.0))
    assert before == copy
    assert after.phase == ("released" if copy.phase == "released" else "aborted")


def events():
    """What may reach a server: answers of any site in any order, twice, and what its shell tells."""
    said = [m for _, m in MESSAGES if isinstance(m, SERVER_EVENTS[:5])]
    index = st.integers(0, 7)
    return st.lists(
        st.sampled_from(said)
        | st.builds(at_server.Folded, index)
        | st.builds(at_server.Spoiled, index, st.just("bad"))
        | st.builds(at_server.Left, index)
        | st.just(at_server.Close()),
        max_size=40,
    )


@settings(max_examples=60, deadline=None)
@given(events())
def test_server_in_any_storm_ends_at_most_once_and_goes_only_forward(storm):
    server, _ = at_server.Server.start(TERMS, SERVER.sign)
    ends, phases = [], [0]
    for event in storm:
        server, effects = at_server.step(server, event)
        ends += [e for e in effects if isinstance(e, at_server.Unmask | at_server.GiveUp)]
        phases.append(at_server.PHASES.index(server.phase))
    for _ in range(10):
        server, effects = at_server.step(server, at_server.Close())
        ends += [e for e in effects if isinstance(e, at_server.Unmask | at_server.GiveUp)]
        for sender in server.of("collecting"):
            server, effects = at_server.step(server, at_server.Folded(sender))
            ends += [e for e in effects if isinstance(e, at_server.Unmask | at_server.GiveUp)]
    assert phases == sorted(phases)
    assert len(ends) == 1
    assert server.phase in ("done", "failed")


def test_terms_that_no_round_may_have_do_not_start():
    with pytest.raises(JobError, match="cannot be like this"):
        at_server.Server.start(replace(TERMS, threshold=2), SERVER.sign)


def played(change, at="site002", lanes=None):
    """A round in which one site's words are changed on their way out, signed anew by that site."""
    cohort = Cohort() if lanes is None else Cohort(5, lanes)
    terms = cohort.terms()
    guests = cohort.guests(terms)

    def relay(name, message):
        return change(message, cohort.keys[name], guests) if name == at else message

    return terms, guests, play(terms, SERVER.sign, guests, relay)


def test_a_wrong_share_is_found_and_its_sender_named():
    def change(message, key, guests):
        if not isinstance(message, Release):
            return message
        first, *rest = message.shares
        return replace(message, shares=(replace(first, value=bytes(33)), *rest))

    terms, guests, result = played(change)
    assert list(result.blamed) == ["site002"]
    assert "another share of site001" in result.blamed["site002"]
    assert integers(result.total) == plain_sum(terms, guests, guests)


def test_a_site_that_releases_the_other_kind_is_named():
    def change(message, key, guests):
        if not isinstance(message, Release):
            return message
        first, *rest = message.shares
        return replace(message, shares=(replace(first, kind="key"), *rest))

    assert list(played(change)[2].blamed) == ["site002"]


def dealt_anew(message, key, guests, seal):
    """A dealer whose envelopes hold something else, well signed."""
    if not isinstance(message, Deal):
        return message
    session = guests["site002"].site.session
    context, roster = session.terms.context, session.roster
    changed = [seal(envelope) for envelope in message.envelopes]
    signed = (replace(e, signature=key.sign(e.signed(context, roster))) for e in changed)
    return Deal(message.sender, tuple(signed))


def test_a_dealer_of_shares_that_do_not_open_is_named_by_its_peers():
    def change(message, key, guests):
        return dealt_anew(message, key, guests, lambda e: replace(e, sealed=bytes(len(e.sealed))))

    _, guests, result = played(change)
    assert result.total is None
    assert {guest.aborted for guest in guests.values()} == {"a sealed share does not open"}
    assert {guest.blames for guest in guests.values()} == {"site002"}


def test_a_dealer_whose_shares_open_another_secret_is_named(monkeypatch):
    """Consistent shares of a seed that it had not committed itself to."""
    true = sessions.commit_seed

    def lying(seed, context, index):
        return true(seed, context, index) if index != 2 else bytes(32)

    monkeypatch.setattr(sessions, "commit_seed", lying)
    cohort = Cohort()
    terms = cohort.terms()
    result = play(terms, SERVER.sign, cohort.guests(terms))
    assert result.total is None
    assert "site002" in result.blamed
    assert "another secret" in result.failure


def test_an_unsigned_envelope_is_blamed_on_its_dealer_before_it_reaches_anybody():
    def change(message, key, guests):
        if not isinstance(message, Deal):
            return message
        broken = tuple(replace(e, signature=bytes(64)) for e in message.envelopes)
        return replace(message, envelopes=broken)

    terms, guests, result = played(change)
    assert list(result.blamed) == ["site002"]
    assert integers(result.total) == plain_sum(terms, guests, result.members)


@pytest.mark.parametrize("field", ["channel", "mask"])
@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_site_whose_public_key_nobody_can_agree_on_goes_by_name_and_the_others_go_on(field, key):
    """Each honest site would give up at such a key, without a word on whose it was, attempt after attempt."""

    def change(message, signer, guests):
        if not isinstance(message, Commitment):
            return message
        context = guests["site002"].site.at.terms.context
        spoilt = replace(message, **{field: key})
        return replace(spoilt, signature=signer.sign(spoilt.signed(context)))

    terms, guests, result = played(change)
    assert list(result.blamed) == ["site002"]
    assert "no usable X25519 key" in result.blamed["site002"]
    assert result.members == ("site001", "site003", "site004", "site005")
    assert integers(result.total) == plain_sum(terms, guests, result.members)


def test_a_site_that_is_shown_such_a_key_blames_whoever_has_signed_it(monkeypatch):
    """A server that does not look passes it on."""
    monkeypatch.setattr(at_server, "usable", lambda key: True)

    def change(message, signer, guests):
        if not isinstance(message, Commitment):
            return message
        context = guests["site002"].site.at.terms.context
        spoilt = replace(message, mask=bytes(32))
        return replace(spoilt, signature=signer.sign(spoilt.signed(context)))

    _, guests, result = played(change)
    assert result.total is None
    honest = [guest for name, guest in guests.items() if name != "site002"]
    assert {guest.blames for guest in honest} == {"site002"}


def test_a_second_other_answer_is_an_equivocation_and_the_first_stays():
    server, _ = at_server.Server.start(TERMS, SERVER.sign)
    first = next(m for _, m in MESSAGES if isinstance(m, Commitment))
    server, _ = at_server.step(server, first)
    same, effects = at_server.step(server, first)
    assert (same, effects) == (server, ())
    same, effects = at_server.step(server, replace(first, mask=bytes(32)))
    assert same == server
    assert [type(effect) for effect in effects] == [at_server.Blame]


def test_no_word_of_a_masked_input_follows_the_number_of_examples():
    """One site's weight grows from run to run; without masks every word would follow it."""
    lanes = (Lane("w", 20), Lane("weight", 1), Lane("loss", 1, 10.0, 64))
    counts = np.arange(1, 61) * 15
    masked, clear = [], []
    for count in counts:
        cohort = Cohort(5, lanes)
        terms = cohort.terms(occasion={"round": int(count)})
        guests, share = cohort.guests(terms, seed=int(count)), count / 1000
        guest = guests["site001"]
        guest.values = {"w": np.full(20, 0.5 * share), "weight": [share], "loss": [share * 3]}
        guest.values = {name: np.asarray(vector) for name, vector in guest.values.items()}

        def relay(name, message, guest=guest):
            if name == "site001" and isinstance(message, Vector):
                masked.append(words(guest.chunks))
                raise InterruptedError
            return message

        with pytest.raises(InterruptedError):
            play(terms, SERVER.sign, guests, relay)
        clear.append(words(masked_chunks(terms, MaskPlan((), ()), guest.values, None)))
    assert min(follows(clear, counts)[:-1]) > 0.999
    assert max(follows(masked, counts)) < 0.6  # 22 words, 60 runs: more than 4 standard errors


def words(chunks):
    """The ring words of a masked input as numbers (a 64-bit lane's by their high half)."""
    parts = [np.frombuffer(bytes(chunk), np.int32).astype(float) for chunk in chunks]
    return np.concatenate([*parts[:-1], parts[-1][1::2]])


def follows(rows, counts):
    return [abs(np.corrcoef(column, counts)[0, 1]) for column in np.array(rows).T]


def test_invitation_is_bound_to_its_terms():
    other = replace(TERMS, expiry=101.0)
    assert Invitation(TERMS).signed() != Invitation(other).signed()


@pytest.mark.parametrize("field", ["sealed", "hashes", "target", "source"])
def test_an_envelope_changed_on_its_way_ends_the_attempt_and_blames_no_peer(field):
    def change(message, key, guests):
        if not isinstance(message, Dealt):
            return message
        first, *rest = message.envelopes
        wrong = {
            "sealed": bytes(len(first.sealed)),
            "hashes": (first.hashes[0], bytes(32)),
            "target": 3,
            "source": 2,
        }
        return replace(message, envelopes=(replace(first, **{field: wrong[field]}), *rest))

    _, guests, result = played(change)
    assert guests["site002"].aborted
    assert guests["site002"].blames == ""
    assert "site002" not in result.members
