"""The reservoir is a uniform sample, and what is drawn from it is spread evenly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, chisquare

from palimpsest import methods
from palimpsest.methods import reservoir
from palimpsest.methods.settings import Reservoir

streams = st.lists(st.integers(0, 20), max_size=5)  # lengths of one stage's stream after another


def filled(lengths: list[int], capacity: int, seed: int) -> tuple[list[int], int]:
    """A reservoir of 0, 1, 2, … that arrive in several streams."""
    rng, items, seen = np.random.default_rng(seed), [], 0
    for length in lengths:
        items, seen = reservoir.update(items, seen, range(seen, seen + length), capacity, rng)
    return items, seen


@given(streams, st.integers(1, 30), st.integers(0, 2**32))
def test_it_holds_distinct_items_of_the_streams_up_to_capacity(lengths, capacity, seed):
    items, seen = filled(lengths, capacity, seed)
    assert seen == sum(lengths)
    assert len(items) == len(set(items)) == min(seen, capacity)
    assert set(items) <= set(range(seen))
    assert filled(lengths, capacity, seed) == (items, seen)


def test_every_item_is_kept_with_the_same_probability_whichever_stream_it_came_in():
    runs, capacity, lengths = 6000, 5, [3, 9, 8]
    counts = Counter(i for seed in range(runs) for i in filled(lengths, capacity, seed)[0])
    kept, n = np.array([counts[i] for i in range(20)]), 20
    assert kept.sum() == runs * capacity
    # A sample without replacement spreads less than chi-square supposes, by a known factor.
    spread = chisquare(kept).statistic / ((1 - capacity / n) * n / (n - 1))
    assert 1e-3 < chi2.sf(spread, n - 1) < 1 - 1e-3


def test_every_subset_is_as_probable_as_every_other():
    subsets = Counter(tuple(sorted(filled([2, 4], 3, seed)[0])) for seed in range(6000))
    assert len(subsets) == 20  # ways to choose 3 of 6 items
    assert chisquare(list(subsets.values())).pvalue > 1e-3


def test_the_reservoir_that_was_given_is_not_changed():
    items = [1, 2, 3]
    reservoir.update(items, 3, range(100), 3, np.random.default_rng(0))
    assert items == [1, 2, 3]


@pytest.mark.parametrize(
    ("items", "seen", "capacity"), [([1], 2, 4), ([1, 2], 9, 4), ([1, 2], 2, 1)]
)
def test_a_reservoir_of_another_size_is_refused(items, seen, capacity):
    with pytest.raises(ValueError, match=f"{len(items)} items after {seen} seen, where capacity"):
        reservoir.update(items, seen, [], capacity, np.random.default_rng(0))


@given(st.integers(1, 12), st.integers(0, 50), st.integers(0, 2**32))
def test_draw_takes_every_item_equally_often(size, n, seed):
    drawn = reservoir.draw(range(size), n, np.random.default_rng(seed))
    assert len(drawn) == n
    assert {drawn.count(i) for i in range(size)} <= {n // size, -(-n // size)}
    for start in range(0, n, size):  # and none a second time before each was there once
        assert len(set(drawn[start : start + size])) == len(drawn[start : start + size])


def test_draw_is_random_over_items_and_order():
    runs = 6000
    rng = np.random.default_rng(3)
    pairs = Counter(tuple(reservoir.draw("abcd", 2, rng)) for _ in range(runs))
    assert len(pairs) == 12
    assert chisquare(list(pairs.values())).pvalue > 1e-3


def test_an_empty_reservoir_gives_nothing_but_nothing():
    assert reservoir.draw([], 0, np.random.default_rng(0)) == []
    with pytest.raises(ValueError, match="3 items asked for, but it is empty"):
        reservoir.draw([], 3, np.random.default_rng(0))


def in_turn(number: int) -> list[int]:
    return [i % number for i in range(16)]


SETTINGS = Reservoir(name="reservoir", capacity=3, share=0.25)


def test_old_positions_take_the_place_of_the_last_new_ones():
    samples = reservoir.order(10, 3, in_turn, SETTINGS, np.random.default_rng(0))
    assert samples[:12] == in_turn(10)[:12]
    assert set(samples[12:]) == {10, 11, 12}
    assert len(samples) == 16
    assert reservoir.order(10, 0, in_turn, SETTINGS, np.random.default_rng(0)) == in_turn(10)


def test_what_is_kept_is_the_reservoir_after_what_was_learnt():
    """Of 3 old positions, after 5 seen, and 4 new ones each is kept as often: 3 times in 9."""
    kept: Counter[int] = Counter()
    rng = np.random.default_rng(0)
    for _ in range(6000):
        kept.update(reservoir.kept([9, 10, 11], 5, [range(9)], [8, 0, 3, 4], SETTINGS, rng))
    assert set(kept) == {9, 10, 11, 8, 0, 3, 4}
    new, old = [kept[i] for i in (8, 0, 3, 4)], [kept[i] for i in (9, 10, 11)]
    assert np.allclose(new, 6000 * 3 / 9, rtol=0.05)
    assert np.allclose(old, 6000 * (3 - 4 * 3 / 9) / 3, rtol=0.05)  # those that had been kept


def test_the_part_is_found_by_its_settings():
    assert methods.part(Reservoir(name="reservoir", capacity=3, share=0.5)) is reservoir
