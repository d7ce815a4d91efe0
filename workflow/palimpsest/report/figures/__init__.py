"""Figures, one kind a file; `draw_all` yields them one after another, so one is held at a time."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib import pyplot as plt

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
from palimpsest.report.results import Results
from palimpsest.report.sections.losses import Losses
from palimpsest.report.sections.refusals import Told


def draw_all(results: Results, told: list[Told], lost: list[Losses]) -> Iterator[Picture]:
    """Yield every figure that the study's experiments allow.

    `told` is what is told of unlearning, `lost` what is forgotten.
    """
    with plt.rc_context(RC):
        for module in (comparison, heatmap, curves, dynamics, probes, similarity, radar, examples):
            yield from module.draw(results)
        yield from unlearning.draw(told)
        yield from losses.draw(results, lost)
