"""Intervals by resampling test examples, and seeds where there are several.

Paired: one draw of examples serves every cell of a task, whatever the stage, method or seed, so
that a difference of two of them is resampled as a difference (Efron and Tibshirani 1993).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20240601
CHUNK = 4_000_000  # indices held at once: a bound on memory, not on results


def resample_indices(num_examples: int, key: str, resamples: int = RESAMPLES) -> Iterator:
    """Yield the example indices of the resamples in blocks (block, N).

    The draw depends on `key` (a task's name) and N alone: another task does not change it.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(key.encode())])
    block = max(1, CHUNK // num_examples)
    for start in range(0, resamples, block):
        size = (min(block, resamples - start), num_examples)
        yield rng.integers(num_examples, size=size)


def resampled_means(score_KN: np.ndarray, key: str, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the means of K score vectors over the same resampled examples, as (resamples, K).

    A score that is NaN stays out of its own mean, and of no other; NaN where none is left.
    """
    num_examples = score_KN.shape[1]
    parsed_KN = np.isfinite(score_KN)
    whole, score_KN = parsed_KN.all(), np.where(parsed_KN, score_KN, 0.0)
    means = []
    for index_BN in resample_indices(num_examples, key, resamples):
        row_B1 = np.arange(len(index_BN))[:, None] * num_examples
        flat = (index_BN + row_B1).ravel()
        count_BN = np.bincount(flat, minlength=index_BN.size).reshape(index_BN.shape)
        count_BN = count_BN.astype(np.float64)
        used_BK = num_examples if whole else count_BN @ parsed_KN.T
        with np.errstate(invalid="ignore"):
            means.append(count_BN @ score_KN.T / used_BK)
    return np.concatenate(means)


def with_resamples(score_KN: np.ndarray, key: str) -> np.ndarray:
    """Return the means of K score vectors, (1 + resamples, K): the first as measured."""
    return np.vstack([mean_parsed(score_KN), resampled_means(score_KN, key)])


def mean_parsed(score_N: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis of the scores that are numbers, NaN where none is."""
    with np.errstate(invalid="ignore"):
        return np.nansum(score_N, -1) / np.isfinite(score_N).sum(-1)


def pool_seeds(value_SB: np.ndarray) -> np.ndarray:
    """Average S seeds drawn with replacement, anew for each resample: (S, B, ...) -> (B, ...).

    Seeds and examples are crossed, as every seed answers the same examples: resample b keeps its
    examples for all seeds. Two methods with as many seeds get the same draw, and stay paired.
    """
    num_seeds, resamples = value_SB.shape[:2]
    if num_seeds == 1:
        return value_SB[0]
    rng = np.random.default_rng([SEED, num_seeds])
    pick_SB = rng.integers(num_seeds, size=(num_seeds, resamples))
    return sum(value_SB[pick_B, np.arange(resamples)] for pick_B in pick_SB) / num_seeds


def pool_measured(each: Sequence[np.ndarray]) -> np.ndarray:
    """Average arrays of a seed each whose first entry is as measured, and the others resamples."""
    stacked = np.stack(each)
    return np.concatenate([stacked[:, 0].mean(0)[None], pool_seeds(stacked[:, 1:])])


def interval(value_B: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval (low, high) over the first axis; NaN where all are NaN."""
    tail = (1 - level) / 2
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        low, high = np.nanquantile(value_B, [tail, 1 - tail], axis=0)
    return low, high
