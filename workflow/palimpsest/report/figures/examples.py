"""A strip of examples: the picture, the question, what was answered then and what in the end."""

from __future__ import annotations

import io

from matplotlib import pyplot as plt
from PIL import Image

from palimpsest.report.figures.style import INK, MUTED, PAGE, RIGHT, Picture, wrap
from palimpsest.report.page.examples import Shown, shown_examples
from palimpsest.report.results import Results

WRONG = "#d55e00"
LETTER, LINE = 0.05, 0.112  # width of a letter and height of a line, in inches
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
                f"examples-{group.slug}", "examples", group.title, CAPTION,
                _draw(shown, group.title),
            ))  # fmt: skip
    return pictures


def _draw(shown: list[Shown], title: str):
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    wide = PAGE / 4
    said = [_lines(example, int((wide - 0.12) / LETTER)) for example in shown]
    tall = 1.3 + LINE * max(map(len, said))
    figure = plt.figure(figsize=(wide * columns, rows * tall + 0.22))
    _say(figure, 0.06, 0.13, title, fontsize=8, weight="bold")
    for k, (example, lines) in enumerate(zip(shown, said, strict=True)):
        left, top = (k % columns) * wide + 0.06, 0.22 + (k // columns) * tall
        _say(figure, left, top + 0.13, example.task_title, fontsize=7, weight="bold")
        if example.image:
            _picture(figure, example.image, left, top + 0.18)
        for number, (text, color) in enumerate(lines):
            _say(figure, left, top + 1.27 + number * LINE, text, color=color, fontsize=6)
    return figure


def _lines(example: Shown, letters: int) -> list[tuple[str, str]]:
    """Return what stands below the picture, line by line with its colour."""
    then, now = (
        (f"{'✓' if right else '✗'} {when}: {text or '(nothing)'}", RIGHT if right else WRONG)
        for when, text, right in (
            ("then", example.then, example.then_right),
            ("now", example.now, example.now_right),
        )
    )
    parts = [(example.question, INK, 5), ("expected: " + example.reference, MUTED, 1)]
    parts += [(*then, 2), (*now, 2)]
    return [
        (line, color)
        for text, color, most in parts
        for line in wrap(text, letters, most).split("\n")
    ]


def _say(figure, left: float, below: float, text: str, **style) -> None:
    """Write one line at a place in inches from the upper left corner."""
    wide, tall = figure.get_size_inches()
    figure.text(left / wide, 1 - below / tall, text, **{"color": INK, **style})


def _picture(figure, image: bytes, left: float, below: float, side: float = 0.95) -> None:
    wide, tall = figure.get_size_inches()
    place = (left / wide, 1 - (below + side) / tall, side / wide, side / tall)
    axis = figure.add_axes(place, anchor="NW", xticks=[], yticks=[])
    with Image.open(io.BytesIO(image)) as picture:
        axis.imshow(picture.convert("RGB"))
    for spine in axis.spines.values():
        spine.set(visible=True, color=MUTED, linewidth=0.5)
