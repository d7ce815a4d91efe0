"""Proportional replay: of every task learnt, as large a part is learnt again with each new one.

The replay of He et al. (arXiv 2311.16206) appends to the examples of a task a uniform sample of
those of every earlier dataset. Their released code draws it afresh at every stage. Ours is drawn
once, when the task has been learnt, and is carried along: at each stage it has the same
distribution, and no old dataset is needed. But all later stages see the same sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from palimpsest.methods.settings import Proportional


def order(
    new: int,
    old: int,
    epochs: Callable[[int], list[int]],
    settings: Proportional,
    rng: np.random.Generator,
) -> list[int]:
    """Return the samples of a stage, by position: 0 … new - 1 are new, `old` more are rehearsed.

    Old examples are learnt like new ones; `epochs` gives the order of a stage of so many examples.
    """
    return epochs(new + old)


def kept(
    old: Sequence[int],
    seen: int,
    tasks: Sequence[Sequence[int]],
    learnt: Sequence[int],
    settings: Proportional,
    rng: np.random.Generator,
) -> list[int]:
    """Return the old positions, and of each new task's a sample without replacement.

    It is round(ratio * size) of them, but at least one.
    """
    samples = [
        rng.choice(task, max(1, round(settings.ratio * len(task))), replace=False) for task in tasks
    ]
    return [*old, *(int(i) for sample in samples for i in sorted(sample))]
