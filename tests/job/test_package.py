"""What is submitted: the job in canonical form and its own code, and nothing from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll.core.errors import JobError, StorageError
from atoll.job.load import parse_job, read_spec
from atoll.job.package import (
    MOST_BYTES,
    Package,
    file_faults,
    pack,
    spec_from_plain,
    spec_to_plain,
    unpack,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = {"source": "rows.csv", "target": "sick"}


def spec_with(**model):
    return parse_job({"data": ROWS, "model": model})


def torch_spec(factory="net.py:make"):
    return spec_with(kind="torch", factory=factory)


def files_below(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write(folder, **files):
    """Python files; two underscores in a keyword are a slash."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/').replace('/INIT', '/__init__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    "path",
    ["heart/job.toml", "house_prices/job.toml", "fashion_mnist/mlp.toml", "fashion_mnist/cnn.toml"],
)
def test_a_job_survives_the_way_with_its_hash(path):
    pytest.importorskip("torch")
    spec = read_spec(EXAMPLES / path)
    plain = json.loads(json.dumps(spec_to_plain(spec), allow_nan=False))
    again = spec_from_plain(plain)
    assert again == spec
    assert again.hash() == spec.hash()
    assert spec_to_plain(again) == plain


def test_options_of_a_method_survive_the_way():
    raw = {"data": ROWS, "algorithm": {"name": "fedprox", "mu": 0.5, "weights": {"a": 1.0}}}
    spec = parse_job(raw)
    assert spec_from_plain(json.loads(json.dumps(spec_to_plain(spec)))).hash() == spec.hash()


def test_a_job_from_elsewhere_is_checked_with_all_its_faults():
    plain = {**spec_to_plain(spec_with()), "code": "x", "seed": -1}
    with pytest.raises(JobError) as caught:
        spec_from_plain(plain)
    assert {f.place for f in caught.value.faults} == {"code", "seed"}


def test_a_loss_of_the_job_s_own_is_packed_with_what_it_imports(tmp_path):
    write(tmp_path, loss="import parts\n", parts="x = 1\n", net="")
    spec = spec_with(kind="torch", factory="net.py:make", loss="loss.py:focal")
    assert set(pack(spec, tmp_path).files) == {"loss.py", "net.py", "parts.py"}
    assert set(pack(spec_with(kind="mlp", loss="bce"), tmp_path).files) == set()


def test_a_job_without_code_of_its_own_packs_none(tmp_path):
    (tmp_path / "rows.csv").write_text("x,sick\n1,no\n")
    (tmp_path / "net.py").write_text("raise SystemExit\n")
    assert pack(spec_with(), tmp_path).files == {}
    assert pack(torch_spec("installed.module:make"), tmp_path).files == {}


def test_code_is_packed_with_what_it_imports_beside_it(tmp_path):
    write(
        tmp_path,
        net="import os, json\nfrom parts.blocks import Block\nimport odd as o\n",
        odd="def f():\n    try:\n        import late\n    except ImportError:\n        pass\n",
        late="",
        parts__INIT="",
        parts__blocks="from .inner import x, y\nfrom . import side\n",
        parts__inner__INIT="from .deep import x\ny = 1\n",
        parts__inner__deep="import parts.absolute\nfrom ..flat import x\n",
        parts__absolute="",
        parts__flat="",
        parts__side="",
        parts__unused="",
        bare__module="",
        unused="",
    )
    (tmp_path / "rows.csv").write_text("x,sick\n1,no\n")
    (tmp_path / "parts" / "weights.npz").write_bytes(b"data")
    packed = pack(torch_spec(), tmp_path)
    assert list(packed.files) == [
        "late.py",
        "net.py",
        "odd.py",
        "parts/__init__.py",
        "parts/absolute.py",
        "parts/blocks.py",
        "parts/flat.py",
        "parts/inner/__init__.py",
        "parts/inner/deep.py",
        "parts/side.py",
    ]
    assert packed.files["net.py"] == (tmp_path / "net.py").read_bytes()


def test_every_file_that_the_job_names_is_packed_from_its_own_folder(tmp_path):
    write(
        tmp_path,
        fits="from helper import a\n",
        sub__scores="import helper\n",
        sub__helper="",
        helper="",
        start="",
        slopes="",
    )
    spec = spec_with(
        kind="function",
        fit="fits.py:fit",
        evaluate="sub/scores.py:score",
        initial="start.py:x",
        options={"gradient": "slopes.py:g"},
    )
    names = ["fits.py", "helper.py", "slopes.py", "start.py", "sub/helper.py", "sub/scores.py"]
    assert list(pack(spec, tmp_path).files) == names


def test_unpacked_code_is_what_was_packed_and_may_be_laid_down_twice(tmp_path):
    write(tmp_path / "here", net="import parts.a\n", parts__a="x = 1\n")
    packed = pack(torch_spec(), tmp_path / "here")
    there = tmp_path / "there" / "run"
    for _ in range(2):
        unpack(packed, there)
        assert files_below(there) == dict(packed.files)
    (there / "net.py").write_text("half a fi")
    unpack(packed, there)
    assert files_below(there) == dict(packed.files)


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("../net.py:make", "not plain and relative"),
        ("sub/../../net.py:make", "not plain and relative"),
        ("./net.py:make", "not plain and relative"),
        ("/tmp/net.py:make", "not plain and relative"),
        ("none.py:make", "no file"),
    ],
)
def test_a_file_outside_the_folder_is_a_fault_of_the_job(tmp_path, factory, told):
    write(tmp_path, net="", here__x="")
    with pytest.raises(JobError, match=told) as caught:
        pack(torch_spec(factory), tmp_path / "here")
    assert [f.place for f in caught.value.faults] == ["model.factory"]


@pytest.mark.parametrize("linked", ["net.py", "helper.py", "pkg"])
def test_a_symbolic_link_is_not_followed(tmp_path, linked):
    here, outside = tmp_path / "here", tmp_path / "outside"
    write(here, net="import helper\nimport pkg.secret\n", helper="")
    write(outside, net="", helper="", pkg__secret="")
    (here / linked).unlink(missing_ok=True)
    (here / linked).symlink_to(outside / linked)
    with pytest.raises(JobError, match="is a symbolic link, or behind one"):
        pack(torch_spec(), here)


def test_faults_of_several_files_come_together(tmp_path):
    write(tmp_path, net="import broken\nfrom . import x\n", broken="def (:\n")
    with pytest.raises(JobError) as caught:
        pack(torch_spec(), tmp_path)
    places = sorted((f.place, f.message.split(":")[0]) for f in caught.value.faults)
    assert places == [("file 'broken.py'", "is not Python"), ("file 'net.py'", "line 2")]


def test_a_relative_import_may_not_leave_its_package(tmp_path):
    write(tmp_path, net="import pkg.a\n", pkg__a="from .. import secret\n", secret="")
    with pytest.raises(JobError, match="a relative import that leaves its package"):
        pack(torch_spec(), tmp_path)


def test_too_much_code_is_refused(tmp_path):
    write(tmp_path, net="import a, b\n", a="#" * (3 << 20), b="#" * (3 << 20))
    with pytest.raises(JobError, match=f"at most {MOST_BYTES:,}"):
        pack(torch_spec(), tmp_path)
    write(tmp_path, net="import a\n", a="#" * (5 << 20))
    with pytest.raises(JobError, match=r"file 'a\.py': 5,242,880 bytes"):
        pack(torch_spec(), tmp_path)
    assert file_faults({"a.py": MOST_BYTES}) == []
    assert len(file_faults({f"m{i}.py": 1 for i in range(257)})) == 1


EVIL = [
    "../x.py",
    "a/../../x.py",
    "/etc/x.py",
    "a//x.py",
    "./x.py",
    "a\\x.py",
    "C:/x.py",
    "",
    ".py",
    ".hidden/x.py",
    "x.py\n",
    "x\0.py",
    "data.csv",
    "sitecustomize.pth",
    "a/" * 20 + "x.py",
    "a" * 200 + ".py",
]


@pytest.mark.parametrize("name", EVIL)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    home = tmp_path / "a" / "b"
    with pytest.raises(JobError, match="the job's code: 1 fault"):
        unpack(Package(spec_with(), {"fine.py": b"", name: b"evil"}), home)
    assert files_below(tmp_path) == {}


def test_names_that_a_file_system_may_take_for_one_are_refused(tmp_path):
    with pytest.raises(JobError, match="capital letters"):
        unpack(Package(spec_with(), {"net.py": b"", "Net.py": b""}), tmp_path)


@pytest.mark.parametrize("linked", ["pkg", "pkg/net.py"])
def test_nothing_is_written_through_a_link(tmp_path, linked):
    outside, there = tmp_path / "outside", tmp_path / "there"
    (outside / "pkg").mkdir(parents=True)
    (outside / "pkg" / "net.py").write_text("mine")
    (there / linked).parent.mkdir(parents=True)
    (there / linked).symlink_to(outside / linked)
    with pytest.raises(StorageError, match="symbolic link"):
        unpack(Package(spec_with(), {"pkg/net.py": b"evil"}), there)
    assert files_below(outside) == {"pkg/net.py": b"mine"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        unpack(Package(spec_with(), {"net.py": b""}), tmp_path / "file")
