"""The script that NVFlare runs at each client."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import nvflare.client as flare
import torch

from benchmarks.peers.given import Given
from benchmarks.peers.torch_work import Network, load, train


def main() -> None:
    """Train until the server has had enough; the first client notes when models arrive."""
    name, notes = sys.argv[1:3]
    torch.set_num_threads(1)
    flare.init()
    site = flare.get_site_name()
    given, client = Given(name, "fedavg", 0, 1, "", ""), int(site.rpartition("-")[2]) - 1
    x, y = (torch.from_numpy(given.array(what, mapped=True)[client].copy()) for what in "xy")
    cohorts, orders = given.array("cohorts"), given.array("orders", mapped=True)
    model, arrivals = Network(name), list[float]()
    while flare.is_running():
        message = flare.receive()
        if message is None:
            break
        arrivals.append(time.time())
        if client == 0:
            Path(notes).write_text(json.dumps(arrivals))
        number = int(message.current_round)
        load(model, [message.params[key] for key in model.state_dict()])
        place = cohorts[number].tolist().index(client)
        train(model, given, x, y, orders[number, place].copy())
        new = {k: v.clone() for k, v in model.state_dict().items()}
        flare.send(flare.FLModel(params=new, meta={"NUM_STEPS_CURRENT_ROUND": len(y)}))


if __name__ == "__main__":
    main()
