"""A strip of examples: the picture, the question, what was answered then and what in the end."""

from __future__ import annotations

import io

import numpy as np
from matplotlib import pyplot as plt

from palimpsest.report.examples import Shown, shown_examples
from palimpsest.report.figures.style import INK, MUTED, PAGE, RIGHT, Picture, wrap
from palimpsest.report.results import Results

WRONG = "#d55e00"
CAPTION = (
    "For each task one test example: what was answered right after the task's own stage, and what "
    "after the last stage. Where the gallery has one, it is the first example that was right then "
    "and is wrong now, so the strip shows how answers fail, not how often."
)


def draw(results: Results) -> list[Picture]:
    """Return one figure for each sequential group whose tasks have a gallery."""
    pictures = []
    for group in results.sequential:
        shown = [pair for task in group.tasks for pair in shown_examples(results, group, task)[:1]]
        if shown:
            pictures.append(Picture(
                f"examples-{group.slug}", "examples", group.title, CAPTION, _draw(shown),
            ))  # fmt: skip
    return pictures


def _draw(shown: list[Shown]):
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    width, tall = PAGE, rows * 2.42 + 0.05
    figure = plt.figure(figsize=(width, tall))
    cell_w, cell_h = width / columns, 2.42
    for k, example in enumerate(shown):
        left = (k % columns) * cell_w + 0.06
        top = tall - (k // columns) * cell_h - 0.04
        _card(figure, example, left, top, cell_w - 0.12)
    return figure


def _card(figure, example: Shown, left: float, top: float, width: float) -> None:
    """Draw one example with its upper left corner at (left, top), in inches."""
    wide, tall = figure.get_size_inches()

    def say(y: float, text: str, **style) -> None:
        style = {"fontsize": 6, "va": "top", "color": INK, "linespacing": 1.15, **style}
        figure.text(left / wide, (top - y) / tall, text, **style)

    letters = int(width / 0.05)
    say(0, example.task_title, fontsize=7, weight="bold")
    if example.image:
        picture = plt.imread(io.BytesIO(example.image), "png")
        axis = figure.add_axes((left / wide, (top - 1.1) / tall, 0.95 / wide, 0.95 / tall))
        axis.imshow(np.clip(picture, 0, 1), interpolation="nearest", aspect="equal")
        axis.set_anchor("NW")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set(visible=True, color=MUTED, linewidth=0.5)
    say(1.16, wrap(example.question, letters, 5))
    say(1.73, "expected: " + wrap(example.reference, letters - 10, 1), color=MUTED)
    for y, when, text, good in (
        (1.86, "then: ", example.then, example.then_right),
        (2.1, "now: ", example.now, example.now_right),
    ):
        said = wrap(f"{'✓' if good else '✗'} {when}{text or '(nothing)'}", letters, 2)
        say(y, said, color=RIGHT if good else WRONG)
