"""The score of each task over the stages, one panel a task, one line a method."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.lines import Line2D

from palimpsest.report.figures.style import (
    BOTH,
    INK,
    MUTED,
    PAPER,
    Look,
    Picture,
    ceiling,
    heading,
    legend_above,
    legend_height,
    panels,
    stage_axis,
    title_panel,
    whole,
)
from palimpsest.report.results import Group, Results, names
from palimpsest.report.spec import JOINT

CAPTION = (
    "The score of each task after each stage; the large open marker is the task's own stage. Bands "
    "are 95 % paired bootstrap intervals, the dotted line is chance, the dashed one joint training."
)
LINES = 5  # more in a panel cannot be told apart


def draw(results: Results) -> Iterator[Picture]:
    """Yield a figure for each model and order; of many methods several, the first in each."""
    for name, (first, *others) in results.settings.items():
        title = heading("Each task over the stages", first, alone=not name)
        parts = [others[k : k + LINES - 1] for k in range(0, len(others), LINES - 1)] or [[]]
        for number, part in enumerate(parts, start=1):
            called = "-".join(filter(None, ("curves", name, str(number) if parts[1:] else "")))
            for end, size in BOTH.items():
                figure = _draw(results, (first, *part), *size)
                yield Picture(called + end, "" if end else "curves", title, CAPTION, figure)


def _draw(results: Results, groups: tuple[Group, ...], width: float, columns: int):
    tasks = groups[0].tasks
    joint = results.reference(JOINT, groups[0].view.model)
    handles = _handles(groups, joint is not None, results.view.knows_chance)
    figure, axes = panels(len(tasks), columns, width, top=legend_height(handles, width))
    high = ceiling(*[group.value_RT for group in groups])
    num_stages = max(group.value_RT.shape[0] for group in groups) - 1
    for k, (task, axis) in enumerate(zip(tasks, axes, strict=True)):
        for number, group in enumerate(groups):
            _line(group, task, Look.of(number), axis)
        axis.axhline(results.view.task(task).chance, color=MUTED, lw=0.9, ls=":", zorder=1)
        if joint and np.isfinite(joint.end(task)):
            axis.axhline(joint.end(task), color=MUTED, lw=0.9, ls="--", zorder=1)
        title_panel(axis, results.view.task(task))
        bottom, left = k >= len(tasks) - columns, k % columns == 0
        stage_axis(axis, num_stages, bottom=bottom, left=left, high=high)
    legend_above(figure, handles)
    return figure


def _handles(groups: tuple[Group, ...], has_joint: bool, knows_chance: bool) -> list[Line2D]:
    handles = []
    for number, name in enumerate(names(groups)):
        look = {"color": Look.of(number).color, "marker": Look.of(number).marker}
        handles.append(
            Line2D([], [], ls=Look.of(number).dashes, ms=3, label=whole(name, 44, 2), **look)
        )
    if has_joint:
        handles.append(Line2D([], [], color=MUTED, ls="--", lw=0.9, label="joint training"))
    if knows_chance:
        handles.append(Line2D([], [], color=MUTED, ls=":", lw=0.9, label="chance"))
    return [
        *handles,
        Line2D([], [], marker="o", ls="", ms=6, mfc=PAPER, mec=INK, label="own stage"),
    ]


def _line(group: Group, task: str, look: Look, axis) -> None:
    if task not in group.tasks:
        return
    column = group.tasks.index(task)
    stage = np.flatnonzero(np.isfinite(group.value_RT[:, column]))
    value = group.value_RT[stage, column]
    axis.fill_between(
        stage, group.low_RT[stage, column], group.high_RT[stage, column],
        color=look.color, alpha=0.15, lw=0,
    )  # fmt: skip
    axis.plot(stage, value, color=look.color, ls=look.dashes, marker=look.marker, ms=2.6)
    own = group.own_T[column]
    if own >= 0:
        axis.plot(
            own, group.value_RT[own, column], look.marker, mfc=PAPER, mec=look.color, mew=1.3,
            ms=5.5, zorder=5,
        )  # fmt: skip
