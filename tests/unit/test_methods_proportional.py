"""Proportional replay learns from old and new alike, and keeps a uniform sample of each task."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from palimpsest import methods
from palimpsest.methods import proportional
from palimpsest.methods.settings import Proportional

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=3)  # of the tasks of a step


def kept(tasks: list[range], old: range, ratio: float, rng: np.random.Generator) -> list[int]:
    settings = Proportional(name="proportional", ratio=ratio)
    return proportional.kept(old, 7, tasks, [], settings, rng)


def one_after_another(sizes: list[int]) -> list[range]:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


@given(sizes, st.integers(0, 9), st.floats(0.001, 1), st.integers(0, 2**32))
def test_of_every_new_task_a_part_is_added_to_the_old(sizes, num_old, ratio, seed):
    tasks, old = one_after_another(sizes), range(sum(sizes), sum(sizes) + num_old)
    found = kept(tasks, old, ratio, np.random.default_rng(seed))
    assert len(set(found)) == len(found)
    assert found[:num_old] == [*old]
    for task in tasks:
        number = sum(i in task for i in found)
        assert number == max(1, round(ratio * len(task)))
    assert len(found) == num_old + sum(max(1, round(ratio * size)) for size in sizes)
    assert all(type(i) is int for i in found)
    assert found == kept(tasks, old, ratio, np.random.default_rng(seed))


@pytest.mark.parametrize(("size", "number"), [(250, 2), (350, 4), (99, 1), (10, 1), (1, 1)])
def test_one_in_a_hundred_is_rounded_and_is_at_least_one(size, number):
    assert len(kept([range(size)], range(0), 0.01, np.random.default_rng(0))) == number


def test_every_subset_of_every_task_is_as_probable_as_every_other():
    rng = np.random.default_rng(0)
    tasks = [range(6), range(6, 10)]
    drawn = [kept(tasks, range(10, 12), 0.5, rng) for _ in range(6000)]
    for task, ways in zip(tasks, [20, 6], strict=True):  # 3 of 6 and 2 of 4
        subsets = Counter(tuple(i for i in found if i in task) for found in drawn)
        assert len(subsets) == ways
        assert chisquare(list(subsets.values())).pvalue > 1e-3


def test_old_and_new_are_one_pool():
    settings = Proportional(name="proportional", ratio=0.5)
    rng = np.random.default_rng(0)
    found = proportional.order(4, 3, lambda number: [*range(number)], settings, rng)
    assert found == [0, 1, 2, 3, 4, 5, 6]


def test_the_part_is_found_by_its_settings():
    assert methods.part(Proportional(name="proportional", ratio=0.01)) is proportional
