"""Message bodies: closed, strict, frozen, limited."""

import json

import pytest
from pydantic import ValidationError

from atoll.core.errors import WireError
from atoll.wire import messages
from atoll.wire.frames import Allowed, Blob, decode, encode
from atoll.wire.messages import (
    BlobRef,
    FilesReply,
    JoinBody,
    Message,
    PollReply,
    ReceiptBody,
    ResultBody,
    SubmitBody,
    TaskBody,
    read_body,
    read_json,
)

HASH = "ab" * 32
REF = {"sha256": HASH, "size": 3}
TASK = {
    "id": "run-1.train.4.Long Beach VA",
    "run": "run-1",
    "kind": "train",
    "number": 4,
    "client": "Long Beach VA",
    "version": 3,
    "scale": 0.1,
    "fraction": 1.0,
    "repeat": 0,
    "kept": "",
    "broadcast": REF,
    "plan": REF,
    "code": {"pkg/model.py": REF},
    "initial": False,
    "deadline": 12.5,
}


def test_a_task_comes_back_equal_through_a_frame_and_through_json():
    task = read_body(TaskBody, TASK)
    reply = PollReply(tasks=[task], gone=["run-1.train.3.Long Beach VA"], epoch=2)
    body, _ = decode(encode(reply.model_dump()), Allowed())
    assert read_body(PollReply, body) == reply
    assert read_json(PollReply, reply.model_dump_json().encode()) == reply
    assert task.scale.hex() == (0.1).hex()


def test_a_blob_is_named_alike_on_both_sides():
    blob = Blob.of(b"abc")
    assert BlobRef.of(blob).blob == blob


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "shell"},
        {"number": -1},
        {"number": 1.0},
        {"number": True},
        {"number": "4"},
        {"id": ""},
        {"id": "a/b"},
        {"id": "a\nb"},
        {"client": "x" * 201},
        {"scale": float("nan")},
        {"scale": -1.0},
        {"fraction": 0.0},
        {"plan": None},
        {"plan": {"sha256": HASH.upper(), "size": 3}},
        {"plan": {"sha256": HASH, "size": -3}},
        {"plan": {"sha256": HASH + "\n", "size": 3}},
        {"code": {"../x.py": REF}},
        {"code": {"/etc/x.py": REF}},
        {"code": {"a//x.py": REF}},
        {"code": {"a\\x.py": REF}},
        {"deadline": float("inf")},
        {"type": "os.system"},
    ],
)
def test_a_task_that_is_not_one_is_refused(change):
    with pytest.raises(WireError, match="no valid TaskBody"):
        read_body(TaskBody, TASK | change)


def test_faults_are_told_together_and_without_the_sender_s_data():
    with pytest.raises(WireError) as caught:
        read_body(ResultBody, {"task": "secret/value", "status": "secret", "more": "secret"})
    assert [fault.place for fault in caught.value.faults] == ["task", "status", "more"]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"\xff", b'{"task":"t","status":"done","seconds":NaN}']
)
def test_json_that_is_none_is_refused(raw):
    with pytest.raises(WireError, match="no valid ResultBody"):
        read_json(ResultBody, raw)


def test_no_file_leaves_its_folder():
    assert read_body(FilesReply, {"files": {"checkpoint/a.bin": REF}}).files
    with pytest.raises(WireError):
        read_body(FilesReply, {"files": {"checkpoint/../../a": REF}})
    with pytest.raises(WireError):
        read_body(SubmitBody, {"spec": {}, "job_hash": HASH, "files": {"..": REF}})


def test_a_secret_and_a_key_have_their_length():
    assert read_body(JoinBody, {"secret": "0" * 32, "key": HASH}).name is None
    with pytest.raises(WireError):
        read_body(JoinBody, {"secret": "0" * 31, "key": HASH})


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, kind in vars(messages).items()
        if n in messages.__all__ and isinstance(kind, type) and n != "Message"
    ],
)
def test_every_message_is_closed_strict_and_frozen(name):
    kind = getattr(messages, name)
    assert issubclass(kind, Message)
    assert kind.model_config["extra"] == "forbid"
    assert kind.model_config["strict"]
    with pytest.raises(WireError):
        read_json(kind, json.dumps({"surely_unknown": 1}).encode())


def test_a_message_cannot_be_changed():
    receipt = ReceiptBody(task="t", sha256=HASH, again=False)
    with pytest.raises(ValidationError, match="frozen"):
        receipt.again = True
