"""What the objects of a configuration have in common."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from palimpsest.files import fingerprint
from palimpsest.methods.settings import Settings

PACKAGE = Path(__file__).parents[1]


class Science(Settings):
    """Settings that are hashed into fingerprints, but for those that cannot change a number.

    `cites` are works of config/references.bib, by their keys.
    """

    cosmetic: ClassVar[set[str]] = {"title", "cites"}
    title: str
    cites: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Known by this: two objects with the same fingerprint give the same numbers."""
        return fingerprint(self.science())

    def science(self) -> dict[str, Any]:
        """Return the settings that can change a number; one that is None is as one not there."""
        return self.model_dump(mode="json", exclude=self.cosmetic, exclude_none=True)


def modules(package: str) -> set[str]:
    """Return the names of the modules in a folder of this package, without importing any."""
    return {p.stem for p in (PACKAGE / package).glob("*.py") if p.stem != "__init__"}
