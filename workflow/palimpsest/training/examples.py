"""What a stage learns from: new examples, and old ones where the method rehearses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.config import Method
from palimpsest.data.example import Example, characters
from palimpsest.methods import part
from palimpsest.training.order import epochs, generator


@dataclass(frozen=True)
class Buffer:
    """A rehearsal buffer: a uniform sample of the `seen` examples learnt so far."""

    examples: list[Example]
    seen: int


EMPTY = Buffer([], 0)


class Curriculum(Sequence):
    """The samples of one stage, by position: new examples first, then rehearsed ones."""

    def __init__(
        self, new: Sequence[Example], buffer: Buffer, method: Method, seed: int, lineage: str
    ) -> None:
        self.new, self.buffer, self.rehearsal = new, buffer, method.rehearsal
        self.key = (seed, lineage)
        batch = method.training.batch
        self.num_steps = max(1, round(method.training.epochs * len(new) / batch))
        num_samples = self.num_steps * batch
        self.old: list[Example] = []
        if self.rehearsal and buffer.examples:
            num_old = round(num_samples * self.rehearsal.share)
            rng = generator(*self.key, "rehearsed")
            self.old = part(self.rehearsal).draw(buffer.examples, num_old, rng)
        self.order = epochs(len(new), num_samples - len(self.old), *self.key, "new")

    def __len__(self) -> int:
        return len(self.order) + len(self.old)

    def __getitem__(self, position: int) -> Example:
        if position < len(self.order):
            return self.new[self.order[position]]
        return self.old[position - len(self.order)]

    def characters(self, of_new: Sequence[int]) -> list[int]:
        """Return the length of every sample in characters, given those of the new examples."""
        return [of_new[i] for i in self.order] + [characters(e) for e in self.old]

    def next_buffer(self) -> Buffer:
        """Return the buffer after this stage: the new examples take their chance with the old."""
        if not self.rehearsal:
            return EMPTY
        places = [*range(-len(self.buffer.examples), 0)]  # old examples count from the end
        kept, seen = part(self.rehearsal).update(
            places,
            self.buffer.seen,
            dict.fromkeys(self.order),
            self.rehearsal.capacity,
            generator(*self.key, "buffer"),
        )
        return Buffer([self.buffer.examples[i] if i < 0 else self.new[i] for i in kept], seen)
