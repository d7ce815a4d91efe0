"""The accuracy matrix of one method as a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from palimpsest.report.figures.style import (
    COLUMN,
    ON_DARK,
    ON_LIGHT,
    PAPER,
    SCORES,
    SERIES,
    Picture,
    ceiling,
    whole,
    wrap,
)
from palimpsest.report.paper.tables import stage_title
from palimpsest.report.results import Group, Results
from palimpsest.report.statistics.bootstrap import mean_parsed

GAP = 0.3  # between the matrix and what stands beside it, in cells


def draw(results: Results) -> list[Picture]:
    """Return a heat map for each sequential group."""
    return [_draw(results, group) for group in results.sequential]


def _draw(results: Results, group: Group) -> Picture:
    value_RT = group.value_RT
    num_rows, num_tasks = value_RT.shape
    num_known = int(group.known_T.sum())
    mean_at = num_known + GAP
    left_T = np.arange(num_tasks) + np.where(group.known_T, 0, 1 + 2 * GAP)
    right = max(mean_at, left_T[-1]) + 1
    titles = [results.view.task(task).title for task in group.tasks]
    stages = [wrap(stage_title(results, row.stage), 18, 2) for row in group.view.rows]
    label = 0.35 + 0.062 * max(len(line) for s in stages for line in s.split("\n"))
    width = max(COLUMN, label + 0.27 * right + 0.08, label + 0.4 * COLUMN + 0.75)
    under = 0.32 + 0.045 * max(map(len, titles))
    title = whole(group.title, int((width - 0.1) / 0.072), 2)
    more = 0.125 * title.count("\n")  # of its second line
    tall = 0.225 * (num_rows + 1 + GAP) + under + 0.62 + more
    figure, axis = plt.subplots(figsize=(width, tall))
    figure.subplots_adjust(
        left=label / width, right=1 - 0.05 / width, bottom=under / tall, top=1 - (0.6 + more) / tall
    )
    high = ceiling(value_RT)
    learnt = [
        mean_parsed(row[(group.own_T <= t) & (group.own_T >= 0)]) if t else np.nan
        for t, row in enumerate(value_RT)
    ]
    chance = np.array([[results.view.task(task).chance for task in group.tasks]])
    below = "chance" if results.view.knows_chance else ""
    mesh = _block(axis, np.array(learnt)[:, None], mean_at, 0, high)
    for column, left in enumerate(left_T):
        _block(axis, value_RT[:, column, None], left, 0, high)
        _block(axis, chance[:, column, None], left, num_rows + GAP, high)
    if num_known < num_tasks:
        axis.text((left_T[num_known] + right) / 2, -0.15, "held out", fontsize=6, ha="center")
    for column, row in enumerate(group.own_T):
        if row >= 0:
            axis.add_patch(
                Rectangle((column, row), 1, 1, fill=False, ec=SERIES[1], lw=1.3, zorder=4)
            )
    axis.set_xlim(0, right)
    axis.set_ylim(num_rows + 1 + GAP, 0)
    centres = [*(left_T + 0.5), mean_at + 0.5]
    axis.set_xticks(
        centres, [*titles, "mean, learnt"], rotation=45, ha="right", rotation_mode="anchor"
    )
    axis.set_yticks([*(np.arange(num_rows) + 0.5), num_rows + GAP + 0.5], [*stages, below])
    axis.tick_params(length=0, pad=2)
    axis.set_ylabel("after stage")
    axis.set_xlabel("score on task (%)")
    for spine in axis.spines.values():
        spine.set_visible(False)
    place = (label / width, 1 - (0.38 + more) / tall, 0.4 * COLUMN / width, 0.07 / tall)
    bar = figure.add_axes(place)
    scale = figure.colorbar(mesh, cax=bar, orientation="horizontal", ticks=[0, high / 2, high])
    scale.outline.set_visible(False)
    bar.tick_params(length=0, pad=1.5, labelsize=6)
    figure.text(
        1 - 0.05 / width, 1 - (0.345 + more) / tall, "□ own stage", fontsize=6, va="center",
        ha="right", color=SERIES[1],
    )  # fmt: skip
    longest = max(map(len, title.split("\n")))
    at = max(0.05, min(label, width - 0.072 * longest))  # inches; a bold letter takes some 0.07
    figure.text(at / width, 1 - 0.05 / tall, title, fontsize=7.5, weight="bold", va="top")
    return Picture(
        f"heatmap-{group.slug}", "matrix", group.title,
        f"Accuracy matrix of {group.title}: the score on each task (column) after each stage "
        "(row). Outlined: the task's own stage. To the right the mean over the tasks learnt so "
        "far, and what is held out, if there is anything; below, chance: always giving the most "
        "frequent training answer.", figure,
    )  # fmt: skip


def _block(axis, value_RC: np.ndarray, left: float, top: float, high: float):
    """Draw a block of cells with its numbers at a place given in cells."""
    num_rows, num_columns = value_RC.shape
    mesh = axis.pcolormesh(
        left + np.arange(num_columns + 1), top + np.arange(num_rows + 1),
        np.ma.masked_invalid(value_RC), cmap=SCORES, vmin=0, vmax=high, ec=PAPER, lw=0.6,
    )  # fmt: skip
    for (row, column), value in np.ndenumerate(value_RC):
        if np.isfinite(value):
            axis.text(
                left + column + 0.5, top + row + 0.53, f"{value:.0f}", ha="center", va="center",
                fontsize=6, color=ON_DARK if value > 0.5 * high else ON_LIGHT,
            )  # fmt: skip
    return mesh
