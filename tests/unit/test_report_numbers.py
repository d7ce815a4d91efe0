"""The report's numbers: aggregates against brute force, bootstrap against a loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from palimpsest.report.statistics import aggregates as agg
from palimpsest.report.statistics.bootstrap import (
    interval,
    resample_indices,
    resampled_means,
)

# Row 0 the base, three stages of a task each, in the order of learning.
A = np.array([[10.0, 20.0, 30.0], [90.0, 25.0, 20.0], [60.0, 80.0, 40.0], [95.0, 50.0, 70.0]])
OWN = np.array([1, 2, 3])

COIN_OWN = [82.45, 49.99, 96.05, 56.40, 55.45, 31.27, 62.20, 57.08]
COIN_LAST = [21.26, 28.74, 10.25, 36.78, 32.45, 0.83, 42.50, 57.08]


def coin_matrix():
    """Return the cells of CoIN's LoRA row that are known; the others were not evaluated."""
    a = np.full((9, 8), np.nan)
    a[np.arange(1, 9), np.arange(8)] = COIN_OWN
    a[8] = COIN_LAST
    return a, np.arange(1, 9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("average_accuracy", (95 + 50 + 70) / 3),
        ("learning_accuracy", (90 + 80 + 70) / 3),
        ("mean_average_accuracy", (90 + (60 + 80) / 2 + (95 + 50 + 70) / 3) / 3),
        ("bwt_coin", ((95 - 90) + (50 - 80) + 0) / 3),
        ("bwt_gem", ((95 - 90) + (50 - 80)) / 2),
        ("forgetting", ((90 - 95) + (80 - 50)) / 2),
        ("final_minus_best", ((95 - 95) + (50 - 80) + (70 - 70)) / 3),
        ("forward_transfer", ((25 - 20) + (40 - 30)) / 2),
    ],
)
def test_an_aggregate_by_hand(name, expected):
    compute = agg.by_name(name).compute
    assert compute(A, OWN) == pytest.approx(expected)
    stacked = np.stack([A, A + 1])  # leading axes are resamples
    assert compute(stacked, OWN)[0] == pytest.approx(expected)
    assert compute(stacked, OWN).shape == (2,)


def test_intransigence_is_joint_minus_the_diagonal():
    joint = np.array([95.0, 90.0, 60.0])
    assert agg.intransigence(A, OWN, joint) == pytest.approx((5 + 10 - 10) / 3)


def test_bwt_of_coin_divides_by_all_tasks():
    a, own = coin_matrix()
    assert agg.bwt_coin(a, own) == pytest.approx(-32.62, abs=0.006)
    assert agg.bwt_gem(a, own) == pytest.approx(-37.29, abs=0.006)


def test_cells_that_were_not_evaluated_stay_unknown():
    a, own = coin_matrix()
    assert np.isnan(agg.forward_transfer(a, own))
    assert np.isnan(agg.mean_average_accuracy(a, own))
    assert agg.forgetting(a, own) == pytest.approx(37.29, abs=0.006)  # best of what is known


def test_a_step_of_several_tasks_counts_each_of_them():
    own = np.array([1, 1, 2])  # the first two learnt jointly
    a = np.array([[0.0, 0.0, 5.0], [80.0, 60.0, 15.0], [50.0, 40.0, 90.0]])
    assert agg.bwt_gem(a, own) == pytest.approx(-(30 + 20) / 2)
    assert agg.mean_average_accuracy(a, own) == pytest.approx((70 + 60) / 2)
    assert agg.forward_transfer(a, own) == pytest.approx(10)


def test_a_single_stage_forgets_nothing_that_could_be_measured():
    a, own = np.array([[0.0, 1.0], [50.0, 60.0]]), np.array([1, 1])
    assert np.isnan(agg.forgetting(a, own))
    assert agg.bwt_coin(a, own) == 0


@given(arrays(np.float64, (5, 4), elements=st.floats(0, 100)), st.permutations(range(4)))
def test_aggregates_hold_their_bounds_in_any_order_of_columns(a, order):
    own = np.array([1, 2, 3, 4])
    order = list(order)
    for aggregate in agg.AGGREGATES[:-1]:
        direct = aggregate.compute(a, own)
        assert aggregate.compute(a[:, order], own[order]) == pytest.approx(direct, abs=1e-9)
    assert agg.final_minus_best(a, own) <= 1e-9
    assert agg.forgetting(a, own) >= -agg.bwt_gem(a, own) - 1e-9
    assert agg.bwt_coin(a, own) * 4 == pytest.approx(agg.bwt_gem(a, own) * 3, abs=1e-9)


def test_resampled_means_equal_a_loop_over_the_same_indices(monkeypatch):
    score_KN = np.random.default_rng(0).random((3, 37))
    monkeypatch.setattr("palimpsest.report.statistics.bootstrap.CHUNK", 370)  # several blocks
    index_BN = np.concatenate(list(resample_indices(37, "task", 50)))
    brute = [[np.mean([row[i] for i in index]) for row in score_KN] for index in index_BN]
    assert resampled_means(score_KN, "task", 50) == pytest.approx(np.array(brute))


def test_a_draw_depends_on_the_task_and_on_nothing_else():
    score = np.random.default_rng(1).random((1, 40))
    again = resampled_means(np.vstack([score, 1 - score]), "a", 30)
    assert resampled_means(score, "a", 30)[:, 0] == pytest.approx(again[:, 0], rel=1e-12)
    assert again.sum(1) == pytest.approx(1)  # paired: the same examples for both rows
    assert resampled_means(score, "b", 30)[:, 0] != pytest.approx(again[:, 0], rel=1e-3)


def test_paired_differences_are_narrower_than_unpaired_ones():
    rng = np.random.default_rng(3)
    hard = rng.random(300)
    a, b = (hard < 0.6).astype(float), (hard < 0.55).astype(float)
    both = resampled_means(np.stack([a, b]), "t")
    paired = np.ptp(interval(both[:, 0] - both[:, 1]))
    apart = np.ptp(interval(both[:, 0] - resampled_means(b[None], "other")[:, 0]))
    assert paired < 0.6 * apart
