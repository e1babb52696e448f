"""Prepares NVFlare's server and clients on this machine, starts them, and gives them FedAvg's job.

Runs in NVFlare's own environment until the job is done: ``job.py VALUES ROUNDS SITES NOTES``. It is NVFlare's
"proof of concept": provisioned, with TLS and a process each, all of them on one machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(values: int, rounds: int, sites: int, notes: str) -> None:
    """Run the job and stop what was started for it."""
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.recipe.poc_env import PocEnv

    recipe = FedAvgRecipe(
        name="noop",
        model={"class_path": "noop_model.Arrays", "args": {"values": values}},
        min_clients=sites,
        num_rounds=rounds,
        train_script=str(HERE / "client.py"),
        train_args=notes,
    )
    place = PocEnv(num_clients=sites)
    run = recipe.execute(place)
    print("RESULT-FOLDER", run.get_result(timeout=500), flush=True)
    place.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
