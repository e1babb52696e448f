"""Statistics between real processes: the simulation's results, masks or not; a kill clears no log."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from federation_processes import Federation
from test_federation_masked import admitted, heart_task

import atoll
from atoll.cli.main import main
from atoll.node.datasets import Datasets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOB = Path(__file__).resolve().parents[2] / "examples" / "statistics" / "job.toml"
HERE = ("data.source='heart.csv'",)
PLAIN = (*HERE, "privacy.aggregation='plain'")
MASKED = (*HERE, "privacy.aggregation='masked'")


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_six_hospitals_publish_what_the_simulation_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = heart_task(tmp_path / "job", rounds=1)
    job = shutil.copy(JOB, tmp_path / "job" / "study.toml")
    atoll.simulate(atoll.load_job(job, PLAIN), out=tmp_path / "here", executor="serial")
    expected = results(tmp_path / "here")["analyses"]
    with Federation(tmp_path) as federation:
        admitted(federation, task)

        def asked(settings: tuple[str, ...]) -> Any:
            run = federation.submit(Path(job), settings)
            info = federation.wait(run)
            assert info.status == "completed", info.reason
            return run, results(federation.researcher.result(run, tmp_path / "results" / run))

        refused = federation.wait(federation.submit(Path(job), PLAIN))
        assert "would leave in the clear" in refused.reason
        run, found = asked(MASKED)
        assert found["analyses"] == expected
        for home in federation.homes.values():
            register = Datasets(home.datasets)
            assert main(["node", "data", "rule", "heart", "--small", "clear", *at(home)]) == 0
            assert register.get("heart").rule.small == "clear"
        assert asked(PLAIN)[1]["analyses"] == expected

        # Ten of Cleveland's patients fewer: the difference is refused, by a node that was killed since.
        federation.nodes["clevelandA"].kill()
        federation.nodes["clevelandA"].start()
        fewer = "statistics.where.age.least=37"
        refused = federation.wait(federation.submit(Path(job), [*MASKED, fewer]))
        assert refused.status == "failed"
        assert "would isolate fewer than 11 persons" in refused.reason

        capsys.readouterr()
        home = federation.homes["clevelandA"]
        assert main(["node", "ledger", "show", "--entries", *at(home)]) == 0
        shown = capsys.readouterr().out
        assert "query: table_one (table_one), who-is-ill (logistic)" in shown
        assert run in shown
        assert main(["node", "ledger", "show", "--json", *at(home)]) == 0
        told = json.loads(capsys.readouterr().out)["datasets"][0]
        assert (told["queries"], told["researchers"]) == (2, ["ada"])
        words = ["node", "log", "show", "--dataset", "heart", "--last", "100000", "--json"]
        assert main([*words, *at(home)]) == 0
        lines = json.loads(capsys.readouterr().out)
        assert [e["change"] for e in lines if e["what"] == "dataset"] == ["registered", "changed"]
        left = [e for e in lines if e.get("kind") == "train" and e["outcome"] == "left"]
        assert {e["form"] for e in left if e["run"] == run} == {"masked"}
        assert {e["form"] for e in left if e["run"] != run} == {"plain"}
        refused_for = [e["reason"] for e in lines if e.get("outcome") == "refused"]
        assert "would leave in the clear" in refused_for[0]
        assert "would isolate fewer than 11 persons" in refused_for[-1]


def at(home: Any) -> list[str]:
    return ["--home", str(home.path)]
