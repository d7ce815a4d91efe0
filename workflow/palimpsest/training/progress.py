"""What a person sees of a running stage: a bar in a terminal, a line a minute in a log."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

# Peak of dense bf16 matrix products, FLOP/s, by a part of the device's name (vendor's data sheets).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
LINE_EVERY = 60.0  # seconds


class Progress:
    """Shows steps as they are taken, and keeps them as JSON lines beside the checkpoints."""

    def __init__(
        self, metrics: Path, name: str, first: int, last: int, batch: int, parameters: int
    ) -> None:
        """Go on after step `first` of `last`; `parameters` counts all, for the share of peak."""
        self.metrics, self.name, self.last = metrics, name, last
        self.batch, self.parameters = batch, parameters
        self.begun = self.shown = time.monotonic()
        self.steps = self.tokens = 0
        self._forget_after(first)
        self.bar = tqdm(
            total=last, initial=first, desc=name, unit="step", disable=not sys.stderr.isatty()
        )

    def step(self, step: int, tokens: int, **values: Any) -> None:
        """Record one step: the tokens of its batch, its mean `loss`, and what else there is."""
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        loss = values["loss"]
        row = {"step": step, **values, "tokens": tokens}
        with self.metrics.open("a") as f:
            f.write(json.dumps(row) + "\n")
        self.bar.update(1)
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        now = time.monotonic()
        if self.bar.disable and (now - self.shown >= LINE_EVERY or step == self.last):
            self.shown = now
            print(self._line(step, loss), flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.bar.close()

    def _line(self, step: int, loss: float) -> str:
        seconds = max(1e-9, time.monotonic() - self.begun)
        left = (self.last - step) * seconds / self.steps
        parts = [
            f"{self.name}: step {step}/{self.last}",
            f"loss {loss:.3f}",
            f"{self.steps * self.batch / seconds:.0f} samples/s",
            f"{self.tokens / seconds:.0f} tokens/s",
            f"memory {peak_memory() / 2**20:.0f} MiB",
            f"{left:.0f} s left",
        ]
        if share := self._share_of_peak(self.tokens / seconds):
            parts.insert(4, f"{share:.0%} of peak (4N FLOP a token)")
        return ", ".join(parts)

    def _share_of_peak(self, tokens_per_second: float) -> float | None:
        """4N: 2N forward and 2N backward through frozen weights; the ranks share the tokens."""
        if not torch.cuda.is_available():
            return None
        device = torch.cuda.get_device_name()
        peak = next((p for name, p in PEAKS.items() if name in device), None)
        ranks = torch.distributed.get_world_size()
        return peak and 4 * self.parameters * tokens_per_second / ranks / peak

    def _forget_after(self, step: int) -> None:
        """Drop the rows of steps that were taken after the checkpoint and are taken again."""
        rows = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        self.metrics.parent.mkdir(parents=True, exist_ok=True)
        kept = [row + "\n" for row in rows if row.endswith("}") and json.loads(row)["step"] <= step]
        self.metrics.write_text("".join(kept))


def recorded_losses(metrics: Path) -> list[float]:
    """Return the loss of every step so far, those before a resume included."""
    return [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]


def peak_memory() -> int:
    """Return the most memory this process has held, in bytes: of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
