"""Job code that holds on to the file of its result: the node goes on, and takes nothing that comes later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_federation as ff
import pytest
from doors import door_to, home_at, node_in_a_process
from fake_server import ANY
from process_copies import Copy
from test_hostile_code import CODE
from test_worker import Bench

from atoll.core.errors import WireError
from atoll.node.orders import Report
from atoll.node.room import sandbox
from atoll.node.room.scratch import taken
from atoll.wire.frames import decode
from atoll.wire.spares import LARGE, mark, marked

LONG = 64 << 20
"""Bytes of a result: to read it takes a node some time."""

HELD = f"""
        from atoll.node.room.workplace import written
        from atoll.wire.frames import encode, pieces
        body = written(order.task.id, "done", examples=42, weight=1.0, seconds=0.1)
        parts = pieces(body, {{"parameters": np.zeros({LONG} // 8)}})
        with open(order.result, "wb") as file:
            for part in parts:
                file.write(part)
            size = file.tell()
        held = os.open(order.result, HOW)
        send(pipe, Report(task=order.task.id, kept=False))
        time.sleep(WAIT)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                os.truncate(f"/proc/self/fd/{{held}}", 0)
                os.truncate(f"/proc/self/fd/{{held}}", size)
            except OSError:
                pass
        os._exit(0)
"""


def answer(server: ff.FakeServer, node: Copy, task: str) -> tuple[bool, dict[str, Any]]:
    """Whether it came, and with which arrays: those that were there when the file was copied, if any."""
    ff.eventually(lambda: task in server.received or node.poll() is not None)
    return (True, server.result(task)[1]) if node.poll() is None else (False, {})


@pytest.mark.parametrize(("how", "wait"), [("os.O_RDONLY", "0"), ("os.O_PATH", "0.02")])
def test_a_result_that_is_cut_while_the_node_reads_it_does_not_end_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, wait: str
) -> None:
    attack = HELD.replace("HOW", how).replace("WAIT", wait).strip()
    monkeypatch.setattr(ff, "OWN", CODE.replace("ATTACK", attack))
    server = ff.FakeServer()
    solo, home = ff.Solo(server, tmp_path), home_at(tmp_path, "east", ff.table_text(1))
    with door_to(server, tmp_path) as door:
        node = node_in_a_process("node_process", door, home)
        try:
            for _ in range(3):
                found, arrays = answer(server, node, solo.train(1.0).id)
                assert found, "the node has ended"
                assert all(array.size == LONG // 8 for array in arrays.values())
                ff.eventually(lambda: server.result(solo.train().id)[0].status == "done")
        finally:
            node.kill()
            node.wait()
            server.down = True
            server.wake()


HOLDS = """
import gc, os, threading, time
from pathlib import Path
import numpy as np
from atoll.node.orders import Order

def initial(generator):
    return {"w": np.zeros(3)}

def evaluate(parameters, data):
    return {"loss": 0.0}

def later(held):
    while not Path("go").exists():
        time.sleep(0.01)
    for number in held:
        again = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_TRUNC)
        os.write(again, b"something else")
    Path("gone").touch()

def fit(parameters, data, context):
    order = max((o for o in gc.get_objects() if isinstance(o, Order)), key=lambda o: o.task.number)
    held = [os.open(order.result, how | os.O_CREAT, 0o600) for how in (os.O_RDONLY, os.O_RDWR)]
    held.append(os.open(order.result, os.O_PATH))
    threading.Thread(target=later, args=(held,), daemon=True).start()
    return {"w": parameters["w"] + 1}, {"loss": 0.5}
"""


def test_a_result_is_copied_over_a_spare_of_the_node(tmp_path: Path) -> None:
    own, place = tmp_path / "train.result", tmp_path / "1.result"
    own.write_bytes(b"new" * LARGE)
    place.write_bytes(b"o" * 4 * LARGE)
    mark(place, 0)
    there = place.stat().st_ino
    assert taken(str(own), place, 1e9)
    assert (place.read_bytes(), place.stat().st_ino) == (own.read_bytes(), there)
    assert marked(place) is None


def test_a_result_that_is_too_long_is_not_copied(tmp_path: Path) -> None:
    own, place = tmp_path / "train.result", tmp_path / "1.result"
    with own.open("wb") as file:
        file.truncate(1 << 40)  # takes no room itself
    with pytest.raises(WireError, match="has 1099511627776 bytes"):
        taken(str(own), place, 1e9)
    assert not place.exists()


@pytest.mark.parametrize("room", [False, True], ids=["open", "room"])
def test_what_was_reported_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    if room and sandbox.trouble():
        pytest.skip(sandbox.trouble())
    monkeypatch.setattr("test_worker.CODE", HOLDS)
    bench = Bench(tmp_path, room)
    order = bench.order(0.0)
    bench.worker.order(order)
    assert isinstance(bench.heard.get(timeout=60), Report)
    raw = Path(order.result).read_bytes()
    (bench.worker.folder / "go").touch()
    ff.eventually((bench.worker.folder / "gone").exists)
    assert (bench.worker.folder / "train.result").read_bytes() == b"something else"
    assert Path(order.result).read_bytes() == raw
    assert decode(raw, ANY)[0]["status"] == "done"
    bench.close()
    for log in bench.logs:
        log.close()
