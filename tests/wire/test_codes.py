"""Join codes: read back however they are typed, and a slip is told by its place."""

import re
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import WireError
from atoll.wire.codes import Invitation, encode_code, read_code, split_address

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
GIVEN = Invitation("atoll.example.org:8443", bytes(range(32)), bytes(range(100, 116)))
CODE = encode_code(GIVEN)

addresses = st.one_of(
    st.from_regex(r"[a-z][a-z0-9.-]{0,40}", fullmatch=True),
    st.just("[2001:db8::1]"),
    st.just("192.168.0.7"),
).flatmap(lambda host: st.integers(1, 65_535).map(lambda port: f"{host}:{port}"))


@given(addresses, st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_a_code_is_read_back(address, certificate, secret):
    invitation = Invitation(address, certificate, secret)
    code = encode_code(invitation)
    assert re.fullmatch(r"atoll(-[0-9A-HJKMNP-TV-Z]{5})+", code)
    assert read_code(code) == invitation


def test_case_blanks_dashes_and_look_alikes_do_not_matter():
    for typed in (
        CODE.lower(),
        CODE.replace("-", ""),
        CODE.replace("-", " \n"),
        f"  {CODE}\n",
        CODE[:6] + CODE[6:].replace("0", "O").replace("1", "l"),
        CODE[:6] + CODE[6:].replace("0", "o").replace("1", "i"),
    ):
        assert read_code(typed) == GIVEN


def test_every_slip_of_one_digit_is_found_in_its_group():
    groups = CODE.split("-")
    for n, group in enumerate(groups[1:], 1):
        for place in range(5):
            for digit in DIGITS:
                if digit != group[place]:
                    wrong = group[:place] + digit + group[place + 1 :]
                    with pytest.raises(WireError, match=rf"group {n} of the code \({wrong}\)"):
                        read_code("-".join([*groups[:n], wrong, *groups[n + 1 :]]))


@settings(max_examples=150)
@given(st.data())
def test_what_is_missing_doubled_swapped_or_mixed_is_refused(data):
    groups = CODE.split("-")[1:]
    other = encode_code(Invitation(GIVEN.address, secrets.token_bytes(32), bytes(16))).split("-")[
        1:
    ]
    n = data.draw(st.integers(0, len(groups) - 1))
    m = data.draw(st.integers(0, len(groups) - 1).filter(lambda m: groups[m] != groups[n]))
    swapped = list(groups)
    swapped[n], swapped[m] = swapped[m], swapped[n]
    for wrong in (
        groups[:n] + groups[n + 1 :],
        groups[:n],
        [*groups[:n], groups[n], *groups[n:]],
        swapped,
        [*groups, *groups],
        [*groups[: n + 1], *other[n + 1 :]] if groups[n + 1 :] != other[n + 1 :] else groups[:1],
        [*groups, "00"],
    ):
        with pytest.raises(WireError, match=r"slip|incomplete"):
            read_code("-".join(["atoll", *wrong]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "begins with 'atoll-'"),
        ("hello", "begins with 'atoll-'"),
        ("atoll-", "incomplete"),
        (CODE[:8] + "U" + CODE[9:], "'U' in group 1"),
        (CODE[:14] + "!" + CODE[15:], "'!' in group 2"),
        (CODE[:14] + "ä" + CODE[15:], "'Ä' in group 2"),
        ("atoll-" + "0" * 100_000, "too long"),
    ],
)
def test_what_is_no_code_is_told_so(text, told):
    with pytest.raises(WireError, match=re.escape(told)):
        read_code(text)


def test_a_newer_code_asks_for_a_newer_version(monkeypatch):
    monkeypatch.setattr("atoll.wire.codes._VERSION", 2)
    newer = encode_code(GIVEN)
    monkeypatch.undo()
    with pytest.raises(WireError, match="version 2"):
        read_code(newer)


def test_the_secret_is_not_shown():
    assert GIVEN.secret.hex() not in repr(GIVEN)
    assert "secret" not in repr(GIVEN)


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "host:0", "host:65536", "host:99999999", "host:a", "ho st:1", "::1:1",
     "http://host:1", "host:1/x", "user@host:1", "h\n:1", "host:\uff11", "-host:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address):
    with pytest.raises(WireError):
        split_address(address)
    with pytest.raises(WireError):
        Invitation(address, bytes(32), bytes(16))


def test_parts_have_their_length():
    for certificate, secret in ((bytes(31), bytes(16)), (bytes(32), bytes(17))):
        with pytest.raises(WireError, match="32 bytes and a secret of 16"):
            Invitation("a:1", certificate, secret)
    with pytest.raises(WireError, match="255"):
        Invitation("a" * 252 + ":8443", bytes(32), bytes(16))
