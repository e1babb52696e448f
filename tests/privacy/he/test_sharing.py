"""A secret key for all sites through a server: who is in the terms gets it, and nobody else can make one."""

import os
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.core.errors import AuthError
from atoll.privacy.he.rounds import key_lane
from atoll.privacy.he.sharing import (
    Greeting,
    Parcel,
    _roster,
    greeting,
    key_name,
    parcel,
    unpacked_key,
)
from atoll.privacy.secagg.terms import Member, Occasion, Terms

NAMES = ("east", "north", "west")
KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32)) for name in NAMES}
SEEDS = {name: name.encode().ljust(32, b"s") for name in NAMES}
SECRET = b"the secret key of all of them" * 100


def terms(job="job"):
    cohort = tuple(Member(name, KEYS[name].public_key().public_bytes_raw()) for name in NAMES)
    return Terms(Occasion("lagoon", job, 0, 0, ""), cohort, 3, (key_lane(3),), 1e9)


TERMS = terms()
GREETINGS = [greeting(TERMS, i, SEEDS[n], KEYS[n].sign) for i, n in enumerate(NAMES, 1)]
DEALT = parcel(TERMS, 1, SEEDS["east"], GREETINGS, SECRET, KEYS["east"].sign)


def found(name, greetings=GREETINGS, dealt=DEALT, at=TERMS):
    return unpacked_key(at, NAMES.index(name) + 1, SEEDS[name], greetings, dealt, dealer=1)


@pytest.mark.parametrize("name", NAMES)
def test_every_site_finds_the_key_the_dealer_as_well(name):
    assert found(name) == SECRET


def test_what_passes_through_the_server_does_not_hold_the_key_nor_any_part_of_it():
    passed = DEALT.sealed + b"".join(DEALT.wraps) + key_name(SECRET)
    assert SECRET[:16] not in passed
    assert not any(seed in passed for seed in SEEDS.values())


def test_a_stopped_site_says_the_same_once_more():
    assert greeting(TERMS, 2, SEEDS["north"], KEYS["north"].sign) == GREETINGS[1]
    assert parcel(TERMS, 1, SEEDS["east"], GREETINGS, SECRET, KEYS["east"].sign) == DEALT


def test_a_server_that_puts_a_key_of_its_own_in_a_site_s_place_is_found_by_dealer_and_sites():
    own = greeting(TERMS, 3, os.urandom(32), Ed25519PrivateKey.generate().sign)
    swapped = [*GREETINGS[:2], own]
    with pytest.raises(AuthError, match="west is to have said"):
        parcel(TERMS, 1, SEEDS["east"], swapped, SECRET, KEYS["east"].sign)
    with pytest.raises(AuthError, match="west is to have said"):
        found("north", greetings=swapped)


def test_a_key_that_the_server_has_made_is_not_taken():
    made = parcel(TERMS, 1, SEEDS["east"], GREETINGS, SECRET, Ed25519PrivateKey.generate().sign)
    with pytest.raises(AuthError, match="does not come from the site that deals it"):
        found("north", dealt=made)


@pytest.mark.parametrize("change", ["sealed", "wraps"])
def test_a_changed_parcel_is_not_taken(change):
    if change == "sealed":
        other = replace(DEALT, sealed=DEALT.sealed[:-1] + b"x")
    else:
        other = replace(DEALT, wraps=(DEALT.wraps[0], DEALT.wraps[2], DEALT.wraps[1]))
    with pytest.raises(AuthError):
        found("north", dealt=other)


def test_what_was_said_for_one_run_is_worth_nothing_in_another():
    with pytest.raises(AuthError):
        found("north", at=terms("another job"))


def test_the_name_of_a_key_is_its_own():
    assert key_name(SECRET) == key_name(bytes(SECRET)) != key_name(SECRET + b"x")


@pytest.mark.parametrize("channel", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_site_that_says_a_key_nobody_can_agree_on_is_named(channel):
    signed = KEYS["west"].sign(Greeting.signed(TERMS.context, 3, channel))
    spoilt = [*GREETINGS[:2], Greeting(channel, signed)]
    with pytest.raises(AuthError, match="west") as found:
        parcel(TERMS, 1, SEEDS["east"], spoilt, SECRET, KEYS["east"].sign)
    assert found.value.site == "west"


def test_a_dealer_that_seals_something_else_for_one_site_is_named_by_it():
    wraps = (*DEALT.wraps[:2], bytes(48))
    roster = _roster(TERMS, GREETINGS)
    signature = KEYS["east"].sign(Parcel.signed(roster, 1, DEALT.sealed, wraps))
    with pytest.raises(AuthError, match="east has dealt does not open") as caught:
        found("west", dealt=Parcel(DEALT.sealed, wraps, signature))
    assert caught.value.site == "east"
