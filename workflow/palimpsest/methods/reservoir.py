"""Reservoir: a uniform sample of everything seen so far, of which some is learnt again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from palimpsest.methods.settings import Reservoir

T = TypeVar("T")


def order(
    new: int,
    old: int,
    epochs: Callable[[int], list[int]],
    settings: Reservoir,
    rng: np.random.Generator,
) -> list[int]:
    """Return the samples of a stage, by position: 0 … new - 1 are new, `old` more are rehearsed.

    There are as many as without rehearsal; old ones take the place of the last new ones. `epochs`
    gives the order of a stage of so many examples.
    """
    samples = epochs(new)
    num_new = len(samples) - (round(settings.share * len(samples)) if old else 0)
    return samples[:num_new] + draw(range(new, new + old), len(samples) - num_new, rng)


def kept(
    old: Sequence[int],
    seen: int,
    tasks: Sequence[Sequence[int]],
    learnt: Sequence[int],
    settings: Reservoir,
    rng: np.random.Generator,
) -> list[int]:
    """Return the positions in the reservoir, `old` before, after new ones have been `learnt`."""
    return update(old, seen, learnt, settings.capacity, rng)[0]


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
