"""A node that works honestly and then sends something else: ``python federation_liar.py node start --home …``.

Round by round it tells another lie of :data:`LIES`, signed with its own good key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from atoll.wire.frames import Allowed, Blob, decode, encode

ANY = Allowed(most_arrays=100, most_bytes=1 << 30)

Body = dict[str, Any]
Arrays = dict[str, Any]
Lie = Callable[[Body, Arrays], bytes]


def said(**fields: Any) -> Lie:
    """Other words in the answer."""
    return lambda body, arrays: encode({**body, **fields}, arrays)


def vector(change: Callable[[Any], Any]) -> Lie:
    """Another vector in the answer."""

    def lie(body: Body, arrays: Arrays) -> bytes:
        return encode(body, {name: change(np.array(a)) for name, a in arrays.items()})

    return lie


def first(value: float) -> Callable[[Any], Any]:
    def change(a: Any) -> Any:
        a[0] = value
        return a

    return change


def half(body: Body, arrays: Arrays) -> bytes:
    raw = encode(body, arrays)
    return raw[: len(raw) // 2]


LIES: Mapping[str, Lie] = {
    "a value is no number": vector(first(np.nan)),
    "a value is infinite": vector(first(-np.inf)),
    "a weight a thousand times too large": lambda b, a: encode(
        {**b, "weight": 1e3 * b["weight"]}, a
    ),
    "a negative weight": lambda b, a: encode({**b, "weight": -b["weight"]}, a),
    "rows that it has not": lambda b, a: encode({**b, "examples": b["examples"] + 1}, a),
    "a shorter vector": vector(lambda a: a[:-1]),
    "a longer vector": vector(lambda a: np.append(a, a)),
    "another type of number": vector(lambda a: a.astype(np.float64)),
    "a vector more": lambda b, a: encode(b, {**a, "more": next(iter(a.values()))}),
    "no vector": lambda b, a: encode(b, {}),
    "another's answer": lambda b, a: encode({**b, "task": b["task"].replace("-03", "-01")}, a),
    "the answer to another task": lambda b, a: encode(
        {**b, "task": b["task"].replace("train.", "train.9")}, a
    ),
    "a word more": said(more=1),
    "an unknown metric": said(metrics={"made up": {"kind": "mean", "total": "1", "count": "1"}}),
    "half an answer": half,
    "no frame at all": lambda b, a: b"not a frame",
    "a pickle": lambda b, a: (
        b"\x80\x04\x95\x12\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94."
    ),
}
"""What is sent in place of the answer, by what it is."""


def main() -> None:
    """Become the node."""
    from atoll.cli.main import main as atoll
    from atoll.node.link import Link

    def lying(honest: Callable[..., Any]) -> Callable[..., Any]:
        """A way to hand in results that tells a lie in place of each answer."""

        def deliver(link: Link, held: Any, raw: bytes, *more: Any) -> Any:
            _, kind, number, _ = held.task.split(".", 3)
            if kind != "train":
                return honest(link, held, raw, *more)
            lie = list(LIES.values())[int(number) % len(LIES)]
            told = lie(*decode(raw, ANY))
            return honest(link, replace(held, blob=Blob.of(told)), told, *more)

        return deliver

    Link.deliver = lying(Link.deliver)  # type: ignore[method-assign]
    Link.deliver_and_ask = lying(Link.deliver_and_ask)  # type: ignore[method-assign]
    sys.exit(atoll(sys.argv[1:]))


if __name__ == "__main__":
    main()
