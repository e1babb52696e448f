"""The federation as it should have gone, given who took part in which round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storm import work
from storm.work import site_of

from atoll.aggregation.exact import Fold
from atoll.core.values import Update
from atoll.runtime.checkpoint import model_hash
from atoll.wire.frames import Allowed, decode
from atoll.wire.metrics import metrics_from_plain

if TYPE_CHECKING:
    from storm.world import World

__all__ = ["Oracle"]

ANY = Allowed(most_arrays=100, most_bytes=1 << 30)


class Oracle:
    """One run, computed by itself: no server, no node, no bytes between them.

    Args:
        world: tells the tasks, and what a malicious site has sent.
        run: id of the run.
    """

    def __init__(self, world: World, run: str) -> None:
        self._world, self._run = world, run
        spec = world.specs[world.database.runs[run].name]
        self._live = spec.rounds.mode == "async"
        self._whole = work.federation(spec, world.names)
        parts = self._whole.parts[world.names[0]]
        self._algorithm = parts.algorithm
        self._state = parts.algorithm.init(
            self._whole.initial, parts.trainer.layout, len(world.names)
        )
        self._memories: dict[str, Any] = {}
        self._models: dict[int, Any] = {}

    def follow(self, row: Any) -> str:
        """The hash of the model after one more round, given which tasks went into it."""
        self._models[self._state.round] = self._algorithm.broadcast(self._state)
        if row.record["committed"]:
            fold = Fold(len(self._world.names))
            for name in row.tasks:
                self._add(fold, name)
            self._state = self._algorithm.server(self._state, fold.aggregate())
        return model_hash(self._state.parameters)

    def judged(self, site: str) -> dict[str, Any]:
        """What a site's record says of the model as it is now."""
        model = self._state.parameters
        memory = self._memories.get(site, {})
        return work.judged(self._whole, site, model, memory)

    def _add(self, fold: Fold, name: str) -> None:
        world, site = self._world, site_of(name)
        task = world.checks.tasks[name]
        model = self._models[task.version]
        memory = self._memories.get(site, {})
        update, kept = work.train(self._whole, task, model, memory)
        self._memories[site] = kept or memory
        if not world.nodes[site].honest:
            heard = world.database.contributions[self._run][name]
            body, arrays = decode(world.frames[heard.sha256], ANY)
            metrics = metrics_from_plain(body["metrics"])
            update = Update(arrays, body["weight"], body["examples"], metrics)
        late = self._state.round - task.version
        fold.add(update, self._algorithm.staleness(late) if self._live else task.scale)
