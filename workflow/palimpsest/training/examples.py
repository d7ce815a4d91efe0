"""What a stage learns from: new examples, and old ones where the method rehearses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from palimpsest.config import Method
from palimpsest.data.example import Example, characters
from palimpsest.methods import part
from palimpsest.methods.settings import Rehearsal
from palimpsest.tasks import Examples
from palimpsest.training.order import epochs, generator


@dataclass(frozen=True)
class Buffer:
    """A rehearsal buffer: a sample of the `seen` examples learnt so far."""

    examples: list[Example]
    seen: int


EMPTY = Buffer([], 0)


class Curriculum(Sequence):
    """The samples of one stage, as positions in a pool: its new examples, then the buffer's.

    A rehearsal part is a module of two functions of positions in that pool: `order`, the samples
    of a stage, and `kept`, what the buffer holds after it.
    """

    def __init__(
        self, new: Examples, buffer: Buffer, method: Method, seed: int, lineage: str
    ) -> None:
        self.pool, self.rehearsal = _Pool(new, buffer), method.rehearsal
        self.training, self.key = method.training, (seed, lineage)
        self.order = self._epochs(len(new))
        if self.rehearsal:
            rng = generator(*self.key, "rehearsed")
            sizes = len(new), len(buffer.examples)
            self.order = part(self.rehearsal).order(*sizes, self._epochs, self.rehearsal, rng)
        self.num_steps = len(self.order) // self.training.batch

    def _epochs(self, num_examples: int) -> list[int]:
        """Return the order of a stage that learns from examples 0 … num_examples - 1 alone."""
        num_samples = self.training.num_steps(num_examples) * self.training.batch
        return epochs(num_examples, num_samples, *self.key, "new")

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> Example:
        return self.pool[self.order[position]]

    def characters(self, of_new: Sequence[int]) -> list[int]:
        """Return the length of every sample in characters, given those of the new examples."""
        lengths = [*of_new, *map(characters, self.pool.buffer.examples)]
        return [lengths[i] for i in self.order]

    def next_buffer(self) -> Buffer:
        """Return the buffer after this stage: empty if the method does not rehearse."""
        learnt = [i for i in dict.fromkeys(self.order) if i < len(self.pool.new)]
        return self.pool.kept(learnt, self.rehearsal, generator(*self.key, "buffer"))


def first_buffer(initial: Examples, method: Method, seed: int, benchmark: str) -> Buffer:
    """Return the buffer of the base, as if it had learnt a benchmark's initial tasks in order."""
    rng = generator(seed, benchmark, "initial")
    return _Pool(initial, EMPTY).kept(range(len(initial)), method.rehearsal, rng)


class _Pool:
    """The new examples of a stage, one task after another, then those of the buffer."""

    def __init__(self, new: Examples, buffer: Buffer) -> None:
        self.new, self.buffer = new, buffer

    def __len__(self) -> int:
        return len(self.new) + len(self.buffer.examples)

    def __getitem__(self, position: int) -> Example:
        if position < len(self.new):
            return self.new[position]
        return self.buffer.examples[position - len(self.new)]

    def kept(
        self, learnt: Sequence[int], rehearsal: Rehearsal | None, rng: np.random.Generator
    ) -> Buffer:
        """Return the buffer after some of the new examples were learnt, in that order."""
        if not rehearsal:
            return EMPTY
        ends = accumulate(map(len, self.new.parts), initial=0)
        tasks = [range(start, end) for start, end in pairwise(ends)]
        old, seen = range(len(self.new), len(self)), self.buffer.seen
        kept = part(rehearsal).kept(old, seen, tasks, learnt, rehearsal, rng)
        return Buffer([self[i] for i in kept], seen + len(learnt))
