"""Continual-learning methods, one part a file; a method is a composition of parts.

A part named `moelora` has its typed settings in `settings.py` and its work in `moelora.py`.
Adapters (`adapter.py`) and regularisers (`regulariser.py`) are classes with an interface of their
own, the router is a class, rehearsal parts are modules of functions. Nothing here imports torch
until a part is asked for.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from palimpsest.methods.settings import Settings


def part(settings: Settings) -> ModuleType:
    """Return the module that does the work of a part's settings: `methods/<name>.py`."""
    return import_module(f"{__name__}.{settings.name}")
