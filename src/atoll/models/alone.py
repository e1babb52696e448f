"""torch for one piece of work at a time: one thread, and a random stream of its own.

Nothing here imports torch, so that a user's function is held to the same where torch may not be installed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from atoll.core.seeds import Seed

__all__ = ["alone"]

_LOCK = threading.RLock()
"""torch's generator and thread count belong to the process: whoever works in another thread waits."""


@contextmanager
def alone(seed: Seed) -> Iterator[None]:
    """One thread and the default generator at ``seed``; both are put back afterwards. torch is loaded."""
    torch: Any = sys.modules["torch"]
    with _LOCK:
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        torch.default_generator.manual_seed(seed.integer())
        if threads != 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if threads != 1:
                torch.set_num_threads(threads)
            torch.set_rng_state(state)
