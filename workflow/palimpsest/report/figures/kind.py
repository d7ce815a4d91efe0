"""Answers of the right kind beside right answers: the lost form against the lost knowledge."""

from __future__ import annotations

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from palimpsest.report.figures.style import (
    KIND,
    MUTED,
    RIGHT,
    Picture,
    ceiling,
    panels,
    stage_axis,
    title_panel,
)
from palimpsest.report.results import Group, Results


def draw(results: Results) -> list[Picture]:
    """Return one figure for each sequential group."""
    return [
        Picture(
            f"kind-{group.slug}", "kind", group.title,
            "The rate of answers of the right kind (that match the task's answer format) beside "
            "the score. Where both fall together the model has lost the form of the answer, not "
            "necessarily the knowledge; the shaded gap is answers of the right kind that are "
            "wrong. The vertical line is the task's own stage.",
            _draw(results, group),
        )
        for group in results.sequential
    ]  # fmt: skip


def _draw(results: Results, group: Group):
    figure, axes = panels(len(group.tasks), height=1.1, top=0.45)
    num_stages = group.value_RT.shape[0] - 1
    high = ceiling(group.value_RT)
    for k, (task, axis) in enumerate(zip(group.tasks, axes, strict=True)):
        stage = np.flatnonzero(np.isfinite(group.value_RT[:, k]))
        right, kind = group.value_RT[stage, k], group.kind_RT[stage, k]
        axis.fill_between(stage, right, kind, where=kind >= right, color=KIND, alpha=0.16, lw=0)
        axis.plot(stage, kind, color=KIND, marker="s", ms=2.6, ls=(0, (4, 1.2)), lw=1.2)
        axis.plot(stage, right, color=RIGHT, marker="o", ms=2.6, lw=1.2)
        if group.own_T[k] >= 0:
            axis.axvline(group.own_T[k], color=MUTED, lw=0.8, ls=":")
        title_panel(axis, results.view.task(task))
        stage_axis(axis, num_stages, bottom=k >= len(group.tasks) - 4, left=k % 4 == 0, high=high)
        if k % 4 == 0:
            axis.set_ylabel("rate (%)")
    handles = [
        Line2D(
            [], [], color=KIND, marker="s", ms=3, ls=(0, (4, 1.2)), label="right kind of answer"
        ),
        Line2D([], [], color=RIGHT, marker="o", ms=3, label="right answer (score)"),
        Patch(color=KIND, alpha=0.16, lw=0, label="right kind, wrong answer"),
        Line2D([], [], color=MUTED, ls=":", lw=0.8, label="own stage"),
    ]
    figure.legend(handles=handles, loc="upper left", ncols=4, bbox_to_anchor=(0.0, 0.955))
    figure.text(0.012, 0.99, group.title, fontsize=8.5, weight="bold", va="top")
    return figure
