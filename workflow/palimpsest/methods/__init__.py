"""Continual-learning methods, one part a file; a method is a composition of parts.

A part named `moelora` has its typed settings in `settings.py` and its work in `moelora.py`.
Adapters are classes (`adapter.py`), rehearsal parts are modules of functions. Nothing here imports
torch until an adapter is asked for.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from palimpsest.methods.settings import Settings


def part(settings: Settings) -> ModuleType:
    """Return the module that does the work of a part's settings: `methods/<name>.py`."""
    return import_module(f"{__name__}.{settings.name}")
