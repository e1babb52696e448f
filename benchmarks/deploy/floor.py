"""The loopback floor: sockets, nothing else. A thread a client sends the model and adds up what comes back."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from benchmarks.deploy.memory import Watch, descendants
from benchmarks.deploy.work import asked, finish

_PIECE = 1 << 22


def receive(connection: socket.socket, room: memoryview) -> bool:
    """Fill ``room``; whether there was anything."""
    got = 0
    while got < len(room):
        size = connection.recv_into(room[got:], min(len(room) - got, _PIECE))
        if not size:
            return False
        got += size
    return True


def client(port: int, values: int) -> None:
    """Send back what comes, with a constant added."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        model = np.empty(values, np.float32)
        raw = memoryview(model).cast("B")
        while receive(connection, raw):
            model += np.float32(1e-3)
            connection.sendall(raw)


def main() -> None:
    """Entry point."""
    given = asked(__doc__)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        processes = [
            multiprocessing.Process(target=client, args=(port, given.values), daemon=True)
            for _ in range(given.sites)
        ]
        for process in processes:
            process.start()
        lines = [listener.accept()[0] for _ in processes]
    rooms = [np.empty(given.values, np.float32) for _ in lines]
    model = np.zeros(given.values, np.float32)
    total, lock = np.zeros_like(model), threading.Lock()

    def serve(line: socket.socket, room: np.ndarray) -> None:
        line.sendall(memoryview(model).cast("B"))
        if not receive(line, memoryview(room).cast("B")):
            raise EOFError("a client is gone")
        with lock:
            np.add(total, room, out=total)

    me = os.getpid()
    with Watch(lambda: [me], lambda: descendants(me), given.watch) as watch:
        start, ends = time.time(), []
        for _ in range(given.rounds):
            total[:] = 0
            threads = [
                threading.Thread(target=serve, args=pair) for pair in zip(lines, rooms, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            model[:] = total / np.float32(len(lines))
            ends.append(time.time())
    for line in lines:
        line.close()
    for process in processes:
        process.join()
    finish(ends, start, watch.most)


if __name__ == "__main__":
    main()
