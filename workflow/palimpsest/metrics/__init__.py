"""Metrics, one a file, found by name: `metric("box_iou")` is the module `metrics/box_iou.py`.

A metric's module has

    VERSION: str                                     raised when a change alters a score
    score(prediction: str, example: Scored, *, …) -> float     from 0 (wrong) to 1 (right)

and, where a score depends on all references of a cell, as that of a caption does,

    prepare(references: Iterable[tuple[str, ...]]) -> Any     called once, with one item an example

whose result is the third argument of `score`. A score that is no share, as CIDEr, may exceed 1;
one that is NaN leaves the example out, as some released scorers do with a blank answer.

Options are keyword-only with defaults, and a task sets them in `metric_options`. Where a paper's
released scorer has a quirk, the metric that follows it to the letter is a file of its own whose
VERSION ends in `/as-published`, so that no report can take one for the other.

Pure Python: nothing here imports torch, or another part of this package.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Scored:
    """What a metric is told of an example, beside the prediction."""

    references: tuple[str, ...]  # every accepted answer
    choices: tuple[str, ...] = ()
    box: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 in pixels
    image_size: tuple[int, int] | None = None  # width, height in pixels
    combination: str = ""  # of unlearning: HH, HU, UH, UU; picture and text, harmful or not


def metric(name: str) -> ModuleType:
    """Return the module of a metric; ModuleNotFoundError if there is none of that name."""
    return import_module(f"{__name__}.{name}")


def options(name: str) -> dict[str, type]:
    """Return the names of a metric's options and their types."""
    score = metric(name).score
    types = get_type_hints(score)
    parameters = inspect.signature(score).parameters.values()
    return {p.name: types[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}


def scorer(
    name: str, options: dict[str, Any], references: Iterable[tuple[str, ...]]
) -> Callable[[str, Scored], float]:
    """Return a metric's `score` with its options, and with what it makes of a cell's references."""
    module = metric(name)
    if not hasattr(module, "prepare"):
        return partial(module.score, **options)
    prepared = module.prepare(references)
    return lambda prediction, example: module.score(prediction, example, prepared, **options)
