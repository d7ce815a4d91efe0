"""Reservoir: a uniform sample of everything seen so far, of which some is learnt again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def update(
    items: Sequence[T], seen: int, stream: Iterable[T], capacity: int, rng: np.random.Generator
) -> tuple[list[T], int]:
    """Return the reservoir after a stream of new items, and how many items it has now seen.

    `items` are the reservoir after `seen` items, earlier streams included. Each item ever seen is
    in the result with the same probability (algorithm R: Vitter, ACM TOMS 11(1), 1985).

    Raises ValueError if `items` are not as many as a reservoir of that capacity would hold.
    """
    if len(items) != min(seen, capacity):
        raise ValueError(
            f"reservoir: {len(items)} items after {seen} seen, where capacity {capacity} would "
            f"hold {min(seen, capacity)}: was the capacity changed between stages?"
        )
    items = list(items)
    for item in stream:
        seen += 1
        if len(items) < capacity:
            items.append(item)
        elif (slot := int(rng.integers(seen))) < capacity:
            items[slot] = item
    return items, seen


def draw(items: Sequence[T], n: int, rng: np.random.Generator) -> list[T]:
    """Return n items in random order, without replacement while they last, then again.

    Each item appears floor(n / len(items)) times or once more.
    """
    if not n:
        return []
    if not items:
        raise ValueError(f"reservoir: {n} items asked for, but it is empty")
    rounds = -(-n // len(items))
    order = np.concatenate([rng.permutation(len(items)) for _ in range(rounds)])[:n]
    return [items[i] for i in order]
