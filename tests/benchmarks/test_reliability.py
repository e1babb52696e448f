"""What a row of the reliability page misses is said, and is the exit status."""

from collections.abc import Iterator

import pytest

from benchmarks import reliability as r

SMALL = [point.name for point in r.POINTS if not point.large]
ALL = [point.name for point in r.POINTS]


def run(*names: str, wrong: tuple[str, ...] = ()) -> r.measures.Killed:
    return r.measures.Killed(tuple(r.Kill("the server", name, 1.0) for name in names), wrong, 1.0)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, tmp_path) -> dict[bool, list[r.measures.Killed]]:
    """The runs that are measured, by whether the model is large; the last of them again and again."""
    runs: dict[bool, list[r.measures.Killed]] = {}

    def played(folder, large, rng) -> Iterator[r.measures.Killed]:
        yield from runs[large]
        while True:
            yield runs[large][-1]

    monkeypatch.setattr(r.measures, "killed_runs", played)
    monkeypatch.setattr(r, "RAW", tmp_path / ".bench" / "raw.jsonl")
    return runs


def measure(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["reliability", "23", "--no-page", *words])
    return r.main()


def test_kills_at_all_points_are_well(killed, monkeypatch, capsys) -> None:
    killed.update({False: [run(*SMALL)], True: [run(*ALL)]})
    assert measure(monkeypatch, "--kills", "10") == 0
    told = capsys.readouterr()
    assert "NOT REACHED" not in told.out
    assert told.err.strip() == ""


def test_a_point_that_is_never_reached_fails_and_is_named(killed, monkeypatch, capsys) -> None:
    lacking = ALL[-1]
    some = [name for name in ALL if name != lacking]
    killed.update({False: [run(*SMALL[:-1])], True: [run(*some)]})
    assert measure(monkeypatch, "--kills", "10") == 1
    told = capsys.readouterr()
    assert f"| {lacking} | node | NOT REACHED | - | - |" in told.out
    assert f"row 23: no kill when {lacking}: not reached" in told.err


def test_points_are_waited_for_beyond_the_number_of_kills(killed, monkeypatch) -> None:
    killed.update({False: [run(*SMALL)], True: [run(*ALL[:9]), run(*ALL[9:])]})
    assert measure(monkeypatch, "--kills", "16") == 0


def test_a_quick_look_need_not_reach_all_points(killed, monkeypatch, capsys) -> None:
    killed.update({False: [run(*SMALL[:4])], True: [run(*ALL[:4])]})
    assert measure(monkeypatch, "--quick") == 0
    assert "NOT REACHED" in capsys.readouterr().out


def test_another_model_after_a_kill_fails(killed, monkeypatch, capsys) -> None:
    killed.update({False: [run(*SMALL, wrong=("another model",))], True: [run(*ALL)]})
    assert measure(monkeypatch, "--kills", "10") == 1
    assert "row 23: another model" in capsys.readouterr().err
