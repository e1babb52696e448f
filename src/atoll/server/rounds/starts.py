"""The model that a job begins at, as it came with the job: looked at before anything is made of it."""

from __future__ import annotations

from typing import Any

from atoll.core.errors import AtollError, Fault, JobError
from atoll.job.start import Start
from atoll.server.office import Office
from atoll.wire.frames import decode
from atoll.wire.messages import BlobRef, SubmitBody

__all__ = ["check_start", "start_in"]


def start_in(office: Office, ref: BlobRef, digest: str) -> Start:
    """The model in a blob: its arrays are views into it.

    Args:
        office: of the server.
        ref: the blob.
        digest: hash of the model that the job names.

    Raises:
        NotFound: the blob is not here.
        WireError: it is no frame of arrays.
        UpdateRefused: it holds a number that is not finite.
        JobError: it is another model.
    """
    _, arrays = decode(office.blobs.view(ref.sha256), Start.allowed(ref.size))
    return Start.received(arrays, digest)


def check_start(office: Office, body: SubmitBody) -> None:
    """Refuse a submission whose model cannot be what its job begins at; one that is not here is told elsewhere.

    It may take as long as reading the model does, so nothing is held meanwhile.

    Raises:
        JobError: with the reason.
    """
    ref, most = body.initial, office.settings.largest_vector
    if ref is None or office.blobs.size(ref.sha256) != ref.size:
        return
    model: Any = body.spec.get("model")
    try:
        if ref.size > most:
            raise JobError(f"it has {ref.size:,} bytes, at most {most:,} are allowed here")
        start_in(office, ref, str(model.get("start", "")) if isinstance(model, dict) else "")
    except AtollError as error:
        fault = Fault("model.start", error.message, error.remedy)
        raise JobError("the model to begin at is refused", faults=[fault]) from error
