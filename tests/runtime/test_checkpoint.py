"""A checkpoint is whole or refused; what is read is what was written, to the bit."""

import errno
import hashlib
import os

import numpy as np
import pytest

from atoll.core.errors import CheckpointError, StorageError
from atoll.core.values import Broadcast, State
from atoll.runtime import checkpoint
from atoll.runtime.checkpoint import Best, Progress
from atoll.runtime.pace import Pace

JOB = "ab" * 32
ODD_NAMES = ["plain", "with/slash", "a/b/c", "Zürich 病院", "not utf-8 \udcff", ""]


def progress(rounds: int = 7) -> Progress:
    w = np.arange(3, dtype=np.float32) + rounds
    return Progress(
        state=State(rounds, w, slice(1, 3), 5, {"control": w * 0.1, "h": -w}),
        pace=Pace(
            2.5, 9, 1, ((3.25, 4, "plain", 6, 0, -1.0),), 5, {"plain": 2}, {"plain": (6, 1)}, 2
        ),
        rounds=rounds,
        memories={
            c: {"control": np.full(3, i, np.float32), "personal": np.full(2, i / 7)}
            for i, c in enumerate(ODD_NAMES)
        },
        broadcasts={6: Broadcast(6, {"parameters": w - 1, "control": w * 2})},
        best=Best(4, 0.1 + 0.2, w * 3),
        waiting=3,
        aborted=1,
        seconds=12.5,
    )


def flat(p: Progress) -> tuple:
    def bits(named):
        return {n: (v.dtype.str, v.shape, v.tobytes()) for n, v in named.items()}

    best = p.best and (p.best.round, repr(p.best.value), p.best.parameters.tobytes())
    return (
        (p.state.round, p.state.trained, p.state.population),
        bits({"w": p.state.parameters, **p.state.slots}),
        p.pace,
        (p.rounds, p.waiting, p.aborted, p.seconds),
        [(c, bits(m)) for c, m in p.memories.items()],
        {v: (b.version, bits(b.vectors)) for v, b in p.broadcasts.items()},
        best,
    )


def test_what_is_read_is_what_was_written(tmp_path):
    path = checkpoint.write(tmp_path, progress(), JOB, {"data": {"a": "x"}})
    found, notes = checkpoint.read(path, JOB)
    assert flat(found) == flat(progress())
    assert notes == {"data": {"a": "x"}}
    with pytest.raises(ValueError, match="read-only"):
        found.state.parameters[0] = 1


def test_a_watched_metric_that_is_not_a_number_survives(tmp_path):
    p = Progress(progress().state, best=Best(1, float("nan"), np.zeros(3)))
    found, _ = checkpoint.read(checkpoint.write(tmp_path, p, JOB, {}), JOB)
    assert flat(found) == flat(p)


def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path):
    path = checkpoint.write(tmp_path, progress(), JOB, {})
    whole = path.read_bytes()
    unnoticed = []
    for at in range(0, len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            found, _ = checkpoint.read(path, JOB)
        except CheckpointError:
            continue
        if flat(found) != flat(progress()):  # blanks between header and data mean nothing
            unnoticed.append(at)
    assert not unnoticed


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = checkpoint.write(tmp_path, progress(), JOB, {})
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            checkpoint.read(path, JOB)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(path, JOB)


def test_another_job_and_another_format_are_refused_by_name(tmp_path, monkeypatch):
    path = checkpoint.write(tmp_path, progress(), JOB, {})
    with pytest.raises(CheckpointError, match=r"another job \(abababababab, not 000000000000\)"):
        checkpoint.read(path, "0" * 64)
    monkeypatch.setattr(checkpoint, "_FORMAT", "3")
    path = checkpoint.write(tmp_path, progress(), JOB, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format '3', this version reads 2"):
        checkpoint.read(path, JOB)


def test_a_checkpoint_of_the_first_format_is_read_and_its_damage_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FORMAT", "1")
    path = checkpoint.write(tmp_path, progress(), JOB, {})
    monkeypatch.undo()
    assert flat(checkpoint.read(path, JOB)[0]) == flat(progress())
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path, JOB)


def test_a_vector_that_may_still_change_is_hashed_anew_and_a_frozen_one_is_known():
    vector = np.arange(4, dtype=np.float32)
    first = checkpoint.model_hash(vector)
    vector[0] = 9
    second = checkpoint.model_hash(vector)
    frozen = vector.copy()
    frozen.flags.writeable = False
    assert first != second == checkpoint.model_hash(frozen) == checkpoint.model_hash(frozen)
    other = frozen + 1
    other.flags.writeable = False
    del frozen  # the next one may lie where it lay
    assert checkpoint.model_hash(other) != second


def test_the_two_newest_are_kept_and_what_a_crash_left_is_removed(tmp_path):
    tmp_path.joinpath("round-00000002.partial").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) is None
    for rounds in (3, 9, 10, 11):
        checkpoint.write(tmp_path, progress(rounds), JOB, {})
    names = [p.name for p in sorted(tmp_path.iterdir())]
    assert names == ["round-00000010.safetensors", "round-00000011.safetensors"]
    assert checkpoint.newest(tmp_path).name == names[-1]


@pytest.mark.parametrize("call", ["unlink", "rename"])
@pytest.mark.parametrize("after", [False, True])
def test_a_write_that_is_killed_and_done_again_unless_it_was_done_leaves_two(
    tmp_path, monkeypatch, call, after
):
    for rounds in (3, 9):
        checkpoint.write(tmp_path, progress(rounds), JOB, {})
    original = getattr(checkpoint.Path, call)

    def killed(self, *rest):
        if after:
            original(self, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Path, call, killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, progress(10), JOB, {})
    monkeypatch.undo()
    if checkpoint.newest(tmp_path).name != "round-00000010.safetensors":
        checkpoint.write(tmp_path, progress(10), JOB, {})
    names = [p.name for p in sorted(tmp_path.iterdir())]
    assert names == ["round-00000009.safetensors", "round-00000010.safetensors"]


@pytest.mark.parametrize("call", ["fsync", "rename", "open"])
def test_a_disk_error_leaves_the_earlier_checkpoint_whole(tmp_path, monkeypatch, call):
    before = checkpoint.write(tmp_path, progress(1), JOB, {})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if call == "fsync" else checkpoint.Path, call, full)
    with pytest.raises(StorageError, match="No space left") as caught:
        checkpoint.write(tmp_path, progress(2), JOB, {})
    assert "can be resumed" in caught.value.remedy
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [before.name]
    assert flat(checkpoint.read(before, JOB)[0]) == flat(progress(1))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    tmp_path.joinpath("file").write_text("in the way")
    with pytest.raises(StorageError, match="file/deeper"):
        checkpoint.write(tmp_path / "file" / "deeper", progress(), JOB, {})


def test_the_model_hash_is_of_bytes_and_dtype():
    # echo -n 'float32' and eight zero bytes through sha256sum.
    zeros = np.zeros(2, np.float32)
    assert checkpoint.model_hash(zeros).startswith("8a66f2e3")
    assert checkpoint.model_hash(zeros) == checkpoint.model_hash(np.zeros(4, np.float32)[::2])
    hashes = {checkpoint.model_hash(v) for v in (zeros, np.zeros(1), -zeros, np.zeros(2))}
    assert len(hashes) == 4


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_a_model_hash_can_be_taken_while_the_model_is_made(dtype, monkeypatch):
    vector = np.arange(7).astype(dtype)
    wanted = checkpoint.model_hash(vector)
    vector.flags.writeable = False
    made = checkpoint.ModelHash(vector.dtype)
    made.take(vector[:3])
    made.keep(vector)  # not all of it
    assert checkpoint.model_hash(vector) == wanted
    made.take(vector[3:])
    assert made.hex == wanted
    made.keep(vector)
    monkeypatch.setattr(checkpoint.hashlib, "sha256", None)  # it is not taken again
    assert checkpoint.model_hash(vector) == wanted


def test_bytes_and_file_hold_the_same_and_bytes_are_checked_alike(tmp_path):
    raw = checkpoint.encode(progress(), JOB, {"node": "x"})
    path = checkpoint.write(tmp_path, progress(), JOB, {"node": "x"})
    assert checkpoint.decode(path.read_bytes(), JOB)[1] == {"node": "x"}
    found, notes = checkpoint.decode(raw, JOB)
    assert flat(found) == flat(progress())
    assert notes == {"node": "x"}
    with pytest.raises(ValueError, match="read-only"):
        found.state.parameters[0] = 1
    with pytest.raises(CheckpointError, match="belongs to another job"):
        checkpoint.decode(raw, "0" * 64)
    for length in (0, 7, 100, len(raw) - 1):
        with pytest.raises(CheckpointError, match=f"checkpoint of {length} bytes cannot be read"):
            checkpoint.decode(raw[:length], JOB)
    for at in (8, len(raw) - 9):  # a value of the model, one of the rest
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoint.decode(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], JOB)


def test_a_changed_byte_of_bytes_is_noticed_wherever_it_is():
    raw, unnoticed = checkpoint.encode(progress(), JOB, {}), []
    for at in [*range(40), *range(40, len(raw) - 9, 7), *range(len(raw) - 9, len(raw))]:
        try:
            found, _ = checkpoint.decode(raw[:at] + bytes([raw[at] ^ 2]) + raw[at + 1 :], JOB)
        except CheckpointError:
            continue
        if flat(found) != flat(progress()):
            unnoticed.append(at)
    assert not unnoticed


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_a_named_checkpoint_has_the_digest_of_its_bytes_and_no_second_look_at_the_model(
    dtype, monkeypatch
):
    vector = np.arange(5).astype(dtype)
    vector.flags.writeable = False
    p = Progress(State(3, vector, slice(0, 5), 2, {}))
    wanted = hashlib.sha256(b"".join(checkpoint.named(p, JOB, {})[0])).hexdigest()
    if vector.dtype.isnative:
        monkeypatch.setattr(checkpoint.ModelHash, "take", None)  # its hash is known already
    pieces, digest = checkpoint.named(p, JOB, {})
    assert digest == wanted
    raw = b"".join(pieces)
    at = checkpoint.begins(raw[:7], raw[-8:], len(raw))
    monkeypatch.undo()
    own = vector.astype(vector.dtype.newbyteorder("="))
    assert hashlib.sha256(raw[:at]).hexdigest() == checkpoint.model_hash(own)
    assert checkpoint.decode(raw, JOB)[0].state.parameters.tolist() == [0, 1, 2, 3, 4]
