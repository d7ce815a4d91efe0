"""Intervals and differences: against plain loops, and how often they hold on made matrices."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from palimpsest.report import ExperimentView, RowView, StudyView, TaskView
from palimpsest.report.results import read_results
from palimpsest.report.sections.differences import of_setting
from palimpsest.report.statistics import aggregates as agg
from palimpsest.report.statistics.bootstrap import (
    RESAMPLES,
    detectable,
    interval,
    pool_measured,
    resample_indices,
    resampled_means,
    seed_weights,
    simultaneous,
)
from report_fixture import write_scores

# --------------------------------------------------------------- against plain loops

TASKS = {"signs": 7, "cards": 5}  # and how many examples they have
METHODS, SEEDS = ("lora", "replay", "ewc"), (0, 1, 2)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyView:
    """Three methods with three seeds each; of the first task a later stage forgets."""
    root = tmp_path_factory.mktemp("bootstrap")
    rng = np.random.default_rng(5)

    def cell(where, task):
        path, n = root / where / task, TASKS[task]
        score_N = (rng.random(n) < 0.6).astype(float)
        write_scores(path, "exact_match", [f"{task}-{k}" for k in range(n)], score_N, score_N > 0)
        return path

    base = RowView("base", "base", (), {task: cell("base", task) for task in TASKS})
    experiments = tuple(
        ExperimentView(
            method, method.upper(), "sequential", "mini", method, "first", seed,
            (base, *[RowView(t, t, (t,), {u: cell(f"{method}-{seed}-{t}", u) for u in TASKS})
                     for t in TASKS]),
        )
        for method in METHODS
        for seed in SEEDS
    )  # fmt: skip
    tasks = tuple(TaskView(task, task, "", "exact_match", 0.0) for task in TASKS)
    return StudyView("loops", "Loops", "mini", tasks, experiments, root, "0")


class Loops:
    """All that the report computes of that study, one number at a time."""

    def __init__(self, view: StudyView):
        self.view = view
        self.draws = {
            task: np.concatenate(list(resample_indices(n, task))).tolist()
            for task, n in TASKS.items()
        }
        matrices = read_results(view).sequential
        self.scores = {
            (group.view.name, matrix.experiment.seed): {
                key: cell.score_N.tolist() for key, cell in matrix.cells.items()
            }
            for group in matrices
            for matrix in group.matrices
        }

    def aggregate(self, name, method, seed, draw=None):
        """Return an aggregate of one run, as measured or of a draw of examples."""

        def a(row, task):
            scores = self.scores[method, seed][row, task]
            drawn = scores if draw is None else [scores[k] for k in self.draws[task][draw]]
            return 100 * sum(drawn) / len(drawn)

        if name == "average_accuracy":
            return (a(2, "signs") + a(2, "cards")) / 2
        return a(2, "signs") - a(1, "signs")  # bwt_gem, over the first task alone

    def samples(self, name, method):
        """Return the aggregate, seeds pooled, as measured and of each draw."""
        measured = [self.aggregate(name, method, seed) for seed in SEEDS]
        each = [[self.aggregate(name, method, s, b) for b in range(RESAMPLES)] for s in SEEDS]
        mean = sum(measured) / 3
        means = [sum(of_b) / 3 for of_b in zip(*each, strict=True)]
        spread = sum((value - mean) ** 2 for value in measured)
        explained = 0.0
        for of_seed in each:
            apart = [value - m for value, m in zip(of_seed, means, strict=True)]
            middle = sum(apart) / RESAMPLES
            explained += sum((value - middle) ** 2 for value in apart) / RESAMPLES
        share = max(0.0, 1 - explained / spread) ** 0.5 if spread else 0.0
        weights = seed_weights(3, f"{method}/mini/{method}/first").tolist()
        drawn = [
            m + sum(share * (measured[s] - mean) * weights[s][b] for s in range(3))
            for b, m in enumerate(means)
        ]
        if name == "average_accuracy":
            drawn = [min(100.0, max(0.0, value)) for value in drawn]
        return mean, drawn


def quantile(values, share):
    """Return a quantile, linear between order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("name", ["average_accuracy", "bwt_gem"])
def test_intervals_and_differences_are_those_of_plain_loops(study, name):
    loops = Loops(study)
    results = read_results(study)
    found = {method: loops.samples(name, method) for method in METHODS}
    for group in results.sequential:
        mean, drawn = found[group.view.name]
        e = group.estimates[name]
        ends = (mean, quantile(drawn, 0.025), quantile(drawn, 0.975))
        assert (e.value, e.low, e.high) == pytest.approx(ends)
    minus, arms = {}, {}
    for a, b in combinations(range(3), 2):
        (first, drawn_a), (second, drawn_b) = found[METHODS[a]], found[METHODS[b]]
        value = second - first
        drawn = [y - x for x, y in zip(drawn_a, drawn_b, strict=True)]
        low, high = quantile(drawn, 0.025), quantile(drawn, 0.975)
        minus[b, a] = (value, drawn, low, high)
        arms[b, a] = max(value - low, high - value)
    worst = [
        max(abs(drawn[k] - value) / arms[pair] for pair, (value, drawn, *_) in minus.items())
        for k in range(RESAMPLES)
    ]
    factor = max(1.0, quantile(worst, 0.95))
    told = of_setting(results.sequential)
    assert told.keys() == minus.keys()
    for pair, (value, drawn, low, high) in minus.items():
        d, reach = told[pair][name], factor * arms[pair]
        short = quantile([abs(x - value) for x in drawn], 0.6)
        assert (d.value, d.low, d.high) == pytest.approx((value, low, high))
        assert (d.low_all, d.high_all) == pytest.approx((value - reach, value + reach))
        assert d.detectable == pytest.approx(reach + short)


def test_a_cell_has_the_interval_of_its_own_examples(study):
    results = read_results(study)
    group = results.groups[0]
    cell = group.matrices[0].cells[1, "cards"]
    draws = np.concatenate(list(resample_indices(5, "cards")))
    means = [100 * sum(cell.score_N[k] for k in draw) / 5 for draw in draws.tolist()]
    e = results.cells[cell.path]["value"]
    ends = (cell.value, quantile(means, 0.025), quantile(means, 0.975))
    assert (e.value, e.low, e.high) == pytest.approx(ends)


def test_no_seed_makes_a_score_negative_or_above_100(study):
    for group in read_results(study).sequential:
        assert (group.low_RT >= 0).all()
        assert (group.high_RT <= 100).all()
        assert group.estimates["average_accuracy"].high <= 100


def test_one_seed_is_its_own_pool(study):
    alone = replace(study, experiments=study.experiments[:1])
    group = read_results(alone).groups[0]
    assert group.estimates == group.by_seed[0]


# ---------------------------------------------------------------- how often they hold

TRIALS = 300
NUM_TASKS, NUM_EXAMPLES, DRAWS = 3, 80, 400
OWN = np.arange(1, NUM_TASKS + 1)
OF_ROWS = ("average_accuracy", "learning_accuracy", "mean_average_accuracy", "bwt_coin", "bwt_gem")


def made_matrices(num_seeds: int, spread: float):
    """Return the resampled matrices (S, 1 + DRAWS, TRIALS, R, T) of made runs, and the true one.

    Examples differ in difficulty, runs in ability by `spread` (standard deviation in logits of all
    cells, and as much again of each), and what is right beside that is chance.
    """
    rng = np.random.default_rng([7, num_seeds])
    rows, shape = NUM_TASKS + 1, (TRIALS, num_seeds, NUM_TASKS + 1)
    logit_RT = np.where(np.arange(rows)[:, None] >= OWN, 1.5, -1.5) - 0.6 * (
        np.maximum(np.arange(rows)[:, None] - OWN, 0)
    )
    run = spread * rng.standard_normal((TRIALS, num_seeds, 1, 1))
    ability = logit_RT + run + spread * rng.standard_normal((*shape, NUM_TASKS))
    means = []
    for task in range(NUM_TASKS):
        hard_N = 1.5 * rng.standard_normal((TRIALS, 1, 1, NUM_EXAMPLES))
        right = rng.random((*shape, NUM_EXAMPLES)) < sigmoid(ability[..., task, None] + hard_N)
        flat_KN = right.reshape(-1, NUM_EXAMPLES).astype(float)
        drawn = np.vstack([flat_KN.mean(1), resampled_means(flat_KN, f"task-{task}", DRAWS)])
        means.append(drawn.reshape(-1, *shape))
    noise = np.sqrt(1.5**2 + 2 * spread**2) * rng.standard_normal(40_000)
    truth_RT = sigmoid(logit_RT[..., None] + noise).mean(-1)
    return 100 * np.moveaxis(np.stack(means, -1), 2, 0), 100 * truth_RT


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def coverage(all_BM, truth):
    low, high = interval(all_BM[1:])
    return ((low <= truth) & (truth <= high)).mean()


@pytest.mark.parametrize(("num_seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.6), (4, 0.3)])
def test_an_interval_holds_about_as_often_as_it_says(num_seeds, spread):
    grids, truth_RT = made_matrices(num_seeds, spread)
    for name in OF_ROWS:
        compute = agg.by_name(name).compute
        each = [compute(grid, OWN) for grid in grids]
        assert 0.90 <= coverage(pool_measured(each, "lora"), compute(truth_RT, OWN)) <= 0.98, name
    if spread > 0.5:  # and to ask the examples alone would not do
        mean = np.mean([agg.average_accuracy(grid, OWN) for grid in grids], axis=0)
        assert coverage(mean, agg.average_accuracy(truth_RT, OWN)) < 0.7


def made_methods(num_methods: int, num_seeds: int, spread: float):
    """Return resampled means (methods, TRIALS, 1 + DRAWS) of methods that are equally good."""
    rng = np.random.default_rng([8, num_seeds])
    shape = (TRIALS, num_methods, num_seeds)
    hard = 1.5 * rng.standard_normal((TRIALS, 1, 1, NUM_EXAMPLES))
    ability = spread * rng.standard_normal((*shape, 1))
    flat_KN = (rng.random((*shape, NUM_EXAMPLES)) < sigmoid(0.5 + ability + hard)).reshape(
        -1, NUM_EXAMPLES
    )
    drawn = np.vstack([flat_KN.mean(1), resampled_means(flat_KN.astype(float), "task", DRAWS)])
    drawn = drawn.reshape(-1, *shape)
    return [
        pool_measured([drawn[:, :, m, s] for s in range(num_seeds)], f"method-{m}")
        for m in range(num_methods)
    ]


@pytest.mark.parametrize(("num_seeds", "spread"), [(1, 0.0), (3, 0.3)])
def test_differences_hold_each_and_all_at_once(num_seeds, spread):
    methods = made_methods(6, num_seeds, spread)
    all_BMP = np.stack([b - a for a, b in combinations(methods, 2)], -1)
    assert 0.90 <= coverage(all_BMP, 0.0) <= 0.98
    low, high = interval(all_BMP[1:])
    alone = ((low > 0) | (high < 0)).any(-1).mean()
    reach_MP = np.stack([simultaneous(all_BMP[:, trial]) for trial in range(TRIALS)])
    corrected = (np.abs(all_BMP[0]) > reach_MP).any(-1).mean()
    assert corrected <= 0.09
    assert alone > max(0.15, 2 * corrected)


# ----------------------------------------------------------------------------- parts


def test_what_seeds_say_is_a_t_distribution():
    """Two thirds of the t of 2 degrees of freedom lie within 1.3, 95 % within 4.3."""
    weights = seed_weights(3, "lora", 60_000)
    assert weights.sum(0) == pytest.approx(0, abs=1e-9)
    for d_S in (np.array([-2.0, -1.0, 3.0]), np.array([1.0, -1.0, 0.0])):
        t = d_S @ weights / (d_S.std(ddof=1) / np.sqrt(3))
        assert np.quantile(np.abs(t), [2 / 3, 0.95]) == pytest.approx([1.264, 4.303], rel=0.05)


def test_seeds_of_two_methods_are_drawn_apart_and_again_the_same():
    assert np.array_equal(seed_weights(3, "lora"), seed_weights(3, "lora"))
    a, b = seed_weights(3, "lora")[0], seed_weights(3, "replay")[0]
    assert abs(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]) < 0.08


def test_seeds_that_differ_by_their_examples_alone_add_nothing():
    """Each seed has other examples right, by chance; the examples' resamples know that already."""
    rng = np.random.default_rng(3)
    score_SN = (rng.random((4, 400)) < 0.5).astype(float)
    drawn = np.vstack([score_SN.mean(1), resampled_means(score_SN, "task")])
    drawn[0] = drawn[0].mean() + (drawn[0] - drawn[0].mean()) * 0.5  # closer than chance alone
    pooled = pool_measured(list(drawn.T), "lora")
    assert pooled[1:] == pytest.approx(drawn[1:].mean(1))


def test_all_at_once_reach_further_the_less_they_overlap():
    rng = np.random.default_rng(4)
    apart = np.vstack([np.zeros(20), rng.standard_normal((4000, 20))])
    alike = np.repeat(apart[:, :1], 20, axis=1)
    assert simultaneous(apart[:, :1]) == pytest.approx(1.96, rel=0.05)
    assert simultaneous(alike) == pytest.approx(1.96, rel=0.05)
    assert simultaneous(apart) == pytest.approx(3.02, rel=0.07)  # Sidak's: 1 - 0.95 ** (1 / 20)
    assert simultaneous(np.zeros((50, 2))).tolist() == [0, 0]


def test_a_detectable_difference_is_told_in_four_of_five_cases():
    rng = np.random.default_rng(5)
    draws = rng.standard_normal((2000, 10))
    at_zero = np.vstack([np.zeros(10), draws])
    reach_P = simultaneous(at_zero)
    least_P = detectable(at_zero, reach_P)
    measured = least_P + rng.standard_normal((5000, 10))
    assert (measured > reach_P).mean() == pytest.approx(0.8, abs=0.02)
    assert least_P == pytest.approx(reach_P + 0.84, abs=0.1)
