"""Of which kind the answers are, stage by stage; and what is lost in the end, method by method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from palimpsest.report.figures.style import (
    BOTH,
    COLUMN,
    GRID,
    INK,
    KIND,
    PAPER,
    RIGHT,
    SERIES,
    Picture,
    heading,
    legend_above,
    legend_columns,
    legend_height,
    panels,
    stage_axis,
    title_panel,
    whole,
)
from palimpsest.report.matrix import SAID
from palimpsest.report.results import Results, names
from palimpsest.report.sections.losses import KINDS, LOST, Losses

COLORS = dict(zip(SAID, (RIGHT, SERIES[4], KIND, SERIES[1], GRID), strict=True))
HATCHES = {"form": "/////", "other": "\\\\\\"}  # so that print in grey tells them apart
TITLE = 0.18  # inches above the legend
PALE = 0.4  # of a bar before the task was learnt
BY_STAGE = (
    "All answers to each task after each stage by their kind, in percent. Bars are pale before the "
    "task’s own stage, which a triangle marks; what takes the place of right answers after it is "
    "forgetting. Right content in the wrong form is what a rule can find: a right answer among "
    "other words, a numeral for its word, an option’s text for its letter. A judge may see more."
)
IN_THE_END = (
    "Answers that were right just after learning and are not after the last stage, by what is said "
    "instead: percent of the test examples, a mean over the old tasks, with the 95 % paired "
    "bootstrap interval of all that is lost."
)


def draw(results: Results, found: Sequence[Losses]) -> Iterator[Picture]:
    """Yield a figure of the groups of each model and order, then one for each group."""
    for name, groups in results.settings.items():
        of = [one for one in found if one.group in groups and one.mean]
        if of:
            title = heading("What is lost, and what is said instead", groups[0], alone=not name)
            called = f"lost-{name}".rstrip("-")
            yield Picture(called, "losses", title, IN_THE_END, _in_the_end(of))
    for one in found:
        for end, size in BOTH.items():
            called, section = f"losses-{one.group.slug}{end}", "" if end else "losses"
            figure = _by_stage(results, one, *size)
            yield Picture(called, section, one.group.title, BY_STAGE, figure)


def _in_the_end(found: Sequence[Losses]):
    kinds = LOST[:-1]
    handles = [_patch(kind) for kind in kinds]
    top, titles = (
        legend_height(handles, COLUMN),
        [whole(n, 20, 2) for n in names([o.group for o in found])],
    )
    tall = top + 0.25 * len(found) + 0.42
    figure, axis = plt.subplots(figsize=(COLUMN, tall))
    figure.subplots_adjust(left=1.05 / COLUMN, right=0.97, bottom=0.36 / tall, top=1 - top / tall)
    place, left = np.arange(len(found)), np.zeros(len(found))
    for kind in kinds:
        wide = np.array([one.mean[kind].value for one in found])
        axis.barh(place, wide, 0.72, left, **_look(kind))
        left += wide
    ends = np.array([[one.mean["lost"].low, one.mean["lost"].high] for one in found]).T
    axis.errorbar(left, place, xerr=np.abs(ends - left), fmt="none", ecolor=INK, elinewidth=0.9)
    axis.set(yticks=place, yticklabels=titles, xlim=(0, None), ylim=(len(found) - 0.4, -0.6))
    axis.set_xlabel("lost (% of the test examples)")
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    legend_above(figure, handles)
    return figure


def _by_stage(results: Results, one: Losses, width: float, columns: int):
    tasks, own_of = one.tasks, dict(zip(one.group.tasks, one.group.own_T, strict=True))
    own_stage = Line2D([], [], color=INK, marker="v", ls="", ms=3.2, label="own stage")
    handles = [*map(_patch, SAID), own_stage]
    top = TITLE + legend_height(handles, width)
    figure, axes = panels(len(tasks), columns, width, height=1.1, top=top)
    num_stages = one.pooled.share_RTK.shape[0] - 1
    for k, (task, axis) in enumerate(zip(tasks, axes, strict=True)):
        own = own_of[task]
        for stage in np.flatnonzero(np.isfinite(one.pooled.share_RTK[:, k, 0])):
            _bar(axis, stage, one.pooled.share_RTK[stage, k], PALE if stage < own else 1)
        if own >= 0:
            axis.plot(own, 105, "v", color=INK, ms=3.2, clip_on=False)
        title_panel(axis, results.view.task(task))
        bottom, left = k >= len(tasks) - columns, k % columns == 0
        stage_axis(axis, num_stages, bottom=bottom, left=left, high=100)
        axis.set(xlim=(-0.6, num_stages + 0.6), ylim=(0, 108))
        axis.grid(visible=False)
        if left:
            axis.set_ylabel("answers (%)")
    tall = figure.get_figheight()
    figure.legend(
        handles=handles, loc="upper left", ncols=legend_columns(handles, width), handlelength=1.6,
        bbox_to_anchor=(0, 1 - TITLE / tall), columnspacing=1,
    )  # fmt: skip
    figure.text(0.085 / width, 1 - 0.03 / tall, one.group.title, size=8.5, weight="bold", va="top")
    return figure


def _bar(axis, stage: int, share_K: np.ndarray, alpha: float) -> None:
    bottom = 0.0
    for kind, share in zip(SAID, share_K, strict=True):
        axis.bar(stage, share, 0.92, bottom, alpha=alpha, **_look(kind))
        bottom += share


def _patch(kind: str) -> Patch:
    return Patch(label=KINDS[kind], **_look(kind))


def _look(kind: str) -> dict:
    return {
        "facecolor": COLORS[kind], "hatch": HATCHES.get(kind), "edgecolor": PAPER, "linewidth": 0.4
    }  # fmt: skip
