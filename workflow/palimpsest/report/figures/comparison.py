"""The method comparison: what was learnt, what was kept, and the forgetting between them."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from palimpsest.report.figures.style import (
    COLUMN,
    GRID,
    INK,
    MUTED,
    PAGE,
    PAPER,
    Look,
    Picture,
    ceiling,
    whole,
)
from palimpsest.report.paper.tables import signed
from palimpsest.report.results import Estimate, Group, Results

CAPTION = (
    "Learning accuracy (open circle: each task right after its own stage) against average accuracy "
    "after the last stage (filled circle), both means over tasks; forgetting is the best earlier "
    "score minus the last, over the tasks before the last stage (divisor T−1). Lines are 95 % "
    "paired bootstrap intervals. Grey diamonds are references that forget nothing."
)


ROW = 0.23  # inches


def draw(results: Results) -> list[Picture]:
    """Return the figure at page width, and stacked for one column."""
    title = "What was learnt, and what was kept"
    if not results.sequential:
        return [Picture("references", "comparison", title, CAPTION, _references(results))]
    return [
        Picture("comparison", "comparison", title, CAPTION, _wide(results)),
        Picture(
            "comparison-column", "comparison", f"{title} (one column)", CAPTION, _tall(results)
        ),
    ]


def _wide(results: Results):
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(PAGE, _height(results) + 0.72), sharey=True, width_ratios=(1.7, 1)
    )
    _scores(results, left)
    _lost(results, right)
    figure.subplots_adjust(left=_label_width(results) / PAGE, right=1 - 0.75 / PAGE, wspace=0.1)
    _margins(figure)
    return figure


def _tall(results: Results):
    num_sequences = len(results.sequential)
    high, low = _height(results), ROW * (num_sequences + 0.2)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(COLUMN, high + low + 1.27), height_ratios=(high, low)
    )
    _scores(results, above)
    _lost(results, below)
    below.set_yticks([-k for k in range(num_sequences)], _titles(results.sequential))
    below.set_ylim(0.6 - num_sequences, 0.6)
    left, gap = _label_width(results) / COLUMN, 0.55 / ((high + low) / 2)
    figure.subplots_adjust(left=left, right=1 - 0.45 / COLUMN, hspace=gap)
    _margins(figure)
    return figure


def _references(results: Results):
    figure, axis = plt.subplots(figsize=(COLUMN, _height(results) + 0.72))
    _scores(results, axis)
    figure.subplots_adjust(left=_label_width(results) / COLUMN, right=1 - 0.15 / COLUMN)
    _margins(figure)
    return figure


def _height(results: Results) -> float:
    return ROW * (len(results.groups) + 1.7)  # chance and a gap beside the groups


def _label_width(results: Results) -> float:
    lines = "\n".join([*_titles(results.groups), "Chance"]).split("\n")
    return 0.12 + 0.05 * max(map(len, lines))


def _titles(groups: tuple[Group, ...]) -> list[str]:
    return [whole(group.title, 26, 2) for group in groups]


def _margins(figure) -> None:
    tall = figure.get_figheight()
    figure.subplots_adjust(bottom=0.42 / tall, top=1 - 0.3 / tall)
    handles = [
        Line2D([], [], marker="o", ls="", mfc=PAPER, mec=INK, label="just learnt"),
        Line2D([], [], marker="o", ls="", color=INK, label="after the last stage"),
        Line2D([], [], marker="D", ls="", color=MUTED, ms=3.5, label="reference"),
    ]
    figure.legend(
        handles=handles, loc="upper left", ncols=3, handletextpad=0.1, columnspacing=1,
        bbox_to_anchor=(0.0, 1.0),
    )  # fmt: skip


def _scores(results: Results, axis) -> None:
    """Draw learning and average accuracy of the sequences, references and chance below."""
    sequences, references = results.sequential, results.references
    places = [-k for k in range(len(sequences))]
    chance = ["Chance"] if results.view.knows_chance else []
    places += [-len(sequences) - 0.5 - k for k in range(len(references) + len(chance))]
    for k, (group, y) in enumerate(zip((*sequences, *references), places, strict=False)):
        if group.sequential:
            _sequence(group, y, Look.of(k).color, axis)
        else:
            _reference(group, y, axis)
    if chance:
        axis.plot(
            np.mean([t.chance for t in results.view.known]), places[-1], "D", color=MUTED, ms=3.5
        )
    axis.set_yticks(places, [*_titles(sequences), *_titles(references), *chance])
    axis.set_ylim(places[-1] - 0.6, 0.6)
    values = [group.value_RT for group in results.groups]
    axis.set_xlim(0, ceiling(*values) if results.unbounded else 100)
    axis.set_xlabel("mean score over tasks (%)")
    _plain(axis, len(sequences))


def _lost(results: Results, axis) -> None:
    """Draw the forgetting of each sequence, its value at the right."""
    for k, group in enumerate(results.sequential):
        forgot, color = group.estimates.get("forgetting"), Look.of(k).color
        if forgot:
            _interval(axis, forgot, -k, color)
            axis.plot(forgot.value, -k, "o", color=color, ms=4, zorder=3)
            axis.annotate(
                signed(forgot.value), (1, -k), xycoords=("axes fraction", "data"),
                xytext=(26, 0), textcoords="offset points", ha="right", va="center",
            )  # fmt: skip
    axis.axvline(0, color=MUTED, lw=0.8)
    axis.set_xlabel("forgetting (percentage points)")
    _plain(axis, len(results.sequential))


def _plain(axis, num_sequences: int) -> None:
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    if num_sequences:
        axis.axhline(0.25 - num_sequences, color=GRID, lw=0.8)


def _sequence(group: Group, y: float, color: str, axis) -> None:
    own = group.estimates.get("learning_accuracy")
    last = group.estimates.get("average_accuracy")
    if own and last:
        axis.plot(
            [own.value, last.value], [y, y], color=color, lw=4, alpha=0.22, solid_capstyle="butt"
        )
    for e, face, shift in ((own, PAPER, 0.13), (last, color, -0.13)):
        if e:
            _interval(axis, e, y + shift, color)
            axis.plot(e.value, y + shift, "o", mfc=face, mec=color, mew=1, ms=4, zorder=3)


def _interval(axis, e: Estimate, y: float, color: str) -> None:
    axis.plot([e.low, e.high], [y, y], color=color, lw=1, marker="|", ms=4, mew=1, zorder=2)


def _reference(group: Group, y: float, axis) -> None:
    e = group.estimates.get("average_accuracy")
    if e:
        _interval(axis, e, y, MUTED)
        axis.plot(e.value, y, "D", color=MUTED, ms=3.5)
