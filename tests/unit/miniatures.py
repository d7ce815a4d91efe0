"""Tasks of miniature trees, converted as `palimpsest convert` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsest.config import Task, load
from palimpsest.data.convert import convert


def converted(name: str, root: Path, most_rejected: float | None = None) -> dict[str, Any]:
    """Convert a task of `root/downloads` to `root/data`; return its manifest."""
    task = load(Task, name)
    return convert(
        name,
        reader=task.reader,
        source=task.source,
        prompt=task.prompt,
        about={"task_fingerprint": task.fingerprint},
        most_rejected=task.most_rejected if most_rejected is None else most_rejected,
        out=root / "data" / name,
        root=root / "downloads",
    )
