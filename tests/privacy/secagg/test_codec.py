"""Messages as bytes: every one comes back equal, and nothing else is read."""

import random

import pytest
from cohorts import SERVER, Cohort
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import WireError
from atoll.privacy.secagg.canonical import pack
from atoll.privacy.secagg.codec import MOST, read, written
from atoll.privacy.secagg.inprocess import play
from atoll.privacy.secagg.messages import Commitment, Pledge, Release, Survivors, Vector
from atoll.privacy.secagg.terms import Lane


def spoken() -> list:
    """Every message of one round, as it passed between server and sites."""
    cohort, heard = Cohort(5), []

    def relay(name, message):
        heard.append(message)
        return message

    terms = cohort.terms()
    play(terms, SERVER.sign, cohort.guests(terms), relay)
    return heard


MESSAGES = spoken()
KINDS = {type(message) for message in MESSAGES}


def test_every_message_of_a_round_comes_back_equal():
    assert len(KINDS) == 10
    for message in MESSAGES:
        assert read(type(message), written(message)) == message


def test_a_message_is_read_as_its_own_kind_only():
    for message in {type(m): m for m in MESSAGES}.values():
        for kind in KINDS - {type(message)}:
            with pytest.raises(WireError, match="no "):
                read(kind, written(message))


def test_a_lane_without_a_step_and_one_with_a_step_are_told_apart():
    terms = Cohort(lanes=(Lane("w", 3), Lane("n", 1, 10.0, 64, 1.0))).terms()
    (invitation,) = {m for m in MESSAGES if type(m).__name__ == "Invitation"}
    changed = type(invitation)(terms, b"")
    assert [lane.step for lane in read(type(changed), written(changed)).terms.lanes] == [None, 1.0]


def test_a_message_beyond_the_limit_is_neither_written_nor_read():
    with pytest.raises(WireError, match="degree"):
        written(Survivors(tuple(range(MOST))))
    with pytest.raises(WireError, match="at most"):
        read(Survivors, bytes(MOST + 1))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"s9:survivors",
        pack("survivors", (-1,)),
        pack("survivors", (2**60,)),
        pack("survivors", 1),
        pack("survivors", ("a",)),
        pack("survivors", (1,), (2,)),
        pack("survivors", (1,)) + b"i1:",
        b"t99999999999:" + pack("survivors", (1,)),
        b"t18:s9:survivorst4:i01:",
        b"t" * 5000,
        b"t5:" * 2000,
        pack("survivors", *[()] * 50),
    ],
)
def test_what_is_no_message_is_refused(raw):
    with pytest.raises(WireError):
        read(Survivors, raw)


def test_numbers_that_are_not_finite_are_refused():
    invitation = next(m for m in MESSAGES if type(m).__name__ == "Invitation")
    raw = written(invitation)
    for false in (b"f3:inf", b"f3:nan"):
        expiry = b"f%d:%b" % (len(float(invitation.terms.expiry).hex()), b"")
        assert expiry in raw
        start = raw.index(expiry)
        stop = start + len(expiry) + len(float(invitation.terms.expiry).hex())
        with pytest.raises(WireError):
            read(type(invitation), raw[:start] + false + raw[stop:])


def test_changed_bytes_give_another_message_or_an_error_and_never_a_crash():
    draw = random.Random(7)
    for message in {type(m): m for m in MESSAGES}.values():
        raw = written(message)
        for _ in range(400):
            changed = bytearray(raw)
            for _ in range(draw.randint(1, 4)):
                place = draw.randrange(len(changed))
                changed[place : place + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 2))
            try:
                found = read(type(message), bytes(changed))
            except WireError:
                continue
            assert written(found) == bytes(changed)


@given(raw=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error(raw):
    for kind in (Commitment, Vector, Pledge, Release, Survivors):
        try:
            assert written(read(kind, raw)) == raw
        except WireError:
            continue


@given(
    body=st.recursive(
        st.binary(max_size=40) | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4).map(tuple),
        max_leaves=12,
    )
)
def test_any_well_formed_parts_are_a_message_or_an_error(body):
    for kind in (Commitment, Vector, Pledge, Release, Survivors):
        raw = pack(kind.__name__.lower(), *(body if isinstance(body, tuple) else (body,)))
        try:
            assert written(read(kind, raw)) == raw
        except WireError:
            continue
