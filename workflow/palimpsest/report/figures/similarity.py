"""How alike tasks are to a model, and whether learning what is alike makes it forget more."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot as plt

from palimpsest.report.figures.style import (
    COLUMN,
    MUTED,
    ON_DARK,
    ON_LIGHT,
    PAGE,
    PAPER,
    SCORES,
    SERIES,
    Picture,
    panels,
    wrap,
)
from palimpsest.report.results import Results, slug
from palimpsest.report.sections.similarity import Relation, correlation_text, relations

CELL = 0.29  # inches
ALIKE = (
    "How alike the tasks are to {model}: the product (above) of what their pictures, their "
    "instructions and their answers come to (below, tasks in the same order). Each of the three is "
    "the sigmoid of the z-score of a pair's cosine among all pairs, so a pair that is average in "
    "all of them has 0.125; a single pair has its cosine."
)
SCATTER = (
    "Every ordered pair of tasks with {model}: how alike the two are, against the points that the "
    "earlier one lost in the stage that learnt the later one (mean over the orders and seeds in "
    "which that was measured; below the line is a gain). r is Pearson's correlation with its 95 % "
    "interval by resampling pairs."
)


def draw(results: Results) -> list[Picture]:
    """Return for each model the similarities, and forgetting against them."""
    pictures, found = [], relations(results)
    for model in results.view.similarities:
        if len(results.view.known) > 1:
            pictures.append(Picture(
                f"similarity-{slug(model)}", "similarity", f"Similarity of tasks to {model}",
                ALIKE.format(model=model), _matrices(results, model),
            ))  # fmt: skip
        if own := [one for one in found if one.model == model]:
            pictures.append(Picture(
                f"scatter-{slug(model)}", "similarity", f"Similarity and forgetting, {model}",
                f"{SCATTER.format(model=model)} {results.scales}".strip(), _scatter(own),
            ))  # fmt: skip
    return pictures


def _matrices(results: Results, model: str):
    """Draw the overall matrix with its numbers, and those of the modalities small below it."""
    overall_TT, *others = results.view.similarities[model].items()
    titles = [wrap(task.title, 20, 1) for task in results.view.known]
    label = 0.2 + 0.05 * max(map(len, titles))
    side = max(COLUMN - label - 0.08, CELL * len(titles))
    small = (label + side - 0.1) / len(others) - 0.1
    width, under = label + side + 0.08, 0.1 + 0.04 * max(map(len, titles))
    tall = 0.56 + side + under + 0.3 + small + 0.08

    def place(left: float, bottom: float, inches: float):
        rectangle = (left / width, bottom / tall, inches / width, inches / tall)
        axis = figure.add_axes(rectangle)
        axis.tick_params(length=0, pad=2)
        axis.spines[:].set_visible(False)
        return axis

    figure = plt.figure(figsize=(width, tall))
    axis = place(label, 0.08 + small + 0.3 + under, side)
    mesh = _mesh(axis, overall_TT[1])
    _numbers(axis, overall_TT[1])
    centres = np.arange(len(titles)) + 0.5
    axis.set_xticks(centres, titles, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(centres, titles)
    for k, (modality, s_TT) in enumerate(others):
        axis = place(0.1 + k * (small + 0.1), 0.08, small)
        _mesh(axis, s_TT)
        axis.set(xticks=[], yticks=[])
        axis.set_title(modality, pad=3)
    bar = figure.add_axes((label / width, 1 - 0.4 / tall, 0.4 * COLUMN / width, 0.07 / tall))
    scale = figure.colorbar(mesh, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1])
    scale.outline.set_visible(False)
    bar.tick_params(length=0, pad=1.5, labelsize=6)
    beside = {"fontsize": 6, "va": "center"}
    figure.text((label + 0.4 * COLUMN + 0.12) / width, 1 - 0.365 / tall, "similarity", **beside)
    figure.text(label / width, 1 - 0.05 / tall, model, fontsize=7.5, weight="bold", va="top")
    return figure


def _mesh(axis, s_TT: np.ndarray):
    """Draw a matrix without its diagonal, which is 1 by definition."""
    off_TT = np.ma.masked_array(s_TT, np.eye(len(s_TT), dtype=bool))
    axis.invert_yaxis()
    return axis.pcolormesh(off_TT, cmap=SCORES, vmin=0, vmax=1, ec=PAPER, lw=0.4)


def _numbers(axis, s_TT: np.ndarray) -> None:
    for (i, j), value in np.ndenumerate(s_TT):
        if i != j:
            axis.text(
                j + 0.5, i + 0.53, f"{value:.2f}", ha="center", va="center", fontsize=6,
                color=ON_DARK if value > 0.5 else ON_LIGHT,
            )  # fmt: skip


def _scatter(found: list[Relation]):
    columns = min(len(found), 3)
    width = COLUMN if columns == 1 else PAGE * columns / 3
    titles = [wrap(one.title, 30, 2) for one in found]
    lines = max(title.count("\n") for title in titles)
    figure, axes = panels(len(found), 3, width, height=1.45, top=0.2 + 0.12 * lines)
    figure.subplots_adjust(hspace=0.42 + 0.09 * lines)
    for k, (one, title, axis) in enumerate(zip(found, titles, axes, strict=True)):
        axis.axhline(0, color=MUTED, lw=0.6)
        axis.plot(one.similarity_P, one.forgotten_P, "o", color=SERIES[0], ms=3, alpha=0.6, mew=0)
        axis.set_title(title, loc="left", pad=11)
        told = f"r = {correlation_text(one)}, {len(one.pairs)} pairs"
        axis.annotate(told, (0, 1), (0, 3), "axes fraction", "offset points", fontsize=6.5)
        axis.grid(axis="y")
        if k >= len(found) - columns:
            axis.set_xlabel("similarity of the two tasks")
        if k % columns == 0:
            axis.set_ylabel("forgotten (points)")
    return figure
