"""Who of those that are ready makes up a buffer."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.crew import Crew

READY = st.lists(st.integers(0, 4), max_size=14).map(
    lambda versions: [(f"t{n}", version) for n, version in enumerate(versions)]
)


@given(READY, st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_a_buffer_is_of_the_right_size_and_nobody_is_alone_with_its_version(
    ready: list[tuple[str, int]], size: int, apart: int, over: bool
) -> None:
    chosen = Crew(size, apart, max(1, size - 1)).chosen(ready, over)
    versions = Counter(version for name, version in ready if name in chosen)
    assert len(chosen) in ((0, size, size - 1) if over else (0, size))
    assert len(set(chosen)) == len(chosen)
    assert all(count >= apart for count in versions.values())


@given(READY, st.integers(1, 8), st.integers(1, 4))
def test_there_is_a_buffer_whenever_some_choice_would_be_one(
    ready: list[tuple[str, int]], size: int, apart: int
) -> None:
    counts = sorted(Counter(version for _, version in ready).values(), reverse=True)
    large = [count for count in counts if count >= apart][: size // apart]
    assert bool(Crew(size, apart).chosen(ready)) == (sum(large) >= size)


@given(READY, st.integers(1, 8), st.integers(1, 4))
def test_more_who_are_ready_never_undo_a_buffer(
    ready: list[tuple[str, int]], size: int, apart: int
) -> None:
    crew = Crew(size, apart)
    found = [bool(crew.chosen(ready[:n])) for n in range(len(ready) + 1)]
    assert found == sorted(found)


def test_who_was_noted_is_waited_for_and_no_other() -> None:
    crew = Crew(3, 1, 2, noted=("b", "c", "e"))
    ready = [(name, 0) for name in "abcd"]
    assert crew.chosen(ready) == ()
    assert crew.chosen([*ready, ("e", 0)]) == ("b", "c", "e")
    assert crew.chosen(ready, over=True) == ("a", "b", "c")  # it will not come any more


@given(st.lists(st.integers(0, 4), max_size=14), st.integers(2, 8), st.integers(1, 4))
def test_who_is_lonely_is_in_no_buffer(versions: list[int], size: int, apart: int) -> None:
    crew = Crew(size, min(apart, size))
    lonely = crew.lonely(versions)
    chosen = crew.chosen([(f"t{n}", version) for n, version in enumerate(versions)])
    assert not lonely & {versions[int(name[1:])] for name in chosen}
