"""Unlearning by stage, and after the last one: what is refused against what is answered."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from palimpsest.report.figures.style import (
    COLUMN,
    Look,
    Picture,
    ceiling,
    heading,
    legend_above,
    legend_height,
    panels,
    series,
    stage_axis,
)
from palimpsest.report.results import Estimate, names, slug
from palimpsest.report.sections.refusals import Told

SHOWN = {  # a quantity's name -> how its panel or axis is called
    "refusal_rate": "RR: refused",
    "context_aware_refusal_rate": "CRR: in fitting words",
    "answer_rate": "AR: answered",
    "specificity": "S: held out",
}
BY_STAGE = (
    "After each stage, over the tasks seen by then: what is refused of what is to be refused (RR; "
    "in fitting words: CRR), what is answered of the rest (AR), and the held-out tasks in percent "
    "of the base model (S). Bands are 95 % paired bootstrap intervals."
)
PLANE = (
    "After the last stage: what is refused of what is to be refused against what is answered of "
    "the rest (AR) and what the model is still worth elsewhere (S), with 95 % paired bootstrap "
    "intervals. Up and to the right is better; no axis begins at 0."
)
KEPT = ("answer_rate", "specificity")  # along the planes
LINES = 7  # as many looks there are


def draw(found: Sequence[Told]) -> list[Picture]:
    """Return both figures for each model and order; of many methods several, the first in each."""
    settings: dict[tuple[str, str], list[Told]] = {}
    for one in found:
        settings.setdefault((one.group.view.model, one.group.view.order), []).append(one)
    pictures, alone = [], len(settings) == 1
    for key, (first, *others) in settings.items():
        parts = [others[k : k + LINES - 1] for k in range(0, len(others), LINES - 1)] or [[]]
        for number, part in enumerate(parts, start=1):
            which = (*(() if alone else key), str(number) if len(parts) > 1 else "")
            of, lines = slug("-".join(which)), [first, *part]
            for name, title, caption, figure in (
                ("steps", "Unlearning by stage", BY_STAGE, _by_stage(lines)),
                ("plane", "Refused and kept", PLANE, _plane(lines)),
            ):
                called = f"unlearning-{name}-{of}".rstrip("-")
                title = heading(title, first.group, alone=alone)
                pictures.append(Picture(called, "unlearning", title, caption, figure))
    return pictures


def _by_stage(lines: Sequence[Told]):
    shown = [name for name in SHOWN if any(name in one.steps for one in lines)]
    handles = series(names([one.group for one in lines]), dashed=True)
    high = ceiling(*[one.steps[name][0] for one in lines for name in shown if name in one.steps])
    figure, axes = panels(len(shown), 2, COLUMN, height=1.15, top=legend_height(handles, COLUMN))
    for k, (name, axis) in enumerate(zip(shown, axes, strict=True)):
        for number, one in enumerate(lines):
            if name in one.steps:
                _line(one.steps[name], Look.of(number), axis)
        axis.set_title(SHOWN[name], loc="left", pad=3)
        num_stages = len(lines[0].group.view.rows) - 1
        stage_axis(axis, num_stages, bottom=k >= len(shown) - 2, left=k % 2 == 0, high=high)
        axis.set_xlim(0.6, num_stages + 0.4)
        axis.set_xlabel("after stage" if k >= len(shown) - 2 else "")
    legend_above(figure, handles)
    return figure


def _line(ends_3S, look: Look, axis) -> None:
    value_S, low_S, high_S = ends_3S
    stages = range(1, len(value_S) + 1)
    axis.fill_between(stages, low_S, high_S, color=look.color, alpha=0.15, lw=0)
    axis.plot(stages, value_S, color=look.color, ls=look.dashes, marker=look.marker, ms=2.6)


def _plane(lines: Sequence[Told]):
    fits = "context_aware_refusal_rate"
    up = fits if all(f"{fits}_last" in one.estimates for one in lines) else "refusal_rate"
    kept = [k for k in KEPT if any(f"{k}_last" in one.estimates for one in lines)]
    handles = series(names([one.group for one in lines]), dashed=False)
    top = legend_height(handles, COLUMN)
    tall = 1.9 + top
    figure, axes = plt.subplots(1, len(kept), figsize=(COLUMN, tall), sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.46 / COLUMN, right=1 - 0.12 / COLUMN, bottom=0.4 / tall, top=1 - (top + 0.03) / tall,
        wspace=0.12,
    )  # fmt: skip
    for along, axis in zip(kept, axes[0], strict=True):
        for number, one in enumerate(lines):
            x, y = (one.estimates.get(f"{of}_last") for of in (along, up))
            if x and y:
                _point(x, y, Look.of(number), axis)
        axis.set_xlabel(f"{SHOWN[along]} (%)")
        axis.grid()
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    axes[0, 0].set_ylabel(f"{SHOWN[up]} (%)")
    legend_above(figure, handles)
    return figure


def _point(x: Estimate, y: Estimate, look: Look, axis) -> None:
    style = {"color": look.color, "lw": 1, "marker": "|", "ms": 4, "mew": 1}
    axis.plot([x.low, x.high], [y.value] * 2, **style)
    axis.plot([x.value] * 2, [y.low, y.high], **style | {"marker": "_"})
    axis.plot(x.value, y.value, look.marker, color=look.color, ms=4, zorder=3)
