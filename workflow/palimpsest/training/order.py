"""Which example is seen when: decided by seed, lineage and epoch alone, on any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

GROUP = 16  # batches that are sorted by length together


def generator(*key: object) -> np.random.Generator:
    """Return a random generator that is a pure function of its key, on every platform."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def step_seed(*key: object) -> int:
    """Return the seed of one step's noise: nothing of it needs to be saved for a resume."""
    return int(generator(*key).integers(2**63))


def epochs(num_examples: int, num_samples: int, *key: object) -> list[int]:
    """Return `num_samples` indices: every example once in each epoch, the last epoch cut off."""
    num_epochs = -(-num_samples // num_examples)
    order = [i for e in range(num_epochs) for i in generator(*key, e).permutation(num_examples)]
    return [int(i) for i in order[:num_samples]]


def batches(lengths: Sequence[int], batch: int, *key: object) -> list[list[int]]:
    """Cut positions 0 … len(lengths) - 1 into batches of similar length, in a random order.

    Positions are shuffled, sorted by length within groups of GROUP batches, and cut; then the
    batches are shuffled. len(lengths) must be a multiple of `batch`.
    """
    assert len(lengths) % batch == 0
    rng = generator(*key, "batches")
    shuffled = rng.permutation(len(lengths))
    cut: list[list[int]] = []
    for start in range(0, len(shuffled), GROUP * batch):
        group = sorted(shuffled[start : start + GROUP * batch], key=lambda i: lengths[i])
        cut += [[int(i) for i in group[k : k + batch]] for k in range(0, len(group), batch)]
    return [cut[k] for k in rng.permutation(len(cut))]


def share_of_rank(batch: list[int], rank: int, ranks: int, micro_batch: int) -> list[list[int]]:
    """Return the micro-batches of one rank: every rank gets short and long examples alike."""
    mine = batch[rank::ranks]
    return [mine[k : k + micro_batch] for k in range(0, len(mine), micro_batch)]
