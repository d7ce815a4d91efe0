"""CoIN's radar: each task at its own stage against after the last."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from palimpsest.report.figures.style import (
    GRID,
    INK,
    PAGE,
    RIGHT,
    Picture,
    ceiling,
    heading,
    whole,
    wrap,
)
from palimpsest.report.results import Group, Results, names

LAST = "#d55e00"


def draw(results: Results) -> list[Picture]:
    """Return one figure for each model and order that has three tasks or more."""
    pictures = []
    for name, groups in results.settings.items():
        learnt = [task for task in groups[0].tasks if np.isfinite(groups[0].own(task))]
        if len(learnt) >= 3:
            pictures.append(Picture(
                f"radar-{name}".rstrip("-"), "radar",
                heading("Own stage against after the last", groups[0], alone=not name),
                "The score on each task (%, from the centre outwards) right after its own stage "
                "(solid) and after the last stage (dashed); what lies between is forgotten.",
                _draw(results, groups, learnt),
            ))  # fmt: skip
    return pictures


def _draw(results: Results, groups: tuple[Group, ...], tasks: list[str]):
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    width, tall = (PAGE / 3 * max(columns, 1.45), rows * 2.2 + 0.2)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, tall), squeeze=False, subplot_kw={"projection": "polar"}
    )
    figure.subplots_adjust(
        left=0.62 / width, right=1 - 0.62 / width, bottom=0.2 / tall, top=1 - 0.68 / tall,
        wspace=0.9, hspace=0.45,
    )  # fmt: skip
    high = ceiling(*[group.value_RT for group in groups])
    titles = [wrap(results.view.task(task).title, 11, 2) for task in tasks]
    for axis, group, name in zip(axes.ravel(), groups, names(groups), strict=False):
        _web(axis, titles, high)
        axis.set_title(whole(name, 28, 2), pad=20)
        _polygon(axis, [group.own(task) for task in tasks], RIGHT, "-", "o")
        _polygon(axis, [group.end(task) for task in tasks], LAST, (0, (3, 1.2)), "s")
    for spare in axes.ravel()[len(groups) :]:
        spare.remove()
    handles = [
        Line2D([], [], color=RIGHT, marker="o", ms=3, label="right after its own stage (%)"),
        Line2D(
            [], [], color=LAST, marker="s", ms=3, ls=(0, (3, 1.2)), label="after the last stage (%)"
        ),
    ]
    figure.legend(handles=handles, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.0))
    return figure


def _web(axis, titles: list[str], high: float) -> None:
    angle = np.arange(len(titles)) * 2 * np.pi / len(titles)
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_ylim(0, high)
    axis.set_yticks([high / 4, high / 2, 3 * high / 4, high], ["", f"{high / 2:.0f} %", "", ""])
    axis.set_rlabel_position(180 / len(titles))
    axis.tick_params(axis="y", labelsize=5.5, colors=INK)
    axis.set_xticks(angle, [""] * len(titles))
    axis.spines["polar"].set_color(GRID)
    for theta, title in zip(angle, titles, strict=True):
        side = np.sin(theta)
        align = "center" if abs(side) < 0.2 else ("left" if side > 0 else "right")
        axis.text(theta, high * 1.1, title, ha=align, va="center", fontsize=6, linespacing=1.05)


def _polygon(axis, values: list[float], color: str, dashes, marker: str) -> None:
    angle = np.arange(len(values) + 1) * 2 * np.pi / len(values)
    closed = [*values, values[0]]
    axis.plot(angle, closed, color=color, ls=dashes, marker=marker, ms=2.6, lw=1.2, clip_on=False)
    axis.fill(angle, closed, color=color, alpha=0.1, lw=0)
