"""Figures, one kind a file; `draw_all` yields them one after another, so one is held at a time."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib import pyplot as plt

from palimpsest.report.contents import Contents
from palimpsest.report.figures import (
    comparison,
    curves,
    dynamics,
    examples,
    heatmap,
    losses,
    probes,
    radar,
    similarity,
    unlearning,
)
from palimpsest.report.figures.style import RC, Picture


def draw_all(found: Contents) -> Iterator[Picture]:
    """Yield every figure that the study's experiments allow."""
    with plt.rc_context(RC):
        for module in (comparison, heatmap, curves, dynamics, probes, similarity, radar, examples):
            yield from module.draw(found.results)
        yield from unlearning.draw(found.told)
        yield from losses.draw(found.results, found.lost)
