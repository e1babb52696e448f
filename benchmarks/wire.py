"""What the wire costs: microseconds to sign and check a message, gigabytes a second of a frame.

Run ``python benchmarks/wire.py [values]``; the default is a model of 25,000,000 float32 parameters.
The curve's own share (one Ed25519 signature or check) is timed in turn with the whole, so that what is
left is ours; a plain copy and a plain SHA-256 of the same bytes stand beside the frame.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from atoll.wire.frames import Allowed, check_finite, decode, encode, open_frame, write_frame
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

Steps = Mapping[str, Callable[[], object]]


def in_turn(steps: Steps, repeats: int, calls: int) -> dict[str, float]:
    """Median seconds per call of each step, the steps taken in turn so that noise meets all alike."""
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(calls):
                step()
            seen[name].append((time.perf_counter() - start) / calls)
    return {name: statistics.median(times) for name, times in seen.items()}


def signatures() -> None:
    """Microseconds of each half of a signed exchange."""
    key, line = Identity.fresh(), ("POST", "/v1/results/run.train.7.hospital-a", "x=1")
    digest = digest_of(b"body")
    given = {"federation": "f" * 32, "epoch": 3, "sequence": 1700, "created": 1_700_000_000}

    def sign() -> dict[str, str]:
        method, path, query = line
        return sign_request(key, method=method, path=path, query=query, body_digest=digest, **given)

    headers = sign()
    claim = read_request(*line, headers)
    told = {"sequence": 1700, "answers": claim.signature}

    def answer() -> dict[str, str]:
        return sign_response(key, status=200, body_digest=digest, created=1, **told)

    answered, window, numbers = answer(), Window(), iter(range(1, 10**9))
    found = in_turn(
        {
            "curve: sign": lambda: key.key.sign(claim.base),
            "sign a request": sign,
            "sign an answer": answer,
            "curve: check": lambda: check_signature(key.public_bytes, claim.signature, claim.base),
            "read and check a request": lambda: verify(
                read_request(*line, headers), key.public_bytes
            ),
            "check an answer": lambda: verify_response(key.public_bytes, 200, answered, **told),
            "accept a number": lambda: window.accept(next(numbers)),
        },
        repeats=31,
        calls=100,
    )
    print(f"{'µs':28} {'whole':>8} {'beyond the curve':>18}")
    for name, seconds in found.items():
        curve = found["curve: sign" if "sign" in name else "curve: check"]
        beyond = "" if "curve" in name or "number" in name else f"{(seconds - curve) * 1e6:18.1f}"
        print(f"{name:28} {seconds * 1e6:8.1f} {beyond}")


def frames(values: int) -> None:
    """Gigabytes a second, beside a copy and a digest of the same bytes."""
    vectors = {"parameters": np.random.default_rng(0).normal(0, 0.05, values).astype(np.float32)}
    body = {"task": "run.train.7.hospital-a", "status": "done", "examples": 1000}
    raw = encode(body, vectors)
    allowed = Allowed(most_arrays=1, most_bytes=len(raw))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "update.frame"
        write_frame(path, body, vectors)
        found = in_turn(
            {
                "copy": lambda: bytearray(raw),
                "sha-256": lambda: hashlib.sha256(raw).digest(),
                "encode": lambda: encode(body, vectors),
                "check_finite": lambda: check_finite(vectors),
                "write_frame (fsync)": lambda: write_frame(path, body, vectors),
            },
            repeats=7,
            calls=1,
        )
        short = in_turn(
            {
                "decode": lambda: decode(raw, allowed),
                "open_frame": lambda: open_frame(path, allowed),
                "encode, 10 values": lambda: encode(body, {"x": vectors["parameters"][:10]}),
            },
            repeats=15,
            calls=200,
        )
    print(f"\n{len(raw) / 1e6:.0f} MB{'':22} {'GB/s':>8}")
    for name, seconds in found.items():
        print(f"{name:28} {len(raw) / seconds / 1e9:8.2f}")
    print(f"\n{'µs':28}")
    for name, seconds in short.items():
        print(f"{name:28} {seconds * 1e6:8.1f}")


def main(values: int = 25_000_000) -> None:
    """Print both tables."""
    signatures()
    frames(values)


if __name__ == "__main__":
    main(*(int(argument.replace(",", "")) for argument in sys.argv[1:2]))
