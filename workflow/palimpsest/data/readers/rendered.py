"""The reader of the demo's tasks: it draws its examples instead of reading a publisher's files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.data.example import Example, Turn
from palimpsest.data.pictures.drawing import encode_png
from palimpsest.data.pictures.scenes import SCENES

SPLITS = ("train", "validation", "test")


def splits(source: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Return the names of the splits that ``source["sizes"]`` asks for."""
    return tuple(source["sizes"])


def files(source: dict[str, Any]) -> dict[str, str]:
    """Return the publisher's files by split or role: there are none."""
    return {}


def read(source: dict, split: str, root: Path) -> Iterator[Example]:
    """Draw the examples of a split: the same every time, and independent of the other splits'.

    ``source`` holds ``scene`` (one of ``SCENES``), ``seed``, and ``sizes``: examples a split.
    ``root`` is not used, as there are no files to read.
    """
    scene = source.get("scene")
    if scene not in SCENES:
        raise ValueError(
            f"reader 'rendered': source.scene is {scene!r}; allowed are {', '.join(SCENES)}"
        )
    if split not in SPLITS or split not in source["sizes"]:
        raise ValueError(
            f"reader 'rendered': no split {split!r} for scene {scene!r};"
            f" source.sizes has {', '.join(source['sizes'])}"
        )
    random = np.random.default_rng([source["seed"], SPLITS.index(split)])
    for number in range(source["sizes"][split]):
        drawn = SCENES[scene](random, split)
        yield Example(
            id=f"demo-{scene}/{split}/{number:06d}",
            image=encode_png(drawn.picture),
            turns=(Turn(drawn.question, drawn.answer),),
            references=(drawn.answer,),
            choices=drawn.choices,
            box=drawn.box,
            image_size=drawn.picture.size,
        )
