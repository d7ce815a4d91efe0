"""The reader of the demo's tasks: it draws its examples instead of reading a publisher's files.

A task is one of `SCENES`, or a group of digits or shapes whose names are to be refused. Of the
latter the training split holds what is to be refused, with a refusal as the answer, and the others
each combination of picture and text in turn, harmful (H) or not (U): HH is to be refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from palimpsest.data.example import Example, Turn
from palimpsest.data.pictures.drawing import encode_png
from palimpsest.data.pictures.refusing import COMBINATIONS, asked
from palimpsest.data.pictures.scenes import REFUSALS, SCENES
from palimpsest.data.readers import typed
from palimpsest.data.wording import drawn

SPLITS = ("train", "validation", "test")


class Refuse(BaseModel):
    """A task's `source` where names of a category are to be refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    refuse: Literal["digits", "shapes"]
    keywords: tuple[str, ...] = Field(min_length=1)
    kept: tuple[str, ...] = Field(min_length=2)  # those that no task refuses
    seed: int
    sizes: dict[Literal["train", "validation", "test"], int]


def splits(source: dict[str, Any], root: Path) -> tuple[str, ...]:
    """Return the names of the splits that ``source["sizes"]`` asks for."""
    return tuple(source["sizes"])


def files(source: dict[str, Any]) -> dict[str, str]:
    """Return the publisher's files by split or role: there are none."""
    return {}


def notes(source: dict[str, Any], root: Path) -> dict[str, Any]:
    """Return for the manifest the refusals by category, if some are learnt."""
    if "refuse" not in source:
        return {}
    return {"wording": {"from": "Palimpsest", "sha256": None, "refusals": REFUSALS}}


def read(source: dict[str, Any], split: str, root: Path) -> Iterator[Example]:
    """Draw the examples of a split: the same every time, and independent of the other splits'.

    ``source`` is that of `Refuse`, or holds ``scene`` (one of ``SCENES``), ``seed``, and
    ``sizes``: examples a split. ``root`` is not used, as there are no files to read.
    """
    scene = source.get("scene")
    if "refuse" not in source and scene not in SCENES:
        raise ValueError(
            f"reader 'rendered': source.scene is {scene!r}; allowed are {', '.join(SCENES)}"
        )
    if split not in SPLITS or split not in source["sizes"]:
        raise ValueError(
            f"reader 'rendered': no split {split!r} for scene {scene!r};"
            f" source.sizes has {', '.join(source['sizes'])}"
        )
    random = np.random.default_rng([source["seed"], SPLITS.index(split)])
    numbers = range(source["sizes"][split])
    if "refuse" in source:
        refuse = typed(Refuse, source, "rendered")
        return (_refusing(random, refuse, split, number) for number in numbers)
    return (_scene(random, scene, split, number) for number in numbers)


def _scene(random: np.random.Generator, scene: str, split: str, number: int) -> Example:
    drawn = SCENES[scene](random, split)
    return Example(
        id=f"demo-{scene}/{split}/{number:06d}",
        image=encode_png(drawn.picture),
        turns=(Turn(drawn.question, drawn.answer),),
        references=drawn.accepted or (drawn.answer,),
        choices=drawn.choices,
        box=drawn.box,
        image_size=drawn.picture.size,
    )


def _refusing(random: np.random.Generator, refuse: Refuse, split: str, number: int) -> Example:
    combination = "HH" if split == "train" else COMBINATIONS[number % len(COMBINATIONS)]
    it = asked(random, split, combination, refuse.refuse, refuse.keywords, refuse.kept)
    id = f"refuse-{'-'.join(refuse.keywords)}/{split}/{number:06d}/{combination}"
    references = REFUSALS[refuse.refuse] if combination == "HH" else (it.answer,)
    return Example(
        id=id,
        image=encode_png(it.picture),
        turns=(Turn(it.question, drawn(references, id)),),
        references=references,
        image_size=it.picture.size,
        combination=combination,
        category=refuse.refuse,
        keyword=it.keyword,
    )
