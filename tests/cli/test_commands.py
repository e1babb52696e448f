"""The command line: data on stdout, talk on stderr, stable exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import atoll
from atoll.algorithms import ALGORITHMS
from atoll.cli import main as main_module
from atoll.cli.main import main
from atoll.core import errors
from atoll.core.errors import AtollError

ROOT = Path(__file__).parents[2]
JOB = """name = "tiny"
[data]
source = "fcube"
options = { rows = 20, test_rows = 10 }
[local]
lr = 0.5
[rounds]
count = 3
[evaluation]
compare = false
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


@pytest.fixture
def atoll_command(tmp_path, capsys):
    """Runs the command line; gives status, stdout, stderr. ``OUT`` stands for the run's folder."""

    def run(*arguments):
        given = [str(tmp_path / "out") if a == "OUT" else str(a) for a in arguments]
        status = main(given)
        return status, *capsys.readouterr()

    return run


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_help_lists_the_commands(atoll_command):
    status, out, _ = atoll_command("--help")
    assert status == 0
    for command in ("run", "report", "check", "methods"):
        assert re.search(rf"^\W*{command} ", out, flags=re.M)


def test_version(atoll_command):
    assert atoll_command("--version") == (0, f"atoll {atoll.__version__}\n", "")


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom atoll.cli.main import main\nmain(['--help'])\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'(\w+)'", done.stderr))
    heavy = {
        "numpy",
        "pandas",
        "pydantic",
        "torch",
        "safetensors",
        "matplotlib",
        "sklearn",
        "scipy",
    }
    assert "typer" in loaded
    assert loaded & heavy == set()


def test_help_is_fast():
    """In processor time, so that other work on the machine does not count."""
    code = (
        "from atoll.cli.main import main; main(['--help']); "
        "import sys, time; print(time.process_time(), file=sys.stderr)"
    )
    took = [1.0]
    while min(took) >= 0.5 and len(took) < 10:  # which makes processors slower all the same
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        )
        took.append(float(ran.stderr.splitlines()[-1]))
    assert min(took) < 0.5


def test_run_prints_the_result_and_writes_the_folder(atoll_command, job, tmp_path):
    status, out, err = atoll_command("run", job, "--out", "OUT")
    assert status == 0
    assert re.search(r"^central +loss 0\.\d{4} +accuracy", out, flags=re.M)
    assert "status     completed, 3 rounds" in out
    assert re.search(r"^model +sha256 [0-9a-f]{64}$", out, flags=re.M)
    assert f"report     {tmp_path / 'out' / 'report.html'}" in out
    assert "round 3/3" in err
    names = {"manifest.json", "metrics.jsonl", "model.safetensors", "report.html", "checkpoint"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names


def test_progress_is_one_plain_line_per_round_without_a_terminal(atoll_command, job):
    _, _, err = atoll_command("run", job, "--out", "OUT")
    lines = err.splitlines()
    assert lines[-1].startswith("round 3/3  loss 0.")
    assert all(re.match(r"round [123]/3  loss ", line) for line in lines)
    assert "\x1b" not in err


def test_quiet_run_says_nothing_on_stderr(atoll_command, job):
    assert atoll_command("run", job, "--out", "OUT", "--quiet")[2] == ""


def test_json_is_all_that_goes_to_stdout(atoll_command, job, tmp_path):
    status, out, err = atoll_command("run", job, "--out", "OUT", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["status"] == "completed"
    assert (found["rounds"], found["name"], found["comparison"]) == (3, "tiny", None)
    assert re.fullmatch("[0-9a-f]{64}", found["model_hash"])
    assert 0 <= found["central"]["accuracy"] <= 1
    assert found["report"] == str(tmp_path / "out" / "report.html")
    assert "round 3/3" in err


def test_profile_tells_where_the_time_went(atoll_command, job, tmp_path):
    status, out, err = atoll_command("run", job, "--out", "OUT", "--profile")
    assert status == 0
    table = out[out.index("where the time went") :]
    for words in ("local training", "data set-up", "checkpoints", "results and report", "all "):
        assert re.search(rf"^{words} *[\d.]+ m?s +[\d.]+ %", table, flags=re.M), words
    assert "where the time went" not in err
    assert re.search(r"^12 tasks took", table, flags=re.M)
    assert re.search(r"^path of local training: (stacked|one by one|general)", table, flags=re.M)
    kept = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert kept["rounds"] == 3
    assert sum(p["seconds"] for p in kept["phases"]) == pytest.approx(kept["total"])
    assert atoll_command("run", job, "--out", "OUT", "--resume", "--profile")[2].endswith(
        "so there is no profile\n"
    )
    out = atoll_command("run", job, "--out", "OUT", "--overwrite", "--profile", "--json")[1]
    assert json.loads(out)["profile"]["tasks"] == 12
    atoll_command("run", job, "--out", "OUT", "--overwrite")
    assert not (tmp_path / "out" / "profile.json").exists()


def test_json_stays_pure_when_the_job_is_broken(atoll_command, job):
    status, out, err = atoll_command("run", job, "--out", "OUT", "--json", "--set", "local.lrr=1")
    assert (status, out) == (2, "")
    assert "error job.invalid" in err


def test_folder_is_runs_and_the_name_by_default(atoll_command, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert atoll_command("run", job, "--quiet")[0] == 0
    assert (tmp_path / "runs" / "tiny" / "manifest.json").is_file()


def test_seed_and_settings_are_overrides_of_the_job(atoll_command, job):
    def hashed(*flags):
        status, out, _ = atoll_command(
            "run", job, "--out", "OUT", "--overwrite", "--quiet", "--json", *flags
        )
        assert status == 0
        return json.loads(out)["model_hash"]

    first = hashed()
    assert hashed("--seed", "0") == first
    assert hashed("--seed", "1") == hashed("--set", "seed=1") != first
    assert hashed("--set", "local.lr=0.25") != first


def test_processes_give_the_same_bits(atoll_command, job):
    flags = ["run", job, "--out", "OUT", "--overwrite", "--quiet", "--json"]
    serial = json.loads(atoll_command(*flags)[1])
    spread = json.loads(atoll_command(*flags, "--executor", "processes", "--workers", "1")[1])
    assert spread["model_hash"] == serial["model_hash"]


def test_resuming_an_ended_run_says_so_and_changes_nothing(atoll_command, job, tmp_path):
    done = json.loads(atoll_command("run", job, "--out", "OUT", "--json")[1])
    before = contents(tmp_path / "out")
    status, out, err = atoll_command("run", job, "--out", "OUT", "--resume", "--json")
    assert status == 0
    assert json.loads(out) == done
    assert err == "this run has already ended (completed); nothing was changed\n"
    assert contents(tmp_path / "out") == before


def test_resuming_with_more_rounds_goes_on_to_the_bits_of_a_longer_run(
    atoll_command, job, tmp_path
):
    more = ("--set", "rounds.count=5", "--json")
    whole = json.loads(atoll_command("run", job, "--out", tmp_path / "whole", *more)[1])
    assert atoll_command("run", job, "--out", "OUT")[0] == 0
    status, out, err = atoll_command("run", job, "--out", "OUT", "--resume", *more)
    assert (status, json.loads(out)["model_hash"]) == (0, whole["model_hash"])
    assert [line[:9] for line in err.splitlines()] == ["round 4/5", "round 5/5"]
    status, _, err = atoll_command("run", job, "--out", "OUT", "--resume")
    assert status == 5
    assert "had planned 5 rounds, and 3 are fewer" in err


def test_a_run_begins_at_the_model_of_another(atoll_command, job, tmp_path):
    first = tmp_path / "first"
    assert atoll_command("run", job, "--quiet", "--out", first)[0] == 0
    command = ("run", job, "--quiet", "--json", "--out", "OUT", "--from", first, "--seed", 5)
    status, out, _ = atoll_command(*command)
    assert status == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    before = json.loads((first / "manifest.json").read_text())["model_hash"]
    assert manifest["start"]["model_hash"] == before
    again = atoll_command(*command, "--resume")
    assert (again[0], json.loads(again[1])["model_hash"]) == (0, json.loads(out)["model_hash"])
    status, out, err = atoll_command("run", job, "--from", tmp_path / "gone.npz")
    assert (status, out) == (2, "")
    assert "gone.npz" in err


def test_resuming_where_nothing_was_begins(atoll_command, job):
    status, out, _ = atoll_command("run", job, "--out", "OUT", "--resume")
    assert status == 0
    assert "completed, 3 rounds" in out


def test_resuming_a_broken_off_run_gives_the_same_bits(atoll_command, job, tmp_path, monkeypatch):
    whole = json.loads(atoll_command("run", job, "--out", tmp_path / "whole", "--json")[1])
    status, _, _ = interrupted(atoll_command, job, monkeypatch)
    assert status == 130
    status, out, _ = atoll_command("run", job, "--out", "OUT", "--resume", "--json")
    assert status == 0
    assert json.loads(out)["model_hash"] == whole["model_hash"]
    assert json.loads(out)["status"] == "completed"


def test_resuming_where_no_run_was_begun_says_so(atoll_command, job, tmp_path):
    status, _, err = atoll_command("run", job, "--out", "OUT", "--resume")
    assert status == 0
    assert "holds no run to continue: it begins anew" in err


def interrupted(atoll_command, job, monkeypatch, *flags):
    """A run that is sent one SIGINT while its second round is shown."""
    import signal

    from atoll.report.progress import ProgressLines

    def watched(self, record, shown=ProgressLines.__call__):
        shown(self, record)
        if record["round"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLines, "__call__", watched)
        return atoll_command("run", job, "--out", "OUT", *flags)


def test_interrupted_run_ends_with_130_and_the_way_to_continue(atoll_command, job, monkeypatch):
    status, out, err = interrupted(atoll_command, job, monkeypatch)
    assert status == 130
    assert "status     interrupted, 2 rounds" in out
    assert err.endswith("interrupted; continue with the same command and --resume\n")
    err = interrupted(atoll_command, job, monkeypatch, "--overwrite")[2]
    assert err.endswith("the same command and --resume in place of --overwrite\n")


def test_tensorboard_events_lie_in_the_run_s_folder(atoll_command, job, tmp_path):
    pytest.importorskip("tensorboardX")
    status, _, err = atoll_command("run", job, "--out", "OUT", "--tensorboard")
    assert status == 0, err
    assert len(list((tmp_path / "out" / "tensorboard").glob("events.out.tfevents*"))) == 1


def test_tensorboard_does_not_hide_an_earlier_run(atoll_command, job, tmp_path):
    pytest.importorskip("tensorboardX")
    assert atoll_command("run", job, "--out", "OUT", "--tensorboard")[0] == 0
    before = contents(tmp_path / "out")
    assert atoll_command("run", job, "--out", "OUT", "--tensorboard")[0] == 5
    assert contents(tmp_path / "out") == before
    assert atoll_command("run", job, "--out", "OUT", "--tensorboard", "--overwrite")[0] == 0


def test_broken_job_leaves_no_tensorboard_folder(atoll_command, job, tmp_path):
    pytest.importorskip("tensorboardX")
    status, _, _ = atoll_command(
        "run", job, "--out", "OUT", "--tensorboard", "--set", "rounds.quorum=9"
    )
    assert status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_resumed_run_hides_events_of_rounds_that_were_lost(
    atoll_command, job, monkeypatch, resume, tmp_path
):
    pytest.importorskip("tensorboardX")
    from atoll.report import tensorboard

    made = []
    real = tensorboard.TensorBoard.__init__

    def noted(self, folder, *, resumed_at=None):
        made.append(resumed_at)
        real(self, folder, resumed_at=resumed_at)

    monkeypatch.setattr(tensorboard.TensorBoard, "__init__", noted)
    assert interrupted(atoll_command, job, monkeypatch, "--tensorboard")[0] == 130
    flag = "--resume" if resume else "--overwrite"
    assert atoll_command("run", job, "--out", "OUT", "--tensorboard", flag)[0] == 0
    assert made == [None, 2 if resume else None]


def test_tensorboard_without_its_library_is_told_before_training(
    atoll_command, job, monkeypatch, tmp_path
):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name)
    )
    status, _, err = atoll_command("run", job, "--out", "OUT", "--tensorboard")
    assert status == 6
    assert "pip install 'atoll[tracking]'" in err
    assert not (tmp_path / "out").exists()


def test_check_tells_hash_clients_and_notes(atoll_command, job):
    status, out, err = atoll_command("check", job)
    assert (status, err) == (0, "")
    assert re.search(r"^hash +[0-9a-f]{64}$", out, flags=re.M)
    assert "clients    4 with 80 training rows" in out
    assert out.endswith("no faults found\n")


def test_check_finds_what_run_would_find(atoll_command, job):
    flags = ["--set", "rounds.cohort=uniform", "--set", "rounds.size=5"]
    checked = atoll_command("check", job, *flags)
    ran = atoll_command("run", job, "--out", "OUT", *flags)
    assert checked[0] == ran[0] == 2
    assert checked[2] == ran[2]
    assert "a cohort of 5 from a federation of 4 clients" in checked[2]


def test_check_may_leave_the_data_unread(atoll_command, job):
    gone = ["--set", "data.source=gone.csv", "--set", "data.target=y", "--set", "data.options={}"]
    assert atoll_command("check", job, *gone)[0] == 3
    status, out, _ = atoll_command("check", job, "--no-data", *gone)
    assert status == 0
    assert out.endswith("the data were not read\n")


def test_check_prints_the_canonical_form_as_json(atoll_command, job):
    status, out, err = atoll_command("check", job, "--json")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert found["job"]["data"]["source"] == "fcube"
    assert found["clients"] == {f"client-000{i}": 20 for i in range(4)}
    assert found["notes"] == []
    assert f"hash       {found['hash']}" in atoll_command("check", job)[1]


def test_report_is_written_again(atoll_command, job, tmp_path):
    atoll_command("run", job, "--out", "OUT")
    page = tmp_path / "out" / "report.html"
    first = page.read_bytes()
    page.unlink()
    assert atoll_command("report", "OUT") == (0, f"{page}\n", "")
    assert page.read_bytes() == first


def test_report_of_no_run_is_a_storage_error(atoll_command, tmp_path):
    status, out, err = atoll_command("report", "OUT")
    assert (status, out) == (5, "")
    assert "error storage.unwritable  no run in" in err
    assert "next: name a folder that 'atoll run' wrote" in err
    assert not (tmp_path / "out").exists()


def test_methods_lists_every_algorithm_with_its_options(atoll_command):
    status, out, _ = atoll_command("methods")
    rows = dict(line.split(None, 1) for line in out.splitlines()[1:])
    assert status == 0
    assert list(rows) == list(ALGORITHMS)
    assert rows["fedprox"] == "mu=0.01, server_lr=1.0"


def test_wrong_usage_is_status_2(atoll_command):
    assert atoll_command("run")[0] == 2
    assert atoll_command("rum")[0] == 2
    assert atoll_command("run", "x.toml", "--workers", "-1")[0] == 2


def kinds():
    found = [getattr(errors, name) for name in errors.__all__]
    return [k for k in found if isinstance(k, type) and issubclass(k, AtollError)]


@pytest.mark.parametrize("kind", kinds(), ids=lambda k: k.__name__)
def test_every_error_becomes_its_status(atoll_command, monkeypatch, kind):
    def fails(arguments, prog_name):
        raise kind("what happened [here]", remedy="do this")

    monkeypatch.setattr(main_module, "root", fails)
    status, out, err = atoll_command("run")
    assert status == kind.exit_status
    assert out == ""
    assert err == f"error {kind.code}  what happened [here]\n  next: do this\n"


def table(text):
    """Status -> meaning of a table in Markdown or reStructuredText."""
    rows = re.findall(r"^\|? ?(\d+) +(?:\| )?(\S.*?)(?: \|)?$", text, flags=re.M)
    return {int(status): meaning for status, meaning in rows}


def test_page_and_code_tell_the_same_exit_statuses():
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    told = table(page.partition("## Exit status")[2])
    assert told == table(main_module.__doc__ or "")
    assert set(told) >= {k.exit_status for k in kinds()} | {0, 130}


def test_page_lists_every_option():
    import typer.main

    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    group = typer.main.get_command(main_module.root)
    for name, command in group.commands.items():
        part = page.partition(f"## `atoll {name}")[2].partition("\n## ")[0]
        assert part, name
        for parameter in command.params:
            shown = [*parameter.opts, *parameter.secondary_opts]
            if parameter.param_type_name == "option" and "--help" not in shown:
                assert any(f"`{option}" in part for option in shown), f"{name} {shown}"


def test_interrupt_outside_a_run_is_130(atoll_command, monkeypatch):
    def stopped(arguments, prog_name):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "root", stopped)
    assert atoll_command("check") == (130, "", "interrupted\n")


def test_check_says_what_a_private_job_will_have_cost(atoll_command, job):
    pytest.importorskip("dp_accounting")
    flags = ["--set", "evaluation.federated=false", "--set", "privacy.record.found=0.05"]
    status, out, err = atoll_command("check", job, *flags)
    assert (status, err) == (0, "")
    assert re.search(
        r"^privacy    epsilon [23]\.\d\d at delta 1e-05 for one record", out, flags=re.M
    )
    assert "attacks    find at most 5.00 % of the members while they take 1 %" in out
    told = json.loads(atoll_command("check", job, "--json", *flags)[1])["privacy"]
    assert 0.0499 < told["attack"]["found"] <= 0.05
    assert "privacy" not in json.loads(atoll_command("check", job, "--json")[1])
    wrong = [*flags, "--set", "privacy.record.epsilon=3.0"]
    status, out, err = atoll_command("check", job, *wrong)
    assert (status, out) == (2, "")
    assert "privacy.record.found: beside epsilon: noise has one goal" in err
