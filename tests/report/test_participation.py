from __future__ import annotations

from collections.abc import Callable
from typing import Any

from atoll.report.participation import participation, participation_section, sentence

Maker = Callable[..., dict[str, Any]]


def said(manifest: dict[str, Any], rounds: list[dict[str, Any]]) -> str:
    return sentence(manifest, participation(manifest, rounds))


def test_full_participation_is_one_sentence(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    assert said(manifest, rounds) == "All 3 sites contributed in each of the 6 rounds."
    assert said(manifest, rounds[:1]) == "All 3 sites contributed in the only round."


def test_no_round_is_said(manifest: dict[str, Any]) -> None:
    assert said(manifest, []) == "No round was run, so nobody took part."


def test_whoever_is_missing_is_named_with_the_reasons(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    for index, reason in ((1, "late: 3.2 after the deadline 3.0"), (2, "refused: not finite")):
        del rounds[index]["contributed"]["west"]
        rounds[index]["missing"] = {"west": reason}
    assert said(manifest, rounds) == (
        "16 of 18 tasks entered the model (88.9 %). The others: late 1, update refused 1. "
        "west is in 4 of 6 rounds."
    )


def test_a_site_that_never_came_is_named(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    for record in rounds:
        del record["contributed"]["west"]
        record["missing"] = {"west": "unavailable: no answer"}
    assert "Never contributed: west." in said(manifest, rounds)


def test_updates_of_a_round_that_was_not_committed_did_not_enter_the_model(
    manifest: dict[str, Any], rounds: list[dict[str, Any]], make_record: Maker
) -> None:
    rounds[3] = make_record(4, committed=False, reason="quorum", contributed={})
    words = said(manifest, rounds)
    assert words.startswith("15 of 18 tasks entered the model (83.3 %).")
    assert "round not committed 3" in words
    assert words.endswith("1 of 6 rounds was not committed.")


def test_tasks_still_under_way_are_not_held_against_anybody(
    manifest: dict[str, Any], make_record: Maker
) -> None:
    rounds = [make_record(1, contributed={"north": 100, "south": 60})]
    people = participation(manifest, rounds)
    assert people.totals() == {"contributed": 2, "underway": 1}
    assert sentence(manifest, people).startswith("2 of 2 tasks")


def test_a_sliver_is_never_rounded_to_everything(make_record: Maker) -> None:
    clients = {f"c{i}": 1 for i in range(2001)}
    rounds = [
        make_record(
            1,
            invited=list(clients),
            contributed=dict(list(clients.items())[1:]),
            missing={"c0": "late"},
        )
    ]
    words = said({}, rounds)
    assert words.startswith("2,000 of 2,001 tasks entered the model (99.9 %).")
    assert "2,000 of 2,001 clients contributed at least once." in words


def test_each_cell_tells_client_round_and_reason(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    rounds[1]["missing"] = {"west": "late: 3.2 after the deadline 3.0"}
    del rounds[1]["contributed"]["west"]
    strip = participation_section(participation(manifest, rounds))
    assert strip.count("<rect") == 3 * 6
    assert "west, round 2: late: 3.2 after the deadline 3.0" in strip
    assert "north, round 1: contributed 100 rows" in strip
    assert strip.count('class="fill m-late"') == 1


def test_many_rounds_share_cells(manifest: dict[str, Any], make_record: Maker) -> None:
    rounds = [make_record(i) for i in range(1, 1001)]
    strip = participation_section(participation(manifest, rounds))
    assert "9 rounds in a cell" in strip
    assert "north, rounds 1-9: contributed 9" in strip
    assert strip.count("<rect") == 3 * 112


def test_many_clients_are_shown_together(make_record: Maker) -> None:
    clients = {f"c{i:03d}": 10 for i in range(61)}
    rounds = [make_record(i, invited=list(clients), contributed=clients) for i in range(1, 5)]
    section = participation_section(participation({}, rounds))
    assert "Participation per client and round" not in section
    assert "round 1: contributed 61" in section
    assert "4 rounds: clients 61" in section
    assert "the 20 that contributed least" in section


def test_clients_nobody_invited_are_counted_though_not_named(
    manifest: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    large = {**manifest, "population": {"clients": 1_000_000}}
    words = said(large, rounds)
    assert words.startswith("18 of 18 tasks entered the model (100 %).")
    assert words.endswith("3 of 1,000,000 clients contributed at least once.")
    page = str(participation_section(participation(large, rounds)))
    assert "999,997" in page
    assert "of those invited" in page
    assert said({**manifest, "population": {"clients": 3}}, rounds) == said(manifest, rounds)
