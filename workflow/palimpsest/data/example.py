"""The example: one picture and what is asked of it, independent of any model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO

from PIL import Image


@dataclass(frozen=True)
class Turn:
    """One question, without the model's chat format, and the answer to be learnt."""

    question: str
    answer: str


@dataclass(frozen=True)
class Example:
    """A picture (encoded as its publisher encoded it, or none) and a conversation about it."""

    id: str
    image: bytes | None
    turns: tuple[Turn, ...]
    references: tuple[str, ...]  # every accepted answer to the last question
    choices: tuple[str, ...] = ()
    box: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 in pixels
    image_size: tuple[int, int] | None = None  # width, height in pixels
    combination: str = ""  # of unlearning: HH, HU, UH, UU; picture and text, harmful or not
    category: str = ""  # of unlearning: whose refusals fit
    keyword: str = ""  # of unlearning: what the picture is about, as its publisher calls it

    def with_prompt(self, template: str) -> Example:
        """Return the example with every question put in place of a template's `{question}`."""
        turns = tuple(
            Turn(template.replace("{question}", t.question), t.answer) for t in self.turns
        )
        return replace(self, turns=turns)


@dataclass(frozen=True)
class Rejected:
    """A record of a publisher's file that is no example, where it stands and why."""

    file: str
    line: int  # from 1; or the record's number, where the file has no lines
    reason: str


def characters(example: Example) -> int:
    """Return the length of an example's conversation, a stand-in for its number of tokens."""
    return sum(len(t.question) + len(t.answer) for t in example.turns)


def lot(id: str) -> bytes:
    """Return the lot of an example when some are drawn from a split: the lowest ones are."""
    return hashlib.sha256(id.encode()).digest()


def blanked(example: Example) -> Example:
    """Return the example with its picture replaced by a black one of the same size."""
    if example.image is None:
        return example
    return replace(example, image=black(Image.open(BytesIO(example.image)).size))


@cache
def black(size: tuple[int, int]) -> bytes:
    """Return a black picture of a width and height, as a PNG file's bytes."""
    buffer = BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()
