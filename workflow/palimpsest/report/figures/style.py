"""The one style of all figures: sizes, inks, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from palimpsest.report.results import Group
from palimpsest.report.spec import TaskView

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLUMN, PAGE = 3.3, 7.0  # widths in inches of one column and of a page of a paper
BOTH = {"": (PAGE, 4), "-column": (COLUMN, 2)}  # end of a name -> width, and panels side by side

INK, MUTED, GRID, PAPER = "#1b2430", "#5d6b7a", "#dde3ea", "#fefefe"
ON_DARK, ON_LIGHT = "#ffffff", "#1b2431"  # text inside coloured cells: the same in both themes
RIGHT, KIND = "#0072b2", "#e69f00"
# Okabe and Ito (2008); colour never stands alone: each series has its marker and its dashes too
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5d6b7a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), "--", ":")
STEPS = 20  # of a heat map's colours: few enough for the page to exchange them when it is dark
LIGHT_RAMP = ("#f5f8fa", "#d3e3ee", "#8fbbd6", "#4489b4", "#175b88", "#0a3354")
DARK_RAMP = ("#182029", "#17364c", "#1b5478", "#3683b3", "#78b6da", "#c5e2f3")
SCORES = LinearSegmentedColormap.from_list("scores", LIGHT_RAMP, N=STEPS)
SCORES_DARK = LinearSegmentedColormap.from_list("scores-dark", DARK_RAMP, N=STEPS)
FONTS = "'DejaVu Sans', Verdana, Geneva, sans-serif"

RC = {
    "font.family": "DejaVu Sans", "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7,
    "xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.titleweight": "bold",
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "grid.color": GRID, "grid.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "lines.linewidth": 1.4, "lines.markersize": 4, "legend.frameon": False,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "white",
    "svg.fonttype": "none", "svg.hashsalt": "palimpsest", "pdf.fonttype": 42,
    "image.interpolation": "nearest", "text.parse_math": False,
}  # fmt: skip
NO_DATES = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}, "png": {}}


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its file name without suffix, what it shows, and where it belongs.

    `section` is that of the page; "" for a figure that is there in another width.
    """

    name: str
    section: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Look:
    """Colour, marker and dashes of the k-th series."""

    color: str
    marker: str
    dashes: str | tuple

    @classmethod
    def of(cls, k: int) -> Look:
        """Return the look of series k: after seven a colour is again, with another marker."""
        return cls(SERIES[k % 7], MARKERS[(k + k // 7) % 7], DASHES[k % 7])


def save(picture: Picture, directory: Path) -> str:
    """Write a figure as SVG, PDF and PNG, close it, and return the SVG's text."""
    for suffix in ("pdf", "png", "svg"):
        path = directory / f"{picture.name}.{suffix}"
        face = "none" if suffix == "svg" else "white"
        picture.figure.savefig(path, dpi=220, metadata=NO_DATES[suffix], facecolor=face)
    plt.close(picture.figure)
    text = re.sub(r"'DejaVu Sans'", FONTS, path.read_text())
    path.write_text(text)
    return text


def panels(count: int, columns: int = 4, width: float = PAGE, height: float = 1.35, top=0.45):
    """Return a figure and `count` small axes in rows of `columns`; `top` inches stay free."""
    columns = min(columns, count)
    rows = -(-count // columns)
    tall = rows * (height + 0.28) + top + 0.2
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, tall), squeeze=False, sharex=True, sharey=True
    )
    figure.subplots_adjust(
        left=0.46 / width, right=1 - 0.08 / width, bottom=0.38 / tall,
        top=1 - (top + 0.17) / tall, wspace=0.12, hspace=0.3,
    )  # fmt: skip
    flat = list(axes.ravel())
    for spare in flat[count:]:
        spare.remove()
    for above in flat[max(0, count - columns) : count]:
        above.tick_params(labelbottom=True)
    return figure, flat[:count]


def heading(title: str, group: Group, *, alone: bool) -> str:
    """Return a figure's title, with the model and the order of its groups unless it is alone."""
    return title if alone else f"{title}: {group.view.model}, {group.view.order}"


def series(titles: Sequence[str], *, dashed: bool) -> list[Line2D]:
    """Return what a legend shows of the series of some titles; without dashes of points alone."""
    return [
        Line2D(
            [], [], color=look.color, marker=look.marker, ls=look.dashes if dashed else "", ms=3.5,
            label=whole(title, 44, 2),
        )
        for look, title in zip(map(Look.of, range(len(titles))), titles, strict=True)
    ]  # fmt: skip


def legend_above(figure, handles: list) -> None:
    """Put a legend along the upper edge, in as many columns as the figure is wide for."""
    columns = legend_columns(handles, figure.get_figwidth())
    figure.legend(
        handles=handles, loc="upper left", ncols=columns, columnspacing=1.2, handlelength=2.2,
        bbox_to_anchor=(0.0, 1.0),
    )  # fmt: skip


def legend_columns(handles: list, width: float) -> int:
    """Return in how many columns, of equal length, a legend fits into so many inches."""
    longest = max(len(line) for handle in handles for line in handle.get_label().split("\n"))
    most = max(1, int(width / (0.42 + 0.047 * longest)))
    num_rows = -(-len(handles) // most)
    return -(-len(handles) // num_rows)


def legend_height(handles: list, width: float) -> float:
    """Return how many inches `legend_above` takes of a figure that is so wide."""
    lines = max(handle.get_label().count("\n") + 1 for handle in handles)
    return 0.15 + (0.035 + 0.1 * lines) * -(-len(handles) // legend_columns(handles, width))


def stage_axis(axis, num_stages: int, *, bottom: bool, left: bool, high: float) -> None:
    """Give an axis of scores (%) over stages its limits, ticks, grid and labels."""
    step = max(1, -(-num_stages // 8))
    ticks = list(range(0, num_stages + 1, step))
    axis.set_xlim(-0.4, num_stages + 0.4)
    axis.set_xticks(ticks)
    axis.set_ylim(-3, high * 1.03)
    axis.set_yticks(np.linspace(0, high, 6 if high == 100 else 5))
    axis.grid(axis="y")
    if bottom:
        axis.set_xlabel("after stage (0: base model)")
    if left:
        axis.set_ylabel("score (%)")


def title_panel(axis, task: TaskView) -> None:
    """Give the panel of a task its title, and say if the task is held out."""
    axis.set_title(task.title, loc="left", pad=3)
    if task.held_out:
        place = {"xycoords": "axes fraction", "ha": "right", "va": "bottom"}
        plate = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}  # also over bars
        axis.annotate("held out", (0.98, 0.05), fontsize=6, color=MUTED, bbox=plate, **place)


def ceiling(*values) -> float:
    """Return the top of a score axis: 100, or more where a metric exceeds it."""
    top = max(100.0, *(float(np.nanmax(v, initial=0)) for v in values if np.size(v)))
    return 100.0 if top <= 100 else float(np.ceil(top / 20) * 20)


def wrap(text: str, width: int, lines: int = 9) -> str:
    """Break a text into at most `lines` lines of `width` characters, an ellipsis for the rest."""
    kept = _printable(text).split("\n")
    parts = [part for line in kept for part in textwrap.wrap(line, width) or [""]]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], parts[lines - 1][: width - 1] + "…"]
    return "\n".join(parts)


def whole(text: str, width: int, lines: int) -> str:
    """Break a name into at most `lines` lines at its blanks, wider than `width` if it needs it."""
    words = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    while len(parts := words.wrap(_printable(text))) > lines:
        words.width += 1
    return "\n".join(parts)


def _printable(text: str) -> str:
    """Leave out what SVG does not know."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
