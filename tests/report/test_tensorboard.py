from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import MissingExtra
from atoll.report.tensorboard import TensorBoard, scalars

Maker = Callable[..., dict[str, Any]]


def events(folder: Path) -> Iterator[tuple[str, int, float]]:
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.out.tfevents*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


def test_scalars_are_named_by_source_and_skip_what_is_not_finite(make_record: Maker) -> None:
    record = make_record(1, train={"loss": math.nan}, federated=None, sites={"a": {"auc": 0.5}})
    found = dict(scalars(record))
    assert "train/loss" not in found
    assert found["sites/auc/a"] == 0.5
    assert found["central/loss"] == pytest.approx(1.1)
    assert found["participation/contributed"] == 3
    assert found["time/clock"] == 1.0


def test_events_are_written_by_round(tmp_path: Path, make_record: Maker) -> None:
    pytest.importorskip("tensorboardX")
    with TensorBoard(tmp_path) as observer:
        for number in (1, 2):
            observer(make_record(number))
        observer.close()
    losses = [(step, value) for tag, step, value in events(tmp_path) if tag == "train/loss"]
    assert losses == [(1, 1.0), (2, 0.5)]


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtra, match=r"atoll\[tracking\]"):
        TensorBoard(tmp_path)
