"""Plasticity against stability, and what the order of the tasks does to both."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import pyplot as plt

from palimpsest.report.figures.style import (
    COLUMN,
    Look,
    Picture,
    heading,
    legend_above,
    legend_height,
    series,
)
from palimpsest.report.results import Group, Results, names
from palimpsest.report.sections.orders import methods

ENDS = ("learning_accuracy", "forgetting")
TITLES = {"learning_accuracy": "just learnt (%)", "forgetting": "forgetting (points)"}
PLANE = (
    "Plasticity against stability: learning accuracy (each task right after its own stage) against "
    "forgetting, with 95 % paired bootstrap intervals. Up and to the right is better."
)
ORDERS = (
    "The same methods in each order of the tasks: what is learnt, and what of it is forgotten, "
    "with 95 % paired bootstrap intervals."
)


def draw(results: Results) -> list[Picture]:
    """Return a plane for each model and order, and the orders of each model that has several."""
    pictures = []
    for name, groups in results.settings.items():
        if told := [g for g in groups if all(end in g.estimates for end in ENDS)]:
            title = heading("Plasticity and stability", told[0], alone=not name)
            called = f"plane-{name}".removesuffix("-")
            pictures.append(Picture(called, "dynamics", title, PLANE, _plane(told)))
    by_model: dict[str, list[list[Group]]] = {}
    for groups in methods(results):
        by_model.setdefault(groups[0].view.model, []).append(groups)
    for model, lines in by_model.items():
        alone = len(by_model) == 1
        called, of = ("orders", "") if alone else (f"orders-{model}", f": {model}")
        title = f"What the order does{of}"
        pictures.append(Picture(called, "dynamics", title, ORDERS, _orders(lines)))
    return pictures


def _plane(groups: Sequence[Group]):
    handles = series(names(groups), dashed=False)
    top = legend_height(handles, COLUMN)
    tall = 2.2 + top
    figure, axis = plt.subplots(figsize=(COLUMN, tall))
    _margins(figure, tall, top)
    for k, group in enumerate(groups):
        look, (x, y) = Look.of(k), (group.estimates[end] for end in ENDS)
        style = {"color": look.color, "lw": 0.9}
        axis.plot([x.low, x.high], [y.value] * 2, **style)
        axis.plot([x.value] * 2, [y.low, y.high], **style)
        axis.plot(x.value, y.value, look.marker, color=look.color, ms=4.5, zorder=3)
    axis.invert_yaxis()
    axis.set_xlabel(f"plasticity: {TITLES[ENDS[0]]}")
    axis.set_ylabel(f"stability: {TITLES[ENDS[1]]}")
    axis.grid()
    legend_above(figure, handles)
    return figure


def _orders(lines: Sequence[Sequence[Group]]):
    orders = list(dict.fromkeys(group.view.order for groups in lines for group in groups))
    handles = series([groups[0].view.title for groups in lines], dashed=True)
    top = legend_height(handles, COLUMN)
    tall = 2.0 + top
    figure, axes = plt.subplots(1, 2, figsize=(COLUMN, tall))
    _margins(figure, tall, top)
    figure.subplots_adjust(wspace=0.45)
    for end, axis in zip(ENDS, axes, strict=True):
        for k, groups in enumerate(lines):
            look = Look.of(k)
            shift = 0.05 * (k - (len(lines) - 1) / 2)  # so that intervals stand side by side
            told = [group for group in groups if end in group.estimates]
            at = [orders.index(group.view.order) + shift for group in told]
            each = [group.estimates[end] for group in told]
            axis.plot(
                at, [e.value for e in each], color=look.color, ls=look.dashes,
                marker=look.marker, ms=3, lw=1,
            )  # fmt: skip
            for x, e in zip(at, each, strict=True):
                axis.plot([x, x], [e.low, e.high], color=look.color, lw=0.7, alpha=0.6)
        axis.set_xticks(range(len(orders)), orders)
        axis.set_xlim(-0.4, len(orders) - 0.6)
        axis.set_ylabel(TITLES[end])
        axis.grid(axis="y")
    legend_above(figure, handles)
    return figure


def _margins(figure, tall: float, top: float) -> None:
    figure.subplots_adjust(
        left=0.46 / COLUMN, right=1 - 0.1 / COLUMN, bottom=0.4 / tall, top=1 - (top + 0.05) / tall
    )
