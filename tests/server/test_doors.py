"""How many connections each may hold: who has hung up holds none."""

from __future__ import annotations

import threading
import time

from test_whole_bodies import Live, Speaking

from atoll.server.web.connections import Doorman
from atoll.server.web.gate import Roster


def test_who_hangs_up_while_its_request_is_looked_at_holds_no_connection_any_more(
    tmp_path, monkeypatch
):
    doors, going, over, done = [], threading.Event(), threading.Event(), threading.Event()
    serve, refresh = Doorman.serve, Roster.refresh

    def served(self, listener):
        doors.append(self)
        return serve(self, listener)

    def slowly(self):
        going.set()
        over.wait(30)
        refresh(self)
        done.set()

    def comes_to(open_: int) -> bool:
        until = time.monotonic() + 30
        while (found := sum(doors[0].open.values())) != open_ and time.monotonic() < until:
            time.sleep(0.02)
        return found == open_

    monkeypatch.setattr(Doorman, "serve", served)
    with Live(tmp_path / "server") as live, Speaking(live, "ulm") as site:
        assert comes_to(2)
        monkeypatch.setattr(Roster, "refresh", slowly)
        monkeypatch.setattr(Roster, "stale", True)
        site.line.sendall(site.head("GET", "/v1/federation", "", b"", 0))
        assert going.wait(30)
        site.line.close()
        assert comes_to(1)
        monkeypatch.undo()
        over.set()
        assert done.wait(30)
        for _ in range(2):  # behind that request
            site.channel.call("GET", "/v1/federation")
        assert doors[0].open == {"knocking": 0, "stranger": 0, "member": 1}
