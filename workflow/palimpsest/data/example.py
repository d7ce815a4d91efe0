"""The example: one picture and what is asked of it, independent of any model."""

from __future__ import annotations

from dataclasses import dataclass, replace


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

    def with_prompt(self, template: str) -> Example:
        """Return the example with every question set into a task's prompt template."""
        turns = tuple(Turn(template.format(question=t.question), t.answer) for t in self.turns)
        return replace(self, turns=turns)


@dataclass(frozen=True)
class Rejected:
    """A record of a publisher's file that is no example, where it stands and why."""

    file: str
    line: int
    reason: str
