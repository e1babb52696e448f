"""Statistics in the worker, in the steward's hands, and in the ledger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from journals import KEY

from atoll.cli.main import main
from atoll.core.errors import PolicyError
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.datasets import Datasets
from atoll.node.home import Home
from atoll.node.orders import DatasetBody, Order
from atoll.node.policy.budgets import Budgets
from atoll.node.policy.ledger import Accounts, Charge, Entry, Limit
from atoll.node.policy.ledger_file import Ledger
from atoll.node.policy.pricing import Facts, price
from atoll.node.policy.steward import Asked, Steward
from atoll.node.room.workplace import Workplace
from atoll.node.rules import Rule
from atoll.node.settings import Policy
from atoll.wire.frames import Allowed, Blob, encode, open_frame
from atoll.wire.messages import BlobRef, TaskBody

ANY = Allowed(most_arrays=100, most_bytes=1 << 30)
CODE = BlobRef(sha256="0" * 64, size=1)


def job(**more: Any) -> Any:
    asked = [
        {"kind": "correlation", "columns": ["age"]},
        {"kind": "anova", "column": "age", "by": "sex"},
    ]
    raw = {"data": {"source": "rows.csv"}, "statistics": {"analyses": asked}, **more}
    return parse_job(raw, folder=Path())


def task(kind: str = "survey", number: int = 0, code: Any = None) -> TaskBody:
    plan = BlobRef(sha256="0" * 64, size=1)
    name = f"r1.{kind}.{number}.east"
    return TaskBody(  # type: ignore[arg-type]
        id=name, run="r1", kind=kind, number=number, client="east", plan=plan, code=code or {}
    )


class Place:
    """A worker's work, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = "\n".join(f"{40 + i % 9},{'fm'[i % 2]}" for i in range(40))
        (folder / "rows.csv").write_text(f"age,sex\n{rows}\n")
        self.register = Datasets(folder / "datasets.toml")
        self.register.add("rows", folder / "rows.csv")
        self.work = Workplace(folder / "code")

    def answer(self, kind: str, code: dict[str, str] | None = None, **plan: Any) -> dict[str, Any]:
        body = {"run": "r1", "by": "ana", "spec": spec_to_plain(job()), "sites": ["east"], **plan}
        raw = encode(body)
        path = self.folder / Blob.of(raw).sha256
        path.write_bytes(raw)
        order = Order(
            task=task(kind),
            plan=str(path),
            code=code or {},
            result=str(self.folder / "result"),
            keep=str(self.folder / "keep"),
            dataset=DatasetBody.model_validate(self.register.get("rows").to_plain()),
        )
        self.work.carry_out(order)
        return open_frame(self.folder / "result", ANY)[0]


def test_the_worker_tells_columns_and_never_counts(tmp_path: Path) -> None:
    told = Place(tmp_path).answer("survey")["answer"]
    assert told == {
        "columns": {
            "age": {"text": False, "levels": None, "binary": False},
            "sex": {"text": True, "levels": ["f", "m"], "binary": False},
        },
        "rule": {"minimum": 11, "person": "", "extremes": False},
    }


def test_columns_that_the_table_lacks_are_all_told_by_name_and_no_others(tmp_path: Path) -> None:
    place = Place(tmp_path)
    asked = [{"kind": "describe", "columns": ["age", "ages"]}, {"kind": "t_test", "column": "bmi"}]
    asked[1]["by"] = "sex"
    failed = place.answer("survey", spec=spec_to_plain(job(statistics={"analyses": asked})))
    assert failed["status"] == "failed"
    for name in ("ages", "bmi"):
        assert f"site 'east', column '{name}': is not in this site's table" in failed["reason"]
    assert "atoll doctor --job" in failed["reason"]
    for hers in ("'age'", "'sex'"):  # what her table has else, a suggestion would tell
        assert hers not in failed["reason"]


def test_a_file_that_is_gone_is_told_without_its_path(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "rows.csv").rename(tmp_path / "moved.csv")
    failed = place.answer("survey")
    assert "the dataset's file: is not there" in failed["reason"]
    assert tmp_path.name not in failed["reason"]
    (tmp_path / "rows.csv").write_text("age;sex\n40;f\n")
    assert "is no table that can be read" in place.answer("survey")["reason"]


def test_a_column_that_has_changed_is_told_with_what_has_become_of_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "rows.csv").write_text("age,gender\nsixty,f\n")
    reason = place.answer("survey")["reason"]
    assert "column 'sex': is gone since the dataset was registered" in reason
    assert "column 'age': was registered as number and now is text" in reason
    assert "sixty" not in reason


def test_a_word_among_numbers_is_told_as_that_and_not_as_a_rare_category(tmp_path: Path) -> None:
    place = Place(tmp_path)
    rows = "\n".join(f"{40 + i % 9},{'fm'[i % 2]}" for i in range(40))
    (tmp_path / "rows.csv").write_text(f"age,sex\n{rows}\nunknown,f\n")
    place.register.add("rows", tmp_path / "rows.csv")
    failed = place.answer("survey")
    assert "column 'age': holds text beside numbers at this site" in failed["reason"]
    assert "unknown" not in failed["reason"]


def test_a_rule_that_is_changed_holds_from_the_next_task_on(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.answer("survey")["status"] == "done"
    place.register.govern("rows", Rule(minimum=41))
    refused = place.answer("survey")
    assert refused["status"] == "refused"
    assert "fewer than 41 persons" in refused["reason"]


def test_a_worker_with_code_answers_no_statistics(tmp_path: Path) -> None:
    place = Place(tmp_path)
    own = tmp_path / "own.py"
    own.write_text("raise SystemExit('ran')")
    refused = place.answer("survey", {"own.py": str(own)})
    assert refused["status"] == "failed"
    assert "statistics bring no code" in refused["reason"]


@pytest.mark.parametrize("kind", ["sums", "evaluate"])
def test_statistics_have_no_sums_of_columns_and_no_evaluation(tmp_path: Path, kind: str) -> None:
    assert f"statistics have no '{kind}'" in Place(tmp_path).answer(kind)["reason"]


def steward(folder: Path, limit: float = 0.0) -> tuple[Steward, Ledger]:
    home = Home(folder)
    home.make()
    if limit:
        Budgets(home.budgets).set(Limit("rows", limit, 1e-5))
    book = Ledger(home.ledger, KEY)
    return Steward(home, Policy(), book), book


def test_each_round_is_listed_as_a_query_and_costs_no_epsilon(tmp_path: Path) -> None:
    rules, book = steward(tmp_path)
    for number in range(2):
        rules.admit(task("train", number), Asked(job(), "rows", "ana"))
        rules.leave(f"r1.train.{number}.east", "a" * 64)
        rules.settle(f"r1.train.{number}.east")
    assert [entry.state for entry in book.entries] == ["settled", "settled"]
    (event,) = book.entries[0].charge.events
    assert event == {"kind": "query", "analyses": ["correlation (correlation)", "anova (anova)"]}
    assert book.spent(Limit("rows", 1.0, 1e-5)) == 0.0


def test_a_dataset_with_a_limit_refuses_statistics(tmp_path: Path) -> None:
    rules, book = steward(tmp_path, limit=3.0)
    for kind in ("survey", "train"):
        with pytest.raises(PolicyError, match=r"policy\.private"):
            rules.admit(task(kind), Asked(job(), "rows", "ana"))
    assert book.entries == ()


def test_the_node_gives_no_code_to_a_worker_of_statistics(tmp_path: Path) -> None:
    rules, _ = steward(tmp_path)
    with pytest.raises(PolicyError, match="comes with code"):
        rules.admit(task(code={"own.py": CODE}), Asked(job(), "rows", "ana"))


def test_queries_are_counted_beside_epsilon(tmp_path: Path) -> None:
    events = tuple(event for cost in price(job(), Facts()) for event in cost.events or ())
    noisy = ({"kind": "gaussian", "noise_multiplier": 2.0, "sampling": 1.0, "count": 1},)
    accounts = Accounts(lambda found, delta, relation: float(len(found)))
    accounts.take(Entry(Charge("r1.train.0.e", "rows", "site", events, "ab", "r1"), "settled"))
    accounts.take(Entry(Charge("r1.train.1.e", "rows", "site", events, "ab", "r1"), "settled"))
    accounts.take(Entry(Charge("r2.train.0.e", "rows", "site", noisy, "cd", "r2"), "settled"))
    (found,) = accounts.balances([Limit("rows", 3.0, 1e-5)])
    assert (found.rounds, found.runs, found.queries, found.spent) == (3, 2, 1, 1.0)
    (bare,) = accounts.balances([])
    assert math.isnan(bare.spent)


def test_a_steward_sets_and_sees_a_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, home = Place(tmp_path), ["--home", str(tmp_path)]
    rule = ["node", "data", "rule", "rows"]
    assert main([*rule, "--minimum", "20", "--column", "age", "--extremes", *home]) == 0
    assert place.register.get("rows").rule == Rule(minimum=20, columns=("age",), extremes=True)
    assert main([*rule, "--column", "*", "--no-extremes", *home]) == 0
    assert place.register.get("rows").rule == Rule(minimum=20)
    capsys.readouterr()
    assert main([*rule, *home]) == 0
    assert "each row is one" in capsys.readouterr().out
    assert main([*rule, "--small", "open", *home]) == 3
    assert main(["node", "data", "review", "rows", *home]) == 0
    assert "asked nothing" in capsys.readouterr().err
