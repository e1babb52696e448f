"""A server that does nothing but write rounds, as fast as it can, until it is killed.

``python store_writer.py URL``: three contributions, each with a small blob, a line for each on stdout
when it is acknowledged, then the round with a line of its own, and so on from wherever the store stands.
"""

import sys

from store_rows import answer, round_row, run_row

from atoll.server.store.opening import open_store
from atoll.wire.frames import Blob


def main(url: str) -> None:
    store = open_store(url)
    epoch = store.acquire("writer", 0.0)
    print(f"epoch {epoch}", flush=True)
    if not store.runs():
        store.add_run(epoch, run_row())
    last = store.last_round("r1")
    number = 0 if last is None else last.number
    while True:
        tasks = [f"r1.train.{number}.{client}" for client in ("Basel", "Bern", "Ulm")]
        for task in tasks:
            blob = Blob.of(task.encode() * 500)
            store.hold(blob.sha256, task.encode() * 500)
            store.contribute(epoch, answer(task, blob.sha256))
            print(f"task {task}", flush=True)
        number += 1
        store.commit_round(epoch, round_row(number, tuple(tasks)))
        print(f"round {number}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
