"""Signatures: the standard's own example, another implementation as the judge, and every forgery refused."""

import base64
import datetime
import hashlib
import time
import types

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    algorithms,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import AuthError
from atoll.wire.identity import Identity, check_signature
from atoll.wire.signatures import (
    Window,
    digest_of,
    read_request,
    sign_request,
    sign_response,
    verify,
    verify_response,
)

COVERED = (
    "@method", "@path", "@query", "content-digest", "atoll-federation", "atoll-epoch", "atoll-sequence",
)  # fmt: skip
ANSWERED = ("@status", "content-digest", "atoll-sequence", "atoll-answers")

PRIVATE = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
-----END PRIVATE KEY-----
"""
PUBLIC = b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=
-----END PUBLIC KEY-----
"""
BASE = b"""\
"date": Tue, 20 Apr 2021 02:07:55 GMT
"@method": POST
"@path": /foo
"@authority": example.com
"content-type": application/json
"content-length": 18
"@signature-params": ("date" "@method" "@path" "@authority" "content-type" "content-length")\
;created=1618884473;keyid="test-key-ed25519\""""
VECTOR = base64.b64decode(
    "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
)

KEY = Identity(load_pem_private_key(PRIVATE, None))
OTHER = Identity.fresh()


class Keys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id):
        return KEY.key.public_key() if key_id == KEY.fingerprint else None

    def resolve_private_key(self, key_id):
        return KEY.key


SIGNER = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys())
JUDGE = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=Keys())


def signed(key=KEY, *, method="POST", path="/v1/results/a", query="x=1", body=b"hi", **changes):
    given = {"federation": "f", "epoch": 3, "sequence": 17, "created": int(time.time())} | changes
    return sign_request(
        key, method=method, path=path, query=query, body_digest=digest_of(body), **given
    )


def request(method, path, query, headers):
    url = f"https://example.com{path}" + (f"?{query}" if query else "")
    return types.SimpleNamespace(method=method, url=url, headers=dict(headers))


def test_the_example_of_rfc_9421_b_2_6():
    assert KEY.public_bytes == load_pem_public_key(PUBLIC).public_bytes_raw()
    assert KEY.sign(BASE) == VECTOR
    check_signature(KEY.public_bytes, VECTOR, BASE)
    with pytest.raises(AuthError):
        check_signature(KEY.public_bytes, VECTOR, BASE.replace(b"/foo", b"/fop"))


paths = st.text("abcXYZ019-._~!$&'()*+,;=:@", max_size=12).map(lambda s: "/v1/" + s)
queries = st.text("abc019-._~=&+,:@/?%", max_size=12).map(lambda s: s.replace("%", "%41"))


@settings(deadline=None, max_examples=60)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    path=paths,
    query=queries,
    body=st.binary(max_size=50),
    federation=st.from_regex(r"[!-~]{1,30}", fullmatch=True),
    epoch=st.integers(0, 10**15),
    sequence=st.integers(0, 10**15),
)
def test_another_implementation_gives_and_takes_the_same_signature(
    method, path, query, body, federation, epoch, sequence
):
    now = datetime.datetime.now().replace(microsecond=0)
    ours = signed(
        method=method,
        path=path,
        query=query,
        body=body,
        federation=federation,
        epoch=epoch,
        sequence=sequence,
        created=int(now.timestamp()),
    )
    (found,) = JUDGE.verify(
        request(method, path, query, ours),
        expect_tag="atoll",
        require_components=COVERED,
        body=body,
    )
    assert found.parameters["keyid"] == KEY.fingerprint

    bare = {k: v for k, v in ours.items() if not k.startswith("signature")}
    theirs = request(method, path, query, bare)
    SIGNER.sign(
        theirs,
        key_id=KEY.fingerprint,
        created=now,
        label="atoll",
        tag="atoll",
        covered_component_ids=COVERED,
        body=body,
        use_existing_digest=True,
    )
    claim = read_request(method, path, query, theirs.headers)
    verify(claim, KEY.public_bytes)
    assert {k.lower(): v for k, v in theirs.headers.items()} == ours
    assert (claim.federation, claim.epoch, claim.sequence) == (federation, epoch, sequence)
    assert claim.digest == hashlib.sha256(body).digest()


@settings(deadline=None, max_examples=30)
@given(
    status=st.integers(200, 599),
    body=st.binary(max_size=50),
    sequence=st.integers(0, 10**15),
    answers=st.binary(min_size=64, max_size=64),
)
def test_another_implementation_agrees_on_answers(status, body, sequence, answers):
    now = datetime.datetime.now().replace(microsecond=0)
    ours = sign_response(
        KEY,
        status=status,
        body_digest=digest_of(body),
        sequence=sequence,
        answers=answers,
        created=int(now.timestamp()),
    )
    asked = request("GET", "/", "", {})
    reply = types.SimpleNamespace(status_code=status, headers=dict(ours), request=asked)
    JUDGE.verify(reply, expect_tag="atoll", require_components=ANSWERED, body=body)

    bare = {k: v for k, v in ours.items() if not k.startswith("signature")}
    theirs = types.SimpleNamespace(status_code=status, headers=bare, request=asked)
    SIGNER.sign(
        theirs,
        key_id=KEY.fingerprint,
        created=now,
        label="atoll",
        tag="atoll",
        covered_component_ids=ANSWERED,
        body=body,
        use_existing_digest=True,
    )
    digest = verify_response(
        KEY.public_bytes, status, theirs.headers, sequence=sequence, answers=answers
    )
    assert digest == hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"path": "/v1/results/b"},
        {"query": ""},
        {"query": "x=2"},
        {"atoll-federation": "g"},
        {"atoll-epoch": "4"},
        {"atoll-sequence": "18"},
        {"content-digest": f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"},
        {"signature-input": ("created=1", "created=2")},
        {"signature-input": (KEY.fingerprint, OTHER.fingerprint)},
        {"signature": f"atoll=:{base64.b64encode(bytes(64)).decode()}:"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_signed_cannot_be_changed(change):
    line = {"method": "POST", "path": "/v1/results/a", "query": "x=1"}
    headers = signed(created=1)
    verify(read_request(**line, headers=headers), KEY.public_bytes)
    for name, value in change.items():
        if name in line:
            line[name] = value
        else:
            headers[name] = headers[name].replace(*value) if isinstance(value, tuple) else value
    with pytest.raises(AuthError):
        verify(read_request(**line, headers=headers), KEY.public_bytes)


def test_a_key_signs_for_itself_alone():
    claim = read_request("POST", "/v1/results/a", "x=1", signed(OTHER))
    verify(claim, OTHER.public_bytes)
    with pytest.raises(AuthError, match="names another key"):
        verify(claim, KEY.public_bytes)


BAD = {
    "atoll-epoch": ["", "-1", "01", "1.0", " 3", "3 ", "٣", "9" * 17],
    "atoll-sequence": ["", "+17", "0x11", "17,17"],
    "atoll-federation": ["", "a b", "a\n", "ä", "x" * 201],
    "content-digest": [
        "",
        "sha-256=:AAAA:",
        "sha-512=:" + "A" * 43 + "=:",
        "sha-256=:" + "A" * 43 + "=:, sha-512=:" + "A" * 43 + "=:",
        "sha-256=:" + "-" * 43 + "=:",
    ],
    "signature": [
        "",
        "atoll=::",
        "sig1=:" + "A" * 86 + "==:",
        "atoll=:" + "A" * 86 + "==:, b=:AA==:",
    ],
}
INPUTS = [
    ('"@query" ', ""),
    ('"@method" "@path"', '"@path" "@method"'),
    ('"@method"', '"@method" "@authority"'),
    ("atoll=", "sig1="),
    ('alg="ed25519"', 'alg="hmac-sha256"'),
    (';alg="ed25519"', ""),
    (';tag="atoll"', ""),
    (';tag="atoll"', ';tag="atoll";expires=1'),
    ("created=1", "created=-1"),
    ("created=1", "created=1.0"),
    ("created=1", f"created={'1' * 13}"),
    (";created=1", ""),
    (KEY.fingerprint, KEY.fingerprint.upper()),
    (KEY.fingerprint, KEY.fingerprint[:-1]),
]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_a_header_that_deviates_is_refused_by_name(name, value):
    with pytest.raises(AuthError, match=name):
        read_request("POST", "/v1/results/a", "x=1", signed() | {name: value})


@pytest.mark.parametrize(("old", "new"), INPUTS)
def test_any_other_profile_is_refused(old, new):
    headers = signed(created=1)
    changed = headers["signature-input"].replace(old, new)
    assert changed != headers["signature-input"]
    with pytest.raises(AuthError, match="signature-input"):
        read_request("POST", "/v1/results/a", "x=1", headers | {"signature-input": changed})


@pytest.mark.parametrize("name", sorted(signed()))
def test_a_header_that_is_missing_or_comes_twice_is_refused(name):
    headers = signed()
    line = "POST", "/v1/results/a", "x=1"
    assert read_request(*line, list(headers.items())) == read_request(*line, headers)
    assert read_request(*line, {k.title(): v for k, v in headers.items()}).sequence == 17
    with pytest.raises(AuthError, match=f"{name} is missing"):
        read_request(*line, {k: v for k, v in headers.items() if k != name})
    with pytest.raises(AuthError, match=f"{name} comes twice"):
        read_request(*line, [*headers.items(), (name.upper(), headers[name])])


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("post", "/v1", ""),
        ("", "/v1", ""),
        ("GET", "", ""),
        ("GET", "v1", ""),
        ("GET", "/v 1", ""),
        ("GET", '/v1\n"@query": ?', ""),
        ("GET", "/é", ""),
        ("GET", "/v1", "a b"),
        ("GET", "/v1", "a\nb"),
        ("GET", "/" + "a" * 5000, ""),
    ],
)
def test_a_request_line_that_cannot_be_signed_is_refused_on_both_sides(method, path, query):
    with pytest.raises(AuthError):
        signed(method=method, path=path, query=query)
    with pytest.raises(AuthError):
        read_request(method, path, query, signed())


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(st.sampled_from(sorted(signed())), st.text(max_size=80)), st.text(max_size=20)
)
def test_noise_in_headers_is_refused_and_nothing_else_happens(noise, path):
    try:
        claim = read_request("POST", path, "", signed() | noise)
    except AuthError:
        return
    with pytest.raises(AuthError):
        verify(claim, KEY.public_bytes)


def test_an_answer_is_refused_for_another_request_status_or_key():
    answers, others = bytes(64), b"\1" + bytes(63)
    given = {"status": 200, "body_digest": digest_of(b"x"), "created": 1}
    headers = sign_response(KEY, sequence=5, answers=answers, **given)

    def check(public=KEY.public_bytes, status=200, sequence=5, to=answers, **changed):
        return verify_response(public, status, headers | changed, sequence=sequence, answers=to)

    assert check() == hashlib.sha256(b"x").digest()
    with pytest.raises(AuthError, match="another request"):
        check(sequence=6)
    with pytest.raises(AuthError, match="another request"):
        check(to=others)
    with pytest.raises(AuthError, match="another key"):
        check(public=OTHER.public_bytes)
    with pytest.raises(AuthError, match="signature is wrong"):
        check(status=201)
    with pytest.raises(AuthError, match="signature is wrong"):
        check(**{"content-digest": f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"})
    with pytest.raises(AuthError, match="atoll-answers"):
        check(**{"atoll-answers": "x"})
    with pytest.raises(AuthError, match="is missing"):
        verify_response(KEY.public_bytes, 200, {}, sequence=5, answers=answers)


@settings(max_examples=200)
@given(st.lists(st.integers(-2, 3000) | st.integers(1, 40), max_size=80))
def test_the_window_equals_a_set_of_all_numbers_with_the_old_ones_refused(numbers):
    window, used, highest = Window(), set(), 0
    for n in numbers:
        fresh = n >= 1 and n not in used and n > highest - Window.SIZE
        assert window.accept(n) == fresh
        if fresh:
            used.add(n)
            highest = max(highest, n)
        assert window.highest == highest


def test_the_window_stays_small_after_a_leap():
    window = Window()
    assert window.accept(5)
    assert window.accept(2**53)
    assert window._seen.bit_length() <= Window.SIZE
    assert not window.accept(5)
