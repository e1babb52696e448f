"""NVFlare's simulator with its FedAvg recipe, for workloads whose every client takes part in every round.

NVFlare has no call at the end of a round, so the clock is read where the first client receives a model: the
model of round r + 1 arrives when round r is done. The last round ends when the final model is on disk.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv

from benchmarks.peers.given import asked, finish
from benchmarks.peers.torch_work import Network


def main() -> None:
    """Entry point."""
    given = asked(__doc__)
    clients = given.facts["clients"]
    model = {"class_path": "benchmarks.peers.torch_work.Start", "args": {"name": given.name}}
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "arrivals.json"
        recipe = FedAvgRecipe(
            name=given.name,
            model=model,
            min_clients=clients,
            num_rounds=given.rounds,
            train_script=str(Path(__file__).with_name("nvflare_client.py")),
            train_args=f"{given.name} {notes}",
        )
        run = recipe.execute(
            SimEnv(num_clients=clients, num_threads=given.workers, workspace_root=folder)
        )
        result = Path(run.get_result())
        arrivals = json.loads(notes.read_text())
        saved = next(result.rglob("FL_global_model.pt"))
        arrivals.append(saved.stat().st_mtime)  # when the last round's model was written
        final = torch.load(saved, weights_only=True)
    weights = final.get("model", final)
    finish(given, arrivals, [weights[key].numpy() for key in Network(given.name).state_dict()])


if __name__ == "__main__":
    main()
