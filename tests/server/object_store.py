"""An object store that speaks S3, in this process."""

from __future__ import annotations

import contextlib
import os
import urllib.request
from collections.abc import Iterator
from itertools import count

from moto.server import ThreadedMotoServer

# Every store in a process keeps its buckets in the same memory, so names are given once in a process.
_NUMBERS = count(1)


class ObjectStore:
    def __init__(self, server: ThreadedMotoServer) -> None:
        self.host, self.port = server.get_host_and_port()
        self.endpoint = f"http://{self.host}:{self.port}"

    def new_bucket(self) -> str:
        """The name of an empty bucket."""
        name = f"bucket-{next(_NUMBERS)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert reply.status == 200
        return name

    def url(self, bucket: str, prefix: str = "federation/blobs") -> str:
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start one on a free port; its keys are in the environment meanwhile."""
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield ObjectStore(server)
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
