"""The score of each task inside the stages, by what was asked while they were trained."""

from __future__ import annotations

from matplotlib.lines import Line2D

from palimpsest.report.figures.style import (
    MUTED,
    PAGE,
    Look,
    Picture,
    legend_above,
    legend_height,
    panels,
    whole,
)
from palimpsest.report.results import Group, Results
from palimpsest.report.sections.probes import probed

CAPTION = (
    "Inside the stages: the score of each task known by then, over a few questions that the "
    "first seed was asked while it was trained. A vertical line is the end of a stage. With so few "
    "questions only large changes mean something."
)


def draw(results: Results) -> list[Picture]:
    """Return a figure for each sequence whose stages were probed."""
    found = [(group, [*probed(group.matrices[0])]) for group in results.sequential]
    return [
        Picture(
            f"probes-{group.slug}", "dynamics", f"Inside the stages: {group.title}", CAPTION,
            _draw(results, group, rows),
        )
        for group, rows in found
        if rows
    ]  # fmt: skip


def _draw(results: Results, group: Group, rows: list[dict]):
    tasks = [task for task in group.tasks if any(row["task"] == task for row in rows)]
    handles = [
        Line2D(
            [], [], color=Look.of(k).color, marker=Look.of(k).marker, ls=Look.of(k).dashes, ms=3,
            label=whole(results.view.task(task).title, 30, 2),
        )
        for k, task in enumerate(tasks)
    ]  # fmt: skip
    figure, (axis,) = panels(1, 1, PAGE, height=1.6, top=legend_height(handles, PAGE))
    for k, task in enumerate(tasks):
        own = [row for row in rows if row["task"] == task]
        # A stage is as wide as any other, whatever its number of steps.
        at = [row["stage"] - 1 + row["step"] / row["steps"] for row in own]
        look = Look.of(k)
        axis.plot(
            at, [row["value"] for row in own], color=look.color, ls=look.dashes,
            marker=look.marker, ms=2.6, lw=1.1, clip_on=False,
        )  # fmt: skip
    num_stages = len(group.view.rows) - 1
    for stage in range(1, num_stages + 1):
        axis.axvline(stage, color=MUTED, lw=0.5, zorder=1)
    axis.set_xlim(0, num_stages)
    axis.set_xticks(range(1, num_stages + 1))
    axis.set_ylim(-3, 103)
    axis.set_xlabel("after stage")
    axis.set_ylabel("score (%)")
    legend_above(figure, handles)
    return figure
