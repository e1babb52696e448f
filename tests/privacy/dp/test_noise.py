import copy
import itertools
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import atoll.privacy.dp.noise as module
from atoll.core.errors import JobError, UpdateRefused
from atoll.privacy.dp.noise import Draws, SystemSource, chosen, gaussian, grid_of, noised, words
from atoll.privacy.dp.normal import BLOCK, LARGEST

MILLION = 1_000_000


def test_emitted_noise_has_its_standard_deviation_and_shape():
    x = gaussian(SystemSource(), MILLION, 2.5)
    assert x.std() == pytest.approx(2.5, rel=0.005)
    assert abs(x.mean()) < 2.5 * 6e-3
    edges = stats.norm.ppf(np.linspace(0, 1, 101)) * 2.5
    counts = np.histogram(x, edges)[0]
    assert stats.chisquare(counts).pvalue > 1e-6
    assert (np.abs(x) > 4 * 2.5).mean() == pytest.approx(2 * stats.norm.sf(4), rel=0.75)


def test_the_tail_is_that_of_the_normal():
    x = np.abs(gaussian(SystemSource(), 4 * MILLION, 1.0))
    for at in (3.5, 4.0, 4.2, 4.6):  # on both sides of where the last layer ends
        expected = 2 * stats.norm.sf(at) * 4 * MILLION
        assert abs((x > at).sum() - expected) < 6 * np.sqrt(expected)


def test_neighbouring_draws_are_independent():
    x = gaussian(SystemSource(), MILLION, 1.0)
    bar = 6 / np.sqrt(MILLION)
    for lag in (1, 2, BLOCK):
        assert abs(np.corrcoef(x[lag:], x[:-lag])[0, 1]) < bar
        assert abs(np.corrcoef(x[lag:] ** 2, x[:-lag] ** 2)[0, 1]) < bar


@pytest.mark.parametrize("size", [1, 2, 7, BLOCK, BLOCK + 3])
def test_any_number_of_draws(replayed, size):
    x = gaussian(replayed(), size, 1.0)
    assert x.shape == (size,)
    assert np.abs(x).min() > 0


def test_draws_and_sums_lie_on_the_grid(replayed):
    values = np.random.default_rng(0).normal(size=1000)
    out = noised(replayed(), values, 3.0, 0.7)
    cells = out / grid_of(2.1)
    assert np.array_equal(cells, np.rint(cells))
    x = gaussian(replayed(), 1000, 0.3) / grid_of(0.3)
    assert np.array_equal(x, np.rint(x))


def test_what_is_released_is_the_cut_value_and_noise_that_does_not_depend_on_it(replayed):
    # Identity 12 and the attack on low bits: the difference of two releases is that of the values.
    values = np.random.default_rng(1).normal(size=5000)
    noise = noised(replayed(3), np.zeros(5000), 1.0, 1.0)
    grid = grid_of(1.0 + 2.0**-23 * 71)
    assert np.array_equal(
        noised(replayed(3), values, 1.0, 1.0), np.trunc(values / grid) * grid + noise
    )


def test_noise_on_zeros_is_multiplier_times_bound():
    sd = 1.3 * 0.5
    out = noised(SystemSource(), np.zeros(MILLION), bound=0.5, noise_multiplier=1.3)
    assert abs(out.std() - sd) < 6 * sd / np.sqrt(2 * MILLION)


def test_results_keep_shape_and_take_the_dtype(replayed):
    out = noised(replayed(), np.zeros((3, 4), np.float32), 1.0, 1.0, "float32")
    assert out.shape == (3, 4)
    assert out.dtype == np.float32
    assert Draws(replayed()).noised(np.zeros(2, np.float32), 1.0, 1.0).dtype == np.float32


def test_float32_is_released_as_float64_is(replayed):
    # Half as wide inside, the same sums: also where a block has values that do not fit into 30 bits.
    values = np.random.default_rng(2).normal(0, 2.0**23, 3 * BLOCK).astype(np.float32)
    values[BLOCK : 2 * BLOCK] *= 2.0 * LARGEST * 2.0**-23
    bound = 2.0**23
    assert Draws(replayed()).cell(values.size, bound, 1.0) == 1
    wide = noised(replayed(5), values.astype(np.float64), bound, 1.0)
    half = noised(replayed(5), values, bound, 1.0, "float32")
    assert np.array_equal(half, wide.astype(np.float32))


@pytest.mark.parametrize("sd", [1e-36, 1e35])
def test_noise_of_any_size_in_float32(sd):
    out = noised(SystemSource(), np.zeros(20_000, np.float32), sd, 1.0, "float32")
    assert np.std(out.astype(np.float64)) == pytest.approx(sd, rel=0.05)


def test_a_result_can_take_the_place_of_its_values(replayed):
    values = np.random.default_rng(3).normal(size=(30, 40)).astype(np.float32)
    fresh = noised(replayed(7), values, 1.0, 1.0, "float32")
    held = values.copy()
    assert noised(replayed(7), held, 1.0, 1.0, out=held) is held
    assert np.array_equal(held, fresh)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_cannot_be_hidden_are_refused(replayed, bad):
    with pytest.raises(UpdateRefused):
        noised(replayed(), np.array([0.0, bad]), 1.0, 1.0)


@pytest.mark.parametrize(("bound", "z"), [(0.0, 1.0), (1.0, 0.0), (np.inf, 1.0), (1.0, np.nan)])
def test_noise_without_a_size_is_refused(replayed, bound, z):
    with pytest.raises(JobError):
        noised(replayed(), np.zeros(1), bound, z)


def test_each_row_is_taken_with_its_probability():
    counts = np.zeros(200)
    source = SystemSource()
    for _ in range(2000):
        counts[chosen(source, 200, 0.1)] += 1
    z = (counts - 200) / np.sqrt(2000 * 0.1 * 0.9)
    assert np.abs(z).max() < 5.5
    assert z.std() == pytest.approx(1.0, abs=0.25)
    assert chosen(source, 5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert chosen(source, 1000, 1e-12).size == 0
    with pytest.raises(JobError):
        chosen(source, 5, 0.0)


def test_how_many_rows_are_taken_is_random():
    sizes = {chosen(SystemSource(), 1000, 0.5).size for _ in range(20)}
    assert len(sizes) > 5


def test_sources_copies_and_messages_never_repeat():
    source = SystemSource()
    source.fill(np.empty(4, np.uint8))
    others = [source, SystemSource(), copy.deepcopy(source), pickle.loads(pickle.dumps(source))]
    assert len({words(s, 2).tobytes() for s in others}) == 4


SOME = 50_000


def shared(one, other):
    """How many values two releases on nothing have in common: 40 or so by chance."""
    return len(np.intersect1d(one, other))


def test_spare_draws_of_one_step_serve_the_next_and_no_other():
    draws, nothing = Draws(), np.zeros(SOME, np.float32)
    steps = [draws.noised(nothing, 1.0, 1.0) for _ in range(4)]
    assert max(shared(a, b) for a, b in itertools.combinations(steps, 2)) < 200
    assert np.std(steps) == pytest.approx(1.0, rel=0.02)
    (kept,) = draws._kept.values()
    assert kept._normals._lower._others.size > 0
    for other in (copy.deepcopy(draws), pickle.loads(pickle.dumps(draws))):
        assert shared(draws.noised(nothing, 1.0, 1.0), other.noised(nothing, 1.0, 1.0)) < 200


def test_another_bound_or_size_gets_noise_of_its_own():
    draws = Draws()
    for bound, size in ((1.0, SOME), (3.0, SOME), (3.0, 7), (1.0, SOME)):
        out = draws.noised(np.zeros(size, np.float32), bound, 0.5)
        assert out.shape == (size,)
        if size == SOME:
            assert out.std() == pytest.approx(bound / 2, rel=0.03)


def test_threads_that_share_draws_get_noise_of_their_own():
    draws, nothing = Draws(), np.zeros(SOME, np.float32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: draws.noised(nothing, 1.0, 1.0), range(12)))
    assert max(shared(a, b) for a, b in itertools.combinations(found, 2)) < 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_no_spare_draws_of_its_parent(tmp_path):
    draws, nothing = Draws(), np.zeros(SOME, np.float32)
    draws.noised(nothing, 1.0, 1.0)
    child = os.fork()
    if child == 0:
        np.save(tmp_path / "child.npy", draws.noised(nothing, 1.0, 1.0))
        os._exit(0)
    os.waitpid(child, 0)
    assert shared(np.load(tmp_path / "child.npy"), draws.noised(nothing, 1.0, 1.0)) < 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_draws_other_bits():
    source = SystemSource()
    words(source, 1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, words(source, 4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 32) != words(source, 4).tobytes()
    os.close(read)
    os.close(write)


def test_the_key_changes_after_so_many_bytes(monkeypatch):
    monkeypatch.setattr(module, "_REKEY", 1 << 18)
    source, keys = SystemSource(), []
    original = SystemSource._rekey
    monkeypatch.setattr(SystemSource, "_rekey", lambda self: (keys.append(1), original(self)))
    source.fill(np.empty(1 << 20, np.uint8))
    assert len(keys) >= 4


def test_bytes_are_uniform():
    counts = np.bincount(words(SystemSource(), MILLION // 8).view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_no_seed_reaches_a_source():
    # Only the tests' own folder knows a source that can be replayed.
    assert SystemSource.__init__.__code__.co_argcount == 1
    folder = Path(module.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "np.random" not in text, path.name
        assert "core.seeds" not in text, path.name
