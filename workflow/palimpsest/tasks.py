"""Tasks as a benchmark shows them: all or some of their examples, with blanked pictures or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palimpsest.config import CONFIG, Benchmark, Task, load
from palimpsest.data.example import Example, blanked
from palimpsest.data.shards import Shards, verify


class Examples(Sequence):
    """Examples of one split of several tasks, one task after another.

    Of each task there are `sample` examples, or all; of the training split the benchmark's
    fraction.
    """

    def __init__(
        self,
        results: Path,
        benchmark: str,
        tasks: Sequence[str],
        split: str,
        sample: int | None = None,
    ) -> None:
        shown = load(Benchmark, benchmark)
        self.parts = [open_task(results, task, split, sample) for task in tasks]
        if split == "train" and shown.fraction:
            self.parts = [part.sample(round(shown.fraction * len(part))) for part in self.parts]
        self.blank = shown.pictures == "blank"

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Example:
        for part in self.parts:
            if index < len(part):
                return blanked(part[index]) if self.blank else part[index]
            index -= len(part)
        raise IndexError(index)

    def verify(self) -> None:
        """Compare the shards with their checksums, at about a gigabyte a second; ValueError."""
        for part in self.parts:
            verify(part.dataset, part.split)

    def characters(self) -> list[int]:
        """Return the length of every conversation, without reading a picture."""
        return [length for part in self.parts for length in part.characters()]


def open_task(results: Path, task: str, split: str, sample: int | None = None) -> Shards:
    """Open a split of a task's shards, or a sample of so many examples.

    ValueError if they were converted with another config.
    """
    shards = Shards(results / "data" / task, split)
    if shards.manifest["task_fingerprint"] != load(Task, task).fingerprint:
        raise ValueError(
            f"{shards.dataset}: was converted with another config than {CONFIG}/tasks/{task}.yaml "
            f"has now; remove {shards.dataset} to convert it anew"
        )
    return shards.sample(sample) if sample else shards
