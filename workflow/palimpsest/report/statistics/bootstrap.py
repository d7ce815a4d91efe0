"""Intervals by resampling test examples, and seeds where there are several.

Paired: one draw of examples serves every cell of a task, whatever the stage, method or seed, so
that a difference of two of them is resampled as a difference (Efron and Tibshirani 1993). Seeds are
too few to be drawn from themselves; what they say of training again is a t distribution.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
POWER = 0.8
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


def seed_weights(num_seeds: int, key: str, resamples: int = RESAMPLES) -> np.ndarray:
    """Return (S, resamples) weights; deviations from their mean d_S give draws d_S @ weights.

    These are s / sqrt(S) times t with S - 1 degrees of freedom: how far the mean of endlessly many
    seeds may lie, for normal seeds (Gelman et al. 2013, section 3.2). Seeds drawn with replacement
    would vary too little, by (S - 1) / S, and would not know that their spread is itself a guess.
    """
    rng = np.random.default_rng([SEED, zlib.crc32(key.encode()), num_seeds])
    normal_SB = rng.standard_normal((num_seeds, resamples))
    normal_SB -= normal_SB.mean(0)
    return normal_SB / np.sqrt(num_seeds * rng.chisquare(num_seeds - 1, resamples))


def pool_measured(each: Sequence[np.ndarray], key: str) -> np.ndarray:
    """Average arrays of a seed each whose first entry is as measured, and the others resamples.

    Resample b keeps its examples for all seeds, as every seed answers the same ones. To the mean of
    the seeds it adds what another training would change, drawn by `key`: that of what was trained,
    as the seeds of two methods are drawn apart (Behrens and Fisher; Weerahandi 1993). Of how seeds
    differ, what resampled examples explain is taken off first, or it would count twice (Owen 2007).
    """
    stacked = np.stack(each)
    pooled = stacked.mean(0)
    if len(stacked) > 1:
        apart = stacked[:, 0] - pooled[0]
        spread = (apart**2).sum(0)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            by_examples = np.nanvar(stacked[:, 1:] - pooled[1:], axis=1).sum(0)
        by_training = np.maximum(spread - by_examples, 0) / np.where(spread > 0, spread, 1)
        weights_SB = seed_weights(len(stacked), key, len(pooled) - 1)
        pooled[1:] += np.tensordot(weights_SB, np.sqrt(by_training) * apart, axes=(0, 0))
    return pooled


def interval(value_B: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval (low, high) over the first axis; NaN where all are NaN."""
    tail = (1 - level) / 2
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        low, high = np.nanquantile(value_B, [tail, 1 - tail], axis=0)
    return low, high


def simultaneous(all_BP: np.ndarray) -> np.ndarray:
    """Return how far to either side P intervals reach if all of them are to hold at once, (P,).

    `all_BP` is (1 + resamples, P), the first as measured. Each reaches as far as the longer arm of
    its own interval, times one factor for all: the smallest with which a share LEVEL of resamples
    has all P within reach. It is a bootstrap of the largest |t| (Westfall and Young 1993; Montiel
    Olea and Plagborg-Møller 2019), which knows how much the P depend on each other.
    """
    low_P, high_P = interval(all_BP[1:])
    arm_P = np.maximum(all_BP[0] - low_P, high_P - all_BP[0])
    varies = arm_P > 0
    ratio_BP = np.abs(all_BP[1:, varies] - all_BP[0, varies]) / arm_P[varies]
    worst_B = np.fmax.reduce(ratio_BP, axis=1, initial=0.0)
    return arm_P * max(1.0, np.quantile(worst_B, LEVEL))


def detectable(all_BP: np.ndarray, reach_P: np.ndarray) -> np.ndarray:
    """Return how large a true value must be for its interval to leave 0 out with POWER, (P,).

    Bloom's (1995) minimum detectable effect: the reach of the interval, and beyond it what an
    estimate falls short of the truth in one case of five.
    """
    return reach_P + np.nanquantile(np.abs(all_BP[1:] - all_BP[0]), 2 * POWER - 1, axis=0)
