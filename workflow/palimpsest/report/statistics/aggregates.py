"""Aggregates of an accuracy matrix, each by its formula and with its divisor said.

`a` is (..., R, T): row 0 the base model, row t the model after stage t (the last is S = R - 1),
column i a task, in percent; leading axes are resamples. `own_T` gives the row right after which a
task was learnt, so a[own_i, i] is the diagonal. Every task must have been learnt, or be known to
the base from the start: its own row is 0 then, and the score there its diagonal, so that it can be
forgotten as others can; transfer and intransigence, which are about learning, leave it out. A cell
that was not evaluated is NaN; an aggregate that needs one is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def own_scores(a: Array, own_T: Array) -> Array:
    """Return each task's score right after its own stage, (..., T)."""
    return a[..., own_T, np.arange(len(own_T))]


def average_accuracy(a: Array, own_T: Array) -> Array:
    """(1/T) sum_i A[S,i]: the last row."""
    return a[..., -1, :].mean(-1)


def mean_average_accuracy(a: Array, own_T: Array) -> Array:
    """(1/S) sum_t A_t, where A_t is the mean of row t over the tasks known by then (CoIN)."""
    rows = [a[..., t, own_T <= t].mean(-1) for t in range(1, a.shape[-2]) if (own_T <= t).any()]
    return np.mean(rows, axis=0)


def learning_accuracy(a: Array, own_T: Array) -> Array:
    """(1/T) sum_i A[own_i,i]: the diagonal (Riemer et al. 2019)."""
    return own_scores(a, own_T).mean(-1)


def bwt_coin(a: Array, own_T: Array) -> Array:
    """(1/T) sum_i (A[S,i] - A[own_i,i]), the zero of the last task counted (CoIN)."""
    return (a[..., -1, :] - own_scores(a, own_T)).mean(-1)


def bwt_gem(a: Array, own_T: Array) -> Array:
    """(1/(T-1)) sum_i (A[S,i] - A[own_i,i]) over tasks before the last stage (GEM 2017)."""
    return _mean_where(a[..., -1, :] - own_scores(a, own_T), _before_last(a, own_T))


def forgetting(a: Array, own_T: Array) -> Array:
    """(1/(T-1)) sum_i (max_{1<=t<S} A[t,i] - A[S,i]), tasks before the last (Chaudhry 2018).

    For a task that is known from the start the best is that of 0 <= t < S.
    """
    counts_RT = np.arange(a.shape[-2])[:, None] >= np.minimum(own_T, 1)
    best = np.fmax.reduce(np.where(counts_RT, a, np.nan)[..., :-1, :], axis=-2, initial=np.nan)
    return _mean_where(best - a[..., -1, :], _before_last(a, own_T))


def final_minus_best(a: Array, own_T: Array) -> Array:
    """(1/T) sum_i (A[S,i] - max_{0<=t<=S} A[t,i]), the base included (He et al. 2023)."""
    return (a[..., -1, :] - np.fmax.reduce(a, axis=-2)).mean(-1)


def forward_transfer(a: Array, own_T: Array) -> Array:
    """(1/(T-1)) sum_i (A[own_i - 1,i] - A[0,i]) over tasks after the first stage (GEM 2017)."""
    before = a[..., np.maximum(own_T - 1, 0), np.arange(len(own_T))]
    return _mean_where(before - a[..., 0, :], own_T >= 2)


def intransigence(a: Array, own_T: Array, joint: Array) -> Array:
    """(1/L) sum_i (J_i - A[own_i,i]) over the L tasks that a stage learnt (Chaudhry et al. 2018).

    `joint` is J, the scores after joint training, (..., T).
    """
    return _mean_where(joint - own_scores(a, own_T), own_T >= 1)


def _before_last(a: Array, own_T: Array) -> Array:
    return own_T < a.shape[-2] - 1


def _mean_where(values: Array, keep_T: Array) -> Array:
    if not keep_T.any():
        return np.full(values.shape[:-1], np.nan)
    return values[..., keep_T].mean(-1)


@dataclass(frozen=True)
class Aggregate:
    """How an aggregate is called, written and read; `unit` is % or points (of a percentage)."""

    name: str
    title: str
    formula: str
    divisor: str
    source: str
    unit: str
    better: str
    compute: Callable[..., Array]


AGGREGATES = (
    Aggregate(
        "average_accuracy", "Average accuracy", "1/T · Σᵢ A[S,i]", "T tasks",
        "the last row of the matrix", "%", "higher", average_accuracy,
    ),
    Aggregate(
        "learning_accuracy", "Learning accuracy", "1/T · Σᵢ A[ownᵢ,i]",
        "T tasks; of one known from the start it is the base’s score, A[0,i]",
        "the diagonal; Riemer et al. 2019", "%", "higher", learning_accuracy,
    ),
    Aggregate(
        "mean_average_accuracy", "Mean average accuracy", "1/S · Σₜ mean A[t,i], i learnt by t",
        "S stages, each divided by the tasks learnt by then, or known from the start",
        "CoIN (Chen et al. 2024)", "%", "higher", mean_average_accuracy,
    ),
    Aggregate(
        "bwt_coin", "BWT (CoIN)", "1/T · Σᵢ (A[S,i] − A[ownᵢ,i])",
        "T: the last task counts with its zero", "CoIN (Chen et al. 2024)", "points", "higher",
        bwt_coin,
    ),
    Aggregate(
        "bwt_gem", "BWT (GEM)", "1/(T−1) · Σᵢ (A[S,i] − A[ownᵢ,i])",
        "T−1: only tasks learnt before the last stage", "Lopez-Paz and Ranzato 2017", "points",
        "higher", bwt_gem,
    ),
    Aggregate(
        "forgetting", "Forgetting", "1/(T−1) · Σᵢ (max{A[t,i] : 1 ≤ t < S} − A[S,i])",
        "T−1: only tasks learnt before the last stage; t from 0 for one known from the start",
        "Chaudhry et al. 2018; a best of several noisy rows is biased upwards", "points", "lower",
        forgetting,
    ),
    Aggregate(
        "final_minus_best", "Final minus best", "1/T · Σᵢ (A[S,i] − max{A[t,i] : 0 ≤ t ≤ S})",
        "T tasks; the base model's row counts as a stage",
        "He et al. 2023, who print it as BWT", "points", "higher", final_minus_best,
    ),
    Aggregate(
        "forward_transfer", "Forward transfer", "1/(T−1) · Σᵢ (A[ownᵢ − 1, i] − A[0,i])",
        "T−1: only tasks learnt after the first stage",
        "Lopez-Paz and Ranzato 2017, with the base model for their random initialisation",
        "points", "higher", forward_transfer,
    ),
    Aggregate(
        "intransigence", "Intransigence", "1/L · Σᵢ (J[i] − A[ownᵢ,i]), J after joint training",
        "the L tasks that a stage learnt: T, less those known from the start",
        "Chaudhry et al. 2018, with one joint training on all tasks", "points", "lower",
        intransigence,
    ),
)  # fmt: skip


def by_name(name: str) -> Aggregate:
    """Return the aggregate of this name."""
    return next(aggregate for aggregate in AGGREGATES if aggregate.name == name)
