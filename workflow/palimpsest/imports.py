"""What a job imports: less, and in less time. Most of a short job's time is its imports."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _Installed(PathFinder):
    """What is installed, less what is hidden."""

    hidden: frozenset[str] = frozenset()

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if name in cls.hidden else super().find_spec(name, path, target)


def hide(packages: Iterable[str]) -> None:
    """Have packages found no more in this process, as if they were not installed.

    For those that libraries import only because they are there.
    """
    _Installed.hidden |= set(packages)
    sys.meta_path[:] = [_Installed if f is PathFinder else f for f in sys.meta_path]


@contextmanager
def quickly() -> Iterator[None]:
    """Import without a look for garbage: what is imported stays. Half a second less with torch."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
