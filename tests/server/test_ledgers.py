"""The server remembers how far each site's privacy ledger had come, in its commit records and to the site."""

from __future__ import annotations

import pytest
from played_sites import heart_spec
from web_bench import Bench

from atoll.server.office import LEDGERS
from atoll.wire.frames import Allowed, decode


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ulm(bench):
    return bench.admit("ulm")


def head(lines: int, letter: str = "a") -> str:
    return f"{lines}.{letter * 64}.{letter * 128}"


def test_a_commit_record_holds_the_heads_and_a_new_server_knows_them(world) -> None:
    run = world.submit(heart_spec("rounds.count=3"))
    world.reach("train", 2)
    assert LEDGERS not in world.store.last_round(run).record  # nobody keeps a ledger
    world.service.ledger("hungary", head(4))
    world.service.ledger("elsewhere", head(7))
    world.run()
    assert world.store.last_round(run).record[LEDGERS] == {"hungary": head(4)}
    assert all(LEDGERS not in record for record in world.service.rounds(run).rounds)
    world.kill()
    assert world.service.ledger("hungary") == head(4)
    assert world.service.ledger("elsewhere") == ""  # no run of its own: nothing was committed


def test_the_newest_head_stays_and_an_older_one_is_noted(world) -> None:
    service = world.service
    for told in (head(4), head(6), head(6)):
        assert service.ledger("hungary", told) == told
    assert not [e for e in world.store.events() if e.kind == "ledger"]
    assert service.ledger("hungary", head(5)) == head(6)
    for _ in range(3):  # it is told with each answer, and noted once
        assert service.ledger("hungary", head(6, "b")) == head(6)  # a fork
    noted = [e for e in world.store.events() if e.kind == "ledger"]
    assert [(e.site, e.text) for e in noted] == [
        ("hungary", "its privacy ledger has 5 lines, and had 6 before"),
        ("hungary", "its privacy ledger has 6 lines, and had 6 before"),
    ]


def test_a_site_tells_its_head_with_a_result_and_hears_it_with_the_next_answer(bench, ulm) -> None:
    bench.ask(ulm, "POST", "/v1/results/r-1.train.1.ulm", f"ledger={head(3)}", body=b"any")
    reply = bench.ask(ulm, "GET", "/v1/poll", "have=&wait=0")
    body, _ = decode(reply.body, Allowed(dtypes=("uint8",), most_arrays=10, most_bytes=1 << 20))
    assert body["ledger"] == head(3)


@pytest.mark.parametrize("text", ["x", "3", "3.aa.bb", head(3) + "0", "-1" + head(3)])
def test_what_is_no_head_is_refused(bench, ulm, text: str) -> None:
    asked = bench.ask(ulm, "POST", "/v1/results/r-1.train.1.ulm", f"ledger={text}", body=b"any")
    assert asked.code == "wire.invalid"
    assert bench.service.ledger("ulm") == ""
