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
    num_rows, num_tasks = group.value_RT.shape
    mean_at = int(group.known_T.sum()) + GAP
    left_T = np.arange(num_tasks) + np.where(group.known_T, 0, 1 + 2 * GAP)
    titles = [results.view.task(task).title for task in group.tasks]
    stages = [wrap(stage_title(results, row.stage), 18, 2) for row in group.view.rows]
    label = 0.35 + 0.062 * max(len(line) for s in stages for line in s.split("\n"))
    right = max(mean_at, left_T[-1]) + 1
    width = max(COLUMN, label + 0.27 * right + 0.08, label + 0.4 * COLUMN + 0.75)
    title = whole(group.title, int((width - 0.1) / 0.072), 2)
    head = 0.6 + 0.125 * title.count("\n")  # inches above the matrix, by the lines of the title
    under = 0.32 + 0.045 * max(map(len, titles))
    tall = 0.225 * (num_rows + 1 + GAP) + under + head + 0.02
    figure, axis = plt.subplots(figsize=(width, tall))
    figure.subplots_adjust(
        left=label / width, right=1 - 0.05 / width, bottom=under / tall, top=1 - head / tall
    )
    mesh = _cells(axis, results, group, left_T, mean_at)
    axis.set_xlim(0, right)
    axis.set_ylim(num_rows + 1 + GAP, 0)
    columns, below = [*titles, "mean, learnt"], "chance" if results.view.knows_chance else ""
    centres = [*(left_T + 0.5), mean_at + 0.5]
    axis.set_xticks(centres, columns, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks([*(np.arange(num_rows) + 0.5), num_rows + GAP + 0.5], [*stages, below])
    axis.tick_params(length=0, pad=2)
    axis.set(xlabel="score on task (%)", ylabel="after stage")
    axis.spines[:].set_visible(False)
    _head(figure, mesh, title, label, head)
    return Picture(
        f"heatmap-{group.slug}", "matrix", group.title,
        f"Accuracy matrix of {group.title}: the score on each task (column) after each stage "
        "(row). Outlined: the task's own stage. To the right the mean over the tasks learnt so "
        "far, and what is held out, if there is anything; below, chance: always giving the most "
        "frequent training answer.", figure,
    )  # fmt: skip


def _cells(axis, results: Results, group: Group, left_T: np.ndarray, mean_at: float):
    """Draw the matrix, the mean of what was learnt beside it, and chance below it."""
    value_RT, high = group.value_RT, ceiling(group.value_RT)
    below = len(value_RT) + GAP
    learnt_R = [
        mean_parsed(row[(group.own_T <= t) & (group.own_T >= 0)]) if t else np.nan
        for t, row in enumerate(value_RT)
    ]
    mesh = _block(axis, np.array(learnt_R)[:, None], mean_at, 0, high)
    for column, (left, task) in enumerate(zip(left_T, group.tasks, strict=True)):
        chance = np.array([[results.view.task(task).chance]])
        _block(axis, value_RT[:, column, None], left, 0, high)
        _block(axis, chance, left, below, high)
        if (own := group.own_T[column]) >= 0:
            outline = {"fill": False, "ec": SERIES[1], "lw": 1.3, "zorder": 4}
            axis.add_patch(Rectangle((column, own), 1, 1, **outline))
    if not group.known_T.all():
        middle = (left_T[~group.known_T][0] + left_T[-1] + 1) / 2
        axis.text(middle, -0.15, "held out", fontsize=6, ha="center")
    return mesh


def _head(figure, mesh, title: str, label: float, head: float) -> None:
    """Write the title, and below it the scale of colours and what the outline means.

    `label` is where the matrix begins and `head` how far below the upper edge, in inches.
    """
    width, tall = figure.get_size_inches()
    place = (label / width, 1 - (head - 0.22) / tall, 0.4 * COLUMN / width, 0.07 / tall)
    bar, high = figure.add_axes(place), mesh.norm.vmax
    scale = figure.colorbar(mesh, cax=bar, orientation="horizontal", ticks=[0, high / 2, high])
    scale.outline.set_visible(False)
    bar.tick_params(length=0, pad=1.5, labelsize=6)
    figure.text(
        1 - 0.05 / width, 1 - (head - 0.255) / tall, "□ own stage", fontsize=6, va="center",
        ha="right", color=SERIES[1],
    )  # fmt: skip
    longest = max(map(len, title.split("\n")))
    at = max(0.05, min(label, width - 0.072 * longest))  # inches; a bold letter takes some 0.07
    figure.text(at / width, 1 - 0.05 / tall, title, fontsize=7.5, weight="bold", va="top")


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
