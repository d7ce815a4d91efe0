"""The method comparison: what was learnt, what was kept, and the forgetting between them."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from palimpsest.report.figures.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    PAPER,
    SERIES,
    Picture,
    ceiling,
    wrap,
)
from palimpsest.report.results import Estimate, Group, Results
from palimpsest.report.tables import signed

CAPTION = (
    "Learning accuracy (open circle: each task right after its own stage) against average accuracy "
    "after the last stage (filled circle), both means over tasks; forgetting is the best earlier "
    "score minus the last, over the tasks before the last stage (divisor T−1). Lines are 95 % "
    "paired bootstrap intervals. Grey diamonds are references that forget nothing."
)


def draw(results: Results) -> list[Picture]:
    """Return the figure at page width, and stacked for one column."""
    wide, (left, right) = plt.subplots(
        1, 2, figsize=(PAGE, _height(results) + 0.85), sharey=True, width_ratios=(1.7, 1)
    )
    _fill(results, left, right)
    wide.subplots_adjust(left=1.75 / PAGE, right=1 - 0.75 / PAGE, wspace=0.1)
    _margins(wide, left, top=0.3)
    tall, (above, below) = plt.subplots(
        2,
        1,
        figsize=(COLUMN, _height(results) + 0.23 * len(results.sequential) + 1.45),
        sharey=True,
        height_ratios=(_height(results), 0.23 * (len(results.sequential) + 0.4)),
    )
    _fill(results, above, below)
    below.tick_params(labelleft=True)
    tall.subplots_adjust(left=1.3 / COLUMN, right=1 - 0.45 / COLUMN, hspace=0.5)
    _margins(tall, above, top=0.3)
    title = "What was learnt, and what was kept"
    return [
        Picture("comparison", "comparison", title, CAPTION, wide),
        Picture("comparison-column", "", f"{title} (one column)", CAPTION, tall),
    ]


def _height(results: Results) -> float:
    return 0.23 * (len(results.groups) + 1.6)


def _margins(figure, axis, top: float) -> None:
    tall = figure.get_figheight()
    figure.subplots_adjust(bottom=0.42 / tall, top=1 - top / tall)
    handles = [
        Line2D([], [], marker="o", ls="", mfc=PAPER, mec=INK, label="just learnt"),
        Line2D([], [], marker="o", ls="", color=INK, label="after the last stage"),
        Line2D([], [], marker="D", ls="", color=MUTED, ms=3.5, label="reference"),
    ]
    figure.legend(
        handles=handles, loc="upper left", ncols=3, handletextpad=0.1, columnspacing=1,
        bbox_to_anchor=(0.0, 1.0),
    )  # fmt: skip


def _fill(results: Results, scores, lost) -> None:
    sequences, references = results.sequential, results.references
    for k, group in enumerate(sequences):
        _sequence(group, -float(k), SERIES[k % len(SERIES)], scores, lost)
    for k, group in enumerate(references):
        _reference(group, -len(sequences) - 0.5 - k, scores)
    chance = sum(task.chance for task in results.view.tasks) / len(results.view.tasks)
    bottom = -len(sequences) - 0.5 - len(references)
    scores.plot(chance, bottom, "D", color=MUTED, ms=3.5)
    labels = [group.title for group in (*sequences, *references)] + ["Chance"]
    places = [-float(k) for k in range(len(sequences))]
    places += [-len(sequences) - 0.5 - k for k in range(len(references) + 1)]
    scores.set_yticks(places, [wrap(label, 26, 2) for label in labels])
    scores.set_ylim(bottom - 0.6, 0.6)
    values = [group.value_RT for group in results.groups]
    scores.set_xlim(0, 100 if not results.unbounded else ceiling(*values))
    scores.set_xlabel("mean score over tasks (%)")
    lost.set_xlabel("forgetting (percentage points)")
    lost.axvline(0, color=MUTED, lw=0.8)
    for axis in (scores, lost):
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        if sequences:
            axis.axhline(0.25 - len(sequences), color=GRID, lw=0.8)


def _sequence(group: Group, y: float, color: str, scores, lost) -> None:
    own = group.estimates.get("learning_accuracy")
    last = group.estimates.get("average_accuracy")
    forgot = group.estimates.get("forgetting")
    if own and last:
        scores.plot(
            [own.value, last.value], [y, y], color=color, lw=4, alpha=0.22, solid_capstyle="butt"
        )
    for e, face, shift in ((own, PAPER, 0.13), (last, color, -0.13)):
        if e:
            _interval(scores, e, y + shift, color)
            scores.plot(e.value, y + shift, "o", mfc=face, mec=color, mew=1, ms=4, zorder=3)
    if forgot:
        _interval(lost, forgot, y, color)
        lost.plot(forgot.value, y, "o", color=color, ms=4, zorder=3)
        lost.annotate(
            signed(forgot.value), (1, y), xycoords=("axes fraction", "data"),
            xytext=(26, 0), textcoords="offset points", ha="right", va="center",
        )  # fmt: skip


def _interval(axis, e: Estimate, y: float, color: str) -> None:
    axis.plot([e.low, e.high], [y, y], color=color, lw=1, marker="|", ms=4, mew=1, zorder=2)


def _reference(group: Group, y: float, scores) -> None:
    e = group.estimates.get("average_accuracy")
    if e:
        _interval(scores, e, y, MUTED)
        scores.plot(e.value, y, "D", color=MUTED, ms=3.5)
